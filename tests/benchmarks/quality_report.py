"""Comparison of the two sides, and the page of the documentation that shows it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

ELBO_MARGIN = 0.5
"""Per cent by which the held-out ELBO may be worse."""
KNN_MARGIN = 1.0
"""Percentage points by which the label accuracy may be worse."""

Result = dict[str, Any]
"""What one run wrote; see ``quality_common.main``."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of values; that of a single value is 0."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)

    def show(self, digits: int, sign: str = "") -> str:
        """As text, ``mean ± sd``."""
        return f"{self.mean:{sign}.{digits}f} ± {self.sd:.{digits}f}"


@dataclass(frozen=True)
class Comparison:
    """Both sides of one case. Runs at the same place of the two lists share seed and split."""

    dataset: str
    warmup: str
    ours: Sequence[Result]
    theirs: Sequence[Result]
    judged: bool = True
    """Whether the criteria apply; otherwise the case is for information."""

    def __post_init__(self) -> None:
        seeds = [[r["job"]["seed"] for r in side] for side in (self.ours, self.theirs)]
        if seeds[0] != seeds[1] or not seeds[0]:
            raise ValueError(f"Runs are not paired: seeds {seeds[0]} and {seeds[1]}.")

    @property
    def likelihood(self) -> str:
        """Gene likelihood."""
        return str(self.ours[0]["job"]["gene_likelihood"])

    def relative(self, metric: str) -> Spread:
        """Difference of the pairs in per cent of the size of theirs; positive is better."""
        return self._pairs(lambda a, b: 100 * (a - b) / abs(b), metric)

    def points(self, metric: str) -> Spread:
        """Difference of the pairs in percentage points; positive is better."""
        return self._pairs(lambda a, b: 100 * (a - b), metric)

    def _pairs(self, difference: Callable[[float, float], float], metric: str) -> Spread:
        pairs = zip(self.ours, self.theirs, strict=True)
        return Spread.of([difference(a[metric], b[metric]) for a, b in pairs])

    @property
    def passed(self) -> bool:
        """Whether both criteria are met by the means over seeds."""
        elbo, knn = self.relative("elbo").mean, self.points("knn_accuracy").mean
        return elbo >= -ELBO_MARGIN and knn >= -KNN_MARGIN


def quality_table(comparisons: Sequence[Comparison]) -> str:
    """ELBO and label accuracy of every case, as a Markdown table."""
    rows = [
        [
            *_case(c),
            _spread(c.ours, "elbo", 1),
            _spread(c.theirs, "elbo", 1),
            c.relative("elbo").show(2, "+") + " %",
            _spread(c.ours, "knn_accuracy", 1, 100),
            _spread(c.theirs, "knn_accuracy", 1, 100),
            c.points("knn_accuracy").show(1, "+"),
            ("yes" if c.passed else "**no**") if c.judged else "–",
        ]
        for c in comparisons
    ]
    header = [
        *_CASE, "ELBO pyrovi", "ELBO scvi-tools", "difference", "k-NN pyrovi (%)",
        "k-NN scvi-tools (%)", "difference (points)", "met",
    ]  # fmt: skip
    return _table(header, rows)


def information_table(comparisons: Sequence[Comparison]) -> str:
    """Marginal likelihood and time of every case, as a Markdown table."""
    rows = [
        [
            *_case(c),
            _spread(c.ours, "marginal_ll", 1),
            _spread(c.theirs, "marginal_ll", 1),
            c.relative("marginal_ll").show(2, "+") + " %",
            _spread(c.ours, "seconds_per_epoch", 2),
            _spread(c.theirs, "seconds_per_epoch", 2),
        ]
        for c in comparisons
    ]
    header = [
        *_CASE, "log p(x) pyrovi", "log p(x) scvi-tools", "difference", "s/epoch pyrovi",
        "s/epoch scvi-tools",
    ]  # fmt: skip
    return _table(header, rows)


def runs_table(comparisons: Sequence[Comparison]) -> str:
    """Every single run, as a Markdown table."""
    rows = [
        [
            *_case(c)[:-1],
            side,
            str(r["job"]["seed"]),
            f"{r['elbo']:.2f}",
            f"{r['marginal_ll']:.2f}",
            f"{100 * r['knn_accuracy']:.2f}",
            f"{r['seconds_per_epoch']:.3f}",
        ]
        for c in comparisons
        for pair in zip(c.ours, c.theirs, strict=True)
        for side, r in zip(("pyrovi", "scvi-tools"), pair, strict=True)
    ]
    return _table([*_CASE[:-1], "package", "seed", "ELBO", "log p(x)", "k-NN (%)", "s/epoch"], rows)


