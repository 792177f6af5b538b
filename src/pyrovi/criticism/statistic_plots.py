"""Figures of single statistics of predictive checks: rootogram, dropout by group, any statistic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrovi.criticism.style import CATEGORIES, NEUTRAL, OBSERVED, REPLICATED, axes_of
from pyrovi.errors import ModelError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyrovi.criticism.predictive import PredictiveChecks

_MISFIT = "#D55E00"


def plot_rootogram(
    checks: PredictiveChecks, *, probability: float = 0.9, ax: Axes | None = None
) -> Axes:
    """Hanging rootogram: square roots of the frequencies of counts, hung from the predicted ones.

    Bars hang from the predicted median; they reach the zero line where prediction and data agree.
    A bar that ends above it says that the count is rarer than predicted, below: more frequent. The
    band at zero is where bars end for ``probability`` of replicated data sets.

    Parameters
    ----------
    checks
        Checks with the statistic ``"frequencies"``.
    probability
        Content of the band, count by count.
    ax
        Axes to draw into; ``None`` makes a figure.

    Returns
    -------
    matplotlib.axes.Axes

    References
    ----------
    Kleiber, Zeileis: Visualizing count data regressions using rootograms. The American Statistician
    70, 296-303 (2016).
    """
    _require(checks, "frequency", 'statistics=["frequencies"]')
    observed = np.sqrt(checks.observed["frequency"].to_numpy())
    replicated = np.sqrt(checks.replicated["frequency"].to_numpy())
    counts = checks.observed["count"].to_numpy()
    tail = (1 - probability) / 2
    low, middle, high = np.quantile(replicated, [tail, 0.5, 1 - tail], axis=0)
    ends = middle - observed
    inside = (ends >= middle - high) & (ends <= middle - low)
    with axes_of(ax, 7.0, 4.2) as axes:
        for kept, colour, label in (
            (inside, NEUTRAL, "observed, hung from the prediction"),
            (~inside, _MISFIT, "observed, outside the interval"),
        ):
            if kept.any():
                axes.bar(
                    counts[kept], observed[kept], bottom=ends[kept], width=0.86, color=colour,
                    alpha=0.55, linewidth=0, label=label,
                )  # fmt: skip
        axes.fill_between(
            counts, middle - high, middle - low, color=REPLICATED, alpha=0.35, step="mid",
            linewidth=0, label=f"{probability:.0%} of replicated data end here", zorder=3,
        )  # fmt: skip
        axes.plot(counts, middle, "o-", color=REPLICATED, markersize=3.5, label="predicted, median")
        axes.axhline(0, color=OBSERVED, linewidth=0.9)
        axes.set(title="Frequencies of counts", xlabel="Count", ylabel="√ frequency")
        axes.set_xlim(-0.6, _last_shown(counts, middle, observed) + 0.6)
        axes.legend(loc="upper right")
        return axes


def _last_shown(counts: np.ndarray, middle: np.ndarray, observed: np.ndarray) -> float:
    seen = np.flatnonzero((middle > 0) | (observed > 0))
    return float(counts[seen[-1]]) if len(seen) else float(counts[-1])


def plot_dropout(
    checks: PredictiveChecks, *, probability: float = 0.9, ax: Axes | None = None
) -> Axes:
    """Fraction of zeros of each variable in each group: predicted against observed.

    Parameters
    ----------
    checks
        Checks with a :class:`Dropout` statistic.
    probability
        Content of the intervals.
    ax
        Axes to draw into; ``None`` makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        One colour per group; the legend says how many intervals cover the observed fraction.
    """
    _require(checks, "dropout", 'statistics=[Dropout("batch")]')
    key = str(checks.observed["dropout"].dims[0])
    low, high = (end.to_numpy() for end in checks.interval("dropout", probability))
    observed = checks.observed["dropout"].to_numpy()
    median = checks.replicated["dropout"].median("draw").to_numpy()
    with axes_of(ax, 5.2, 4.6) as axes:
        axes.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1.0)
        for row, group in enumerate(checks.observed[key].to_numpy()):
            colour = CATEGORIES[row % len(CATEGORIES)]
            covered = ((observed[row] >= low[row]) & (observed[row] <= high[row])).mean()
            axes.vlines(
                observed[row], low[row], high[row], color=colour, alpha=0.3, linewidth=1.2,
                rasterized=True,
            )  # fmt: skip
            axes.scatter(
                observed[row], median[row], s=8, color=colour, linewidths=0, zorder=3,
                rasterized=True, label=f"{group} ({covered:.0%} covered)",
            )  # fmt: skip
        axes.set(
            title=f"Zeros of each variable by {key}",
            xlabel="Observed fraction of zeros",
            ylabel=f"Predicted (median and {probability:.0%} interval)",
        )
        axes.legend(loc="upper left", markerscale=2, handletextpad=0.3)
        return axes


def plot_statistic(
    checks: PredictiveChecks, statistic: str, *, probability: float = 0.9, ax: Axes | None = None
) -> Axes:
    """A statistic of the data beside its distribution over replicated data sets.

    Parameters
    ----------
    checks
        The checks.
    statistic
        Name of a statistic. A single number is a line over the histogram of its replications;
        several are points with intervals, in the order of the observed values.
    probability
        Content of the intervals.
    ax
        Axes to draw into; ``None`` makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    _require(checks, statistic, f"statistics=[...{statistic!r}...]")
    observed = checks.observed[statistic].to_numpy().ravel()
    replicated = checks.replicated[statistic].to_numpy().reshape(-1, observed.size)
    tail = (1 - probability) / 2
    name = statistic.replace("_", " ")
    with axes_of(ax, 5.2, 3.8) as axes:
        if observed.size == 1:
            p = float(checks.p_values(statistic).to_numpy().squeeze())
            axes.hist(
                replicated[:, 0], bins=_edges(replicated[:, 0]).tolist(), color=REPLICATED,
                alpha=0.55, label="replicated",
            )  # fmt: skip
            label = f"observed (p = {p:.2f})"
            axes.axvline(float(observed[0]), color=OBSERVED, label=label)
            axes.set(xlabel=name.capitalize(), ylabel="Replicated data sets")
        else:
            order = np.argsort(observed, kind="stable")
            low, high = np.quantile(replicated, [tail, 1 - tail], axis=0)[:, order]
            axes.vlines(
                np.arange(len(order)), low, high, color=REPLICATED, alpha=0.45, linewidth=1.6,
                label=f"replicated, {probability:.0%} interval", rasterized=True,
            )  # fmt: skip
            axes.plot(
                observed[order], ".", color=OBSERVED, markersize=3, label="observed",
                rasterized=True,
            )  # fmt: skip
            axes.set(xlabel="Rank of the observed value", ylabel=name.capitalize())
        axes.set_title(f"{name.capitalize()} of {checks.site}")
        axes.legend(loc="best")
        return axes


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of a histogram; around whole numbers, if values are few whole numbers."""
    low, high = values.min(), values.max()
    if high - low <= 60 and bool((values == np.rint(values)).all()):
        return np.asarray(np.arange(low, high + 2) - 0.5)
    return np.linspace(low, high, 31)


def _require(checks: PredictiveChecks, statistic: str, how: str) -> None:
    if statistic not in checks.observed:
        raise ModelError(
            f"These checks have no statistic {statistic!r}; they have "
            f"{', '.join(map(str, checks.observed.data_vars))}. Ask for it: "
            f"posterior_predictive_checks(model, {how})."
        )
