"""Speed against scvi-tools and NumPyro, and of starting; writes ``docs/benchmarks_speed.md``.

``make bench`` runs it. Sides run in turn, each in a process of its own, on the same data and
machine; ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
from children import answer_of, machine
from peers import HERE, ROOT, peer_python
from scipy import sparse
from speed_common import Job

WORK = ROOT / ".benchmarks" / "speed"
PAGE = ROOT / "docs" / "benchmarks_speed.md"


IMPORT_RATIO = 1.2
HELP_SECONDS = 1.0
HANDLERS = 1.0
"""Milliseconds of a step that Pyro may take."""
ELBO_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    title: str
    task: str
    likelihood: str
    batch_size: int
    at_least: float
    peer: str = "scvi"


CASES = [
    Case("SCVI, an epoch, ZINB, batch 128", "epoch", "zinb", 128, 2.5),
    Case("SCVI, an epoch, ZINB, batch 1024", "epoch", "zinb", 1024, 2.5),
    Case("SCVI, an epoch, NB, batch 128", "epoch", "nb", 128, 2.5),
    Case("SCVI, an epoch, NB, batch 1024", "epoch", "nb", 1024, 2.5),
    Case("SCVI, an epoch, ZINB, batch 128, against NumPyro", "epoch", "zinb", 128, 1.0, "numpyro"),
    Case("NB, density and gradient, batch 128", "log_prob", "nb", 128, 3.0),
    Case("NB, density and gradient, batch 1024", "log_prob", "nb", 1024, 3.0),
    Case("ZINB, density and gradient, batch 128", "log_prob", "zinb", 128, 3.0),
    Case("ZINB, density and gradient, batch 1024", "log_prob", "zinb", 1024, 3.0),
    Case("loading, batch 128", "loading", "nb", 128, 3.0),
    Case("loading, batch 1024", "loading", "nb", 1024, 3.0),
]


def counts(source: Path) -> Path:
    """10,000 real cells (CITE-seq, both batches) and every second of their 4,000 genes."""
    path = WORK / "counts.h5ad"
    if not path.exists():
        names = ("citeseq_pbmc10k_v3_4000hvg_14prot", "citeseq_pbmc5k_v3_4000hvg_RNAonly")
        parts = [anndata.read_h5ad(source / f"{name}.h5ad").X for name in names]
        X = sparse.vstack(parts).tocsr()[:10_000, ::2].astype(np.float32)
        WORK.mkdir(parents=True, exist_ok=True)
        anndata.AnnData(X[np.asarray(X.sum(1)).ravel() > 0]).write_h5ad(path)
    return path


def seconds(side: str, python: str, job: Job) -> float:
    """Median time of the measured call."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    found = answer_of(python, HERE / f"speed_{side}.py", job.text, env=environment)
    return float(found["seconds"])


