"""Speed of posterior queries: draws against scvi-tools, and the marginal likelihood.

``make bench`` runs it. Both sides run in turn, each in a process of its own, on the same model,
data and machine; ratios are taken round by round. Writes ``docs/benchmarks_queries.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass

from children import answer_of, machine
from peers import HERE, ROOT, peer_python

PAGE = ROOT / "docs" / "benchmarks_queries.md"


@dataclass(frozen=True)
class Case:
    """One model, and what is asked of it."""

    title: str
    n_obs: int
    n_vars: int
    n_factors: int
    batch_size: int
    num_samples: int
    at_least: float
    """Smallest accepted ratio of draws per second."""

    @property
    def job(self) -> str:
        """What both sides are given."""
        sizes = ("n_obs", "n_vars", "n_factors", "batch_size", "num_samples")
        return json.dumps(
            {name: getattr(self, name) for name in sizes} | {"sites": ["W", "z", "mu"]}
        )


CASES = [
    Case("500 observations, 50 variables (overhead-bound)", 500, 50, 5, 128, 250, 20.0),
    Case("5,000 observations, 2,000 variables (compute-bound)", 5000, 2000, 10, 512, 20, 2.0),
]
MARGINAL_SECONDS = 2.0


def seconds(python: str, script: str, job: str) -> float:
    """Time of the measured call, as the script prints it."""
    return float(answer_of(python, HERE / script, job)["seconds"])


def main() -> None:
    """Measure, judge, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds")
    rounds = parser.parse_args().rounds
    peer = str(peer_python())
    rows, passed = [], True
    for case in CASES:
        ours, theirs = [], []
        for _ in range(rounds):
            theirs.append(seconds(peer, "draws_scvi.py", case.job))
            ours.append(seconds(sys.executable, "draws_pyrovi.py", case.job))
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        rate = [case.num_samples / statistics.median(side) for side in (ours, theirs)]
        ratio = statistics.median(ratios)
        passed &= ratio >= case.at_least
        rows.append(
            f"| {case.title} | {rate[0]:.1f} | {rate[1]:.1f} | {ratio:.1f} "
            f"({min(ratios):.1f} to {max(ratios):.1f}) | {case.at_least:g} |"
        )
        print(rows[-1], flush=True)
    times = [seconds(sys.executable, "marginal_pyrovi.py", "{}") for _ in range(rounds)]
    passed &= statistics.median(times) <= MARGINAL_SECONDS
    marginal = f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
    print(f"marginal log-likelihood: {marginal}")
    PAGE.write_text(_PAGE.format(rows="\n".join(rows), marginal=marginal, rounds=rounds,
                                 limit=MARGINAL_SECONDS, machine=machine()))  # fmt: skip
    print(f"Wrote {PAGE.relative_to(ROOT)}")
    if not passed:
        raise SystemExit("A query is slower than it has to be.")


_PAGE = """\
# Speed of posterior queries

This page is written by `make bench` (`tests/benchmarks/queries.py`); do not edit it by hand.

A Gaussian factor model with global loadings and one latent vector per observation, and Pyro's
mean-field guide. One call of `sample_posterior` asks for the loadings, the latent vectors and the
mean of every value, as draws. scvi-tools 1.4.2 gets the same model as a `PyroBaseModuleClass`. Its
draws of globals and locals do not belong together (each minibatch has others); pyrovi's are joint.

| model | draws/s pyrovi | draws/s scvi-tools | ratio | at least |
| --- | --- | --- | --- | --- |
{rows}

Ratios are medians over {rounds} alternating rounds, with their range.

The importance-weighted marginal log-likelihood of 300 observations under 20 global and 200 inner
draws takes {marginal}; at most {limit:g} s are accepted.

Machine: {machine}.
"""


if __name__ == "__main__":
    main()