def page(comparisons: Sequence[Comparison], machine: str, settings: str) -> str:
    """The page of the documentation.

    Parameters
    ----------
    comparisons
        All cases.
    machine
        Class of machine, in words.
    settings
        Data and training settings, as a Markdown list.
    """
    versions = {
        name: f"{r['versions'][name]}"
        for side in (comparisons[0].ours, comparisons[0].theirs)
        for r in side
        for name in r["versions"]
    }
    job = comparisons[0].ours[0]["job"]
    return _PAGE.format(
        elbo_margin=ELBO_MARGIN,
        knn_margin=KNN_MARGIN,
        quality=quality_table(comparisons),
        information=information_table(comparisons),
        runs=runs_table(comparisons),
        machine=machine,
        versions=", ".join(f"{name} {number}" for name, number in versions.items()),
        settings=settings,
        **job,
    )


_CASE = ("data", "likelihood", "KL warm-up", "seeds")


def _case(comparison: Comparison) -> list[str]:
    return [
        comparison.dataset,
        comparison.likelihood,
        comparison.warmup,
        str(len(comparison.ours)),
    ]


def _spread(results: Sequence[Result], metric: str, digits: int, factor: float = 1.0) -> str:
    return Spread.of([factor * r[metric] for r in results]).show(digits)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


_PAGE = """\
# Benchmarks

This page is written by `make bench` (`tests/benchmarks/run.py`); do not edit it by hand.

## Quality against scvi-tools

SCVI of pyrovi and of scvi-tools, with the same data, training and test cells, architecture,
likelihood, optimiser and number of epochs. The criterion: on cells that training has not seen,
the ELBO per cell is at most {elbo_margin} % worse than that of scvi-tools, and the label
accuracy at most {knn_margin:g} percentage point worse, both as means over seeds.

{quality}

Numbers are mean ± standard deviation over seeds. Each seed has its own split, shared by both
packages, and differences are taken seed by seed; positive means that pyrovi is better.

- **ELBO**: evidence lower bound per test cell in nats, at the full KL weight, closed-form KL,
  {n_elbo_samples} draws of z; higher is better.
- **k-NN**: share of the test cells whose label the majority of their 15 nearest training cells
  gives, in the space of posterior means.
- **KL warm-up**: a number of epochs is the same warm-up on both sides. "own default" leaves
  each package its default: half of the planned epochs in pyrovi, 400 epochs in scvi-tools. In
  a training as short as these the latter ends far below the full KL weight. Such a row shows
  what a user gets without choosing; the criterion does not apply to it.

The label accuracy of a single run on PBMC 3k is noisy: it has few test cells, and some of its
types are hard to tell apart. It was first planned with seeds 0 to 2. These gave differences of
-1.1 points with an earlier version of pyrovi and -0.9 with the present one, which has other random
numbers; seeds 3 to 5 were then added, to tell noise from a loss.

The next table is for information. log p(x) is the importance-weighted log-likelihood per test
cell ({n_marginal_samples} draws), which judges the generative model without the slack of its
encoder. Times are the median CPU time of a training epoch in one thread, which is its wall time
on a machine that does nothing else; other work on the machine makes them rougher.

{information}

### Settings

{settings}
- Both: {n_hidden} hidden units, {n_latent} latent dimensions, {n_layers} hidden layer, dropout
  {dropout_rate} (encoder), dispersion per gene, observed library size, minibatches of
  {batch_size}, Adam (learning rate {lr}, eps {eps}, weight decay {weight_decay}), no early
  stopping, no validation set.
- A quarter of the cells, drawn at random by the seed, is the test set. Labels are never shown
  to the models.
- Machine: {machine}. One thread, one process at a time.
- Versions: {versions}.

### Every run

{runs}

### Running it again

`make bench` needs the data folder in `PYROVI_DATA`. It installs scvi-tools into
`.venv-peers/scvi` with the versions of `tests/benchmarks/peer_scvi_constraints.txt`;
`PYROVI_PEER_SCVI` names another environment to use. `make bench ARGS=--quick` is a look at one
seed that leaves this page alone.

## The same function of the parameters

`tests/benchmarks/parity_scvi.py` (also part of `make bench`) copies the parameters of scvi-tools
models into pyrovi's, for every likelihood, dispersion and kind of covariate. The ELBO of every
cell, the loss of a training step and its gradient agree to 1e-5 in double precision. What the
rows with the same warm-up show beyond that is the randomness of initial values, minibatches and
noise.

Two differences are known, neither of which the tables touch: in training, pyrovi anneals the KL of
a latent library size too; and with more than one layer it injects continuous covariates into every
layer, as it does categorical ones, where scvi-tools gives them to the first layer only.
"""
