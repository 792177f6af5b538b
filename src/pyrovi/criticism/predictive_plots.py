"""Figures of posterior predictive checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrovi.criticism.style import NEUTRAL, OBSERVED, REPLICATED, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyrovi.criticism.predictive import PredictiveChecks

PROBABILITY = 0.9
"""Content of the intervals that the figures show."""


def plot_mean_variance(checks: PredictiveChecks) -> Figure:
    """Mean and variance of each variable: observed, and intervals of replicated data.

    Returns
    -------
    matplotlib.figure.Figure
        Left: variance against mean. Right: predicted against observed variance.
    """
    observed = checks.observed
    mean, variance = observed["mean"].to_numpy(), observed["variance"].to_numpy()
    low, high = (end.to_numpy() for end in checks.interval("variance", PROBABILITY))
    logarithmic = bool((mean > 0).all())
    with figure(9.5, 4.4, columns=2) as (made, (left, right)):
        kept = (mean > 0) & (variance > 0) if logarithmic else np.isfinite(mean)
        left.vlines(
            mean[kept], low[kept], high[kept], color=REPLICATED, alpha=0.35, linewidth=2.2,
            label=f"predicted, {PROBABILITY:.0%} interval", rasterized=True,
        )  # fmt: skip
        left.scatter(
            mean[kept], variance[kept], s=7, color=OBSERVED, linewidths=0, zorder=3,
            label="observed", rasterized=True,
        )  # fmt: skip
        if logarithmic:
            left.set(xscale="log", yscale="log")
            ends = np.array([mean[kept].min(), mean[kept].max()])
            left.plot(ends, ends, ":", color=NEUTRAL, linewidth=1.3, label="variance = mean")
            _plain_ticks(left)
        left.set(title="Variance and mean of each variable")
        left.set(xlabel="Mean over observations", ylabel="Variance over observations")
        left.legend(loc="upper left")
        _against_observed(
            right, checks, "variance", "variance over observations", logarithmic=logarithmic
        )
    return made


def plot_zero_fraction(checks: PredictiveChecks) -> Figure:
    """Fraction of zeros of each variable: predicted against observed, and by mean.

    Returns
    -------
    matplotlib.figure.Figure
        Left: fraction of zeros against mean. Right: predicted against observed fraction.
    """
    mean = checks.observed["mean"].to_numpy()
    zeros = checks.observed["zero_fraction"].to_numpy()
    low, high = (end.to_numpy() for end in checks.interval("zero_fraction", PROBABILITY))
    with figure(9.5, 4.4, columns=2) as (made, (left, right)):
        left.vlines(
            mean, low, high, color=REPLICATED, alpha=0.35, linewidth=2.2,
            label=f"predicted, {PROBABILITY:.0%} interval", rasterized=True,
        )  # fmt: skip
        left.scatter(
            mean, zeros, s=7, color=OBSERVED, linewidths=0, zorder=3, label="observed",
            rasterized=True,
        )  # fmt: skip
        if (mean > 0).all():
            left.set_xscale("log")
            _plain_ticks(left)
        left.set(title="Zeros and mean of each variable", ylim=(-0.03, 1.03))
        left.set(xlabel="Mean over observations", ylabel="Fraction of observations that are zero")
        left.legend(loc="lower left")
        _against_observed(right, checks, "zero_fraction", "fraction of zeros", logarithmic=False)
    return made


def plot_totals(checks: PredictiveChecks, bins: int = 40) -> Figure:
    """Distribution of the totals of observations (library sizes).

    Parameters
    ----------
    checks
        The checks.
    bins
        Number of bins of the histogram.

    Returns
    -------
    matplotlib.figure.Figure
        Left: histogram, with the interval of each bin's height over replicated data sets. Right:
        predicted against observed total of each observation.
    """
    totals = checks.observed["total"].to_numpy()
    replicated = checks.replicated["total"].to_numpy()
    lowest, highest = min(totals.min(), replicated.min()), max(totals.max(), replicated.max())
    logarithmic = lowest > 0
    make = np.geomspace if logarithmic else np.linspace
    edges = make(lowest, highest * (1 + 1e-9) + (lowest == highest), bins + 1)
    heights = np.stack([np.histogram(draw, edges)[0] for draw in replicated])
    tail = (1 - PROBABILITY) / 2
    low, middle, high = np.quantile(heights, [tail, 0.5, 1 - tail], axis=0)
    with figure(9.5, 4.4, columns=2) as (made, (left, right)):
        left.stairs(
            high, edges, baseline=low, fill=True, color=REPLICATED, alpha=0.3, linewidth=0,
            label=f"predicted, {PROBABILITY:.0%} interval",
        )  # fmt: skip
        left.stairs(middle, edges, color=REPLICATED, label="predicted, median", baseline=None)
        observed = np.histogram(totals, edges)[0]
        left.stairs(observed, edges, color=OBSERVED, label="observed", baseline=None)
        if logarithmic:
            left.set_xscale("log")
            _plain_ticks(left)
        left.set(
            title="Totals of observations", xlabel="Total of an observation", xlim=edges[[0, -1]]
        )
        left.set_ylabel("Number of observations")
        left.set_ylim(0, 1.32 * max(high.max(), observed.max()))
        left.legend(loc="upper right")
        _against_observed(
            right, checks, "total", "total of an observation", logarithmic=bool(logarithmic)
        )
    return made


def _against_observed(
    axes: Axes, checks: PredictiveChecks, statistic: str, name: str, *, logarithmic: bool
) -> None:
    """Intervals of the predicted against the observed values, with the line of equality."""
    observed = checks.observed[statistic].to_numpy()
    median = checks.replicated[statistic].median("draw").to_numpy()
    low, high = (end.to_numpy() for end in checks.interval(statistic, PROBABILITY))
    inside = (observed >= low) & (observed <= high)
    for kept, colour, label in (
        (inside, REPLICATED, f"interval covers the observed value ({inside.mean():.0%})"),
        (~inside, "#D55E00", f"does not ({(~inside).mean():.0%})"),
    ):
        axes.vlines(
            observed[kept], low[kept], high[kept], color=colour, alpha=0.35, linewidth=1.4,
            rasterized=True,
        )  # fmt: skip
        axes.scatter(
            observed[kept], median[kept], s=8, color=colour, linewidths=0, label=label,
            rasterized=True, zorder=3,
        )  # fmt: skip
    positive = [v[v > 0] for v in (observed, low, high)] if logarithmic else [observed, low, high]
    lowest = min(v.min() for v in positive if v.size)
    highest = max(v.max() for v in positive if v.size)
    axes.plot([lowest, highest], [lowest, highest], color=NEUTRAL, linewidth=1.0, zorder=2)
    if logarithmic:
        axes.set(xscale="log", yscale="log")
        _plain_ticks(axes)
    axes.set(title="Predicted and observed", xlabel=f"Observed {name}")
    axes.set_ylabel(f"Predicted {name}\n(median and {PROBABILITY:.0%} interval)")
    axes.legend(loc="upper left", markerscale=2, handletextpad=0.3)


def _plain_ticks(axes: Axes) -> None:
    """Write the ticks of a short logarithmic axis as plain numbers, few enough not to collide."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() != "log":
            continue
        low, high = axis.get_view_interval()
        if low > 0 and high / low < 200:
            few = MaxNLocator(5) if high / low < 4 else LogLocator(subs=(1, 2, 5))
            axis.set_major_locator(few)
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