def wall(command: list[str]) -> float:
    """Time of a process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def starting(rounds: int) -> tuple[list[str], list[str]]:
    """Rows of what it costs to start, and what takes too long; processes in turn, the shortest."""
    base, ours, helped = [], [], []
    for _ in range(2 * rounds):
        base.append(wall([sys.executable, "-c", "import torch, pyro, anndata"]))
        ours.append(wall([sys.executable, "-c", "import pyrovi"]))
        helped.append(wall([str(Path(sys.executable).with_name("pyrovi")), "--help"]))
    ratio = min(ours) / min(base)
    rows = [
        f"| `import pyrovi` | {_time([min(ours)])} | {ratio:.2f} x `import torch, pyro, anndata` | "
        f"{IMPORT_RATIO:g} x |",
        f"| `pyrovi --help` | {_time([min(helped)])} | | {HELP_SECONDS:g} s |",
    ]
    judged = {"import": ratio <= IMPORT_RATIO, "--help": min(helped) <= HELP_SECONDS}
    return rows, [name for name, good in judged.items() if not good]


def step(data: Path) -> tuple[list[str], list[str], list[str]]:
    """Rows of what a step is made of, and of the ELBO; and what is not as it has to be."""
    rows, elbos, missed = [], [], []
    for likelihood in ("zinb", "nb"):
        job = Job("step", str(data), likelihood)
        found = answer_of(sys.executable, HERE / "speed_step.py", job.text)
        loading, by_hand, pair = found["loading"], found["by hand"], found["pyro"]
        parts = {
            "density and its gradient": found["density"] - loading,
            "optimiser": found["optimiser"] - loading,
            "loading": loading,
            "Pyro: handlers, traces, sites": pair - by_hand,
            "Lightning, hooks, metrics": found["train"] - pair,
        }
        rest = {"networks, forward and backward": found["train"] - sum(parts.values())}
        kind = likelihood.upper()
        rows += [f"| {kind} | {name} | {ms:.2f} ms |" for name, ms in {**rest, **parts}.items()]
        rows.append(f"| {kind} | **a step** | {found['train']:.2f} ms |")
        with_loops, without = found["elbos"]
        difference = abs(with_loops / without - 1)
        elbos.append(
            f"| {kind} | {with_loops:.4f} | {without:.4f} | {difference:.1e} | "
            f"{ELBO_DIFFERENCE:g} |"
        )
        if difference > ELBO_DIFFERENCE:
            missed.append(f"held-out ELBO, {kind}")
        if pair - by_hand > HANDLERS:
            missed.append(f"Pyro's part of a step, {kind}")
    return rows, elbos, missed


def main() -> None:
    """Measure, judge, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds")
    parser.add_argument("--only", default="", help="cases whose title has this; no page")
    arguments = parser.parse_args()
    if not os.environ.get("PYROVI_DATA"):
        raise SystemExit("Set PYROVI_DATA to the folder with the real data sets.")
    data = counts(Path(os.environ["PYROVI_DATA"]))
    chosen = [case for case in CASES if arguments.only in case.title]
    pythons = {peer: str(peer_python(peer)) for peer in {case.peer for case in chosen}}
    rows, slow = [], []
    for case in chosen:
        job = Job(case.task, str(data), case.likelihood, case.batch_size)
        ours, theirs = [], []
        for _ in range(arguments.rounds):
            theirs.append(seconds(case.peer, pythons[case.peer], job))
            ours.append(seconds("pyrovi", sys.executable, job))
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        ratio = statistics.median(ratios)
        if ratio < case.at_least:
            slow.append(case.title)
        rows.append(
            f"| {case.title} | {_time(ours)} | {_time(theirs)} | {ratio:.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {case.at_least:g} |"
        )
        print(rows[-1], flush=True)
    if not arguments.only:
        starts, late = starting(arguments.rounds)
        steps, elbos, missed = step(data)
        slow += late + missed
        print(*starts, *steps, *elbos, sep="\n")
        text = _PAGE.format(
            rows="\n".join(rows), starts="\n".join(starts), rounds=arguments.rounds,
            steps="\n".join(steps), elbos="\n".join(elbos), machine=machine(),
        )  # fmt: skip
        PAGE.write_text(text)
        print(f"Wrote {PAGE.relative_to(ROOT)}")
    if slow:
        raise SystemExit(f"Slower than it has to be: {'; '.join(slow)}.")


def _time(seconds_: list[float]) -> str:
    median = statistics.median(seconds_)
    return f"{median:.2f} s" if median >= 1 else f"{1000 * median:.2f} ms"


_PAGE = """\
# Speed

This page is written by `make bench` (`tests/benchmarks/speed.py`); do not edit it by hand.

10,000 real cells (10x Genomics PBMC, CITE-seq) with 2,000 genes, 10 % of whose counts are not zero;
SCVI with its default architecture. scvi-tools 1.4.2 and NumPyro with Flax run in environments of
their own, on the same data, in turn with pyrovi. NumPyro's step is compiled as a whole by XLA; it
has the same networks with layer norm in place of batch norm, and the textbook formula of the ZINB
(with NumPyro's own zero-inflated distribution a step takes three times as long). Times of densities
are those of one minibatch.

| what | pyrovi | peer | ratio | at least |
| --- | --- | --- | --- | --- |
{rows}

Ratios are medians over {rounds} alternating rounds, with their range; the peer is scvi-tools unless
NumPyro is named. An epoch is a call of `train` for one epoch, after another one: what is done once
for a data set or a process (checks of the data, compilation, Pyro's validation of the first steps)
is not in it, on either side.

| starting | time | | at most |
| --- | --- | --- | --- |
{starts}

## Where a step goes

A training step at batch 128, by what is around it: the networks and the density in plain PyTorch,
the model/guide pair in Pyro, and `train`. Parts are differences of the shortest of eight epochs.

| likelihood | part | time |
| --- | --- | --- |
{steps}

What has been tried without gain: the density in threads of pyrovi's own (those of PyTorch wait for
work on the same cores: it runs in them now), matrices in the order of the gradient's product (a
copy of it is a tenth of a millisecond), the garbage collector off, other thresholds and large pages
of the allocator, and steps without Lightning's loop (3 to 10 %, at the price of its callbacks).
Deterministic sites take 3 % of a step. The head of the zero inflation, three products of matrices,
is what ZINB has over NB; both sides pay it.

## The same results

Evidence lower bound of held-out cells after an epoch, with the compiled loops in training and
evaluation, and without them.

| likelihood | with | without | relative difference | at most |
| --- | --- | --- | --- | --- |
{elbos}

Machine: {machine}.
"""


if __name__ == "__main__":
    main()
