"""Figures of calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from pyrovi.criticism.style import CATEGORIES, NEUTRAL, OBSERVED, REPLICATED, figure
from pyrovi.errors import ModelError
from pyrovi.posterior.ecdf import ecdf_bands, ecdf_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyrovi.criticism.calibration.result import Calibration

MAX_BINS = 20
_FAILED = "#D55E00"


def plot_calibration(
    calibration: Calibration, quantities: Sequence[str] | None = None, *, max_quantities: int = 6
) -> Figure:
    """Distribution functions (above) and histograms (below) of some quantities.

    Parameters
    ----------
    calibration
        What a check found.
    quantities
        Columns; ``None`` for those with the smallest p-values.
    max_quantities
        How many to show if none are named.

    Returns
    -------
    matplotlib.figure.Figure
        Two rows of axes, a column for each quantity.
    """
    if quantities is None:
        quantities = list(dict.fromkeys(calibration.table.index))[:max_quantities]
    shown = [quantities] if isinstance(quantities, str) else list(quantities)
    width = max(4.2, 3.1 * len(shown))
    with figure(width, 5.6, columns=len(shown), rows=2) as (made, axes):
        for i, name in enumerate(shown):
            plot_ecdf_difference(calibration, name, ax=axes[i])
            plot_histogram(calibration, name, ax=axes[len(shown) + i])
            if i:
                axes[i].set_ylabel("")
                axes[len(shown) + i].set_ylabel("")
        made.suptitle(calibration.what, fontsize=12, x=0.01, ha="left")
    return made


def plot_ecdf_difference(calibration: Calibration, quantity: str, ax: Axes | None = None) -> Axes:
    """Empirical distribution function minus the uniform one, with its simultaneous band.

    Parameters
    ----------
    calibration
        What a check found.
    quantity
        A column of its values.
    ax
        Axes to draw in; ``None`` makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        A line above the band on the left and below it on the right: draws too narrow; the other
        way round: too wide; above throughout: the truth lies below the draws.
    """
    values = _column(calibration, quantity)
    if ax is None:
        with figure(4.6, 3.4) as (_, (ax,)):
            return plot_ecdf_difference(calibration, quantity, ax)
    num_ranks = None if calibration.num_draws is None else calibration.num_draws + 1
    bands = ecdf_bands(len(values), calibration.probability, num_ranks=num_ranks)
    points = np.concatenate([[0.0], bands.points, [1.0]])
    low = np.concatenate([[0.0], bands.lower - bands.points, [0.0]])
    high = np.concatenate([[0.0], bands.upper - bands.points, [0.0]])
    ax.fill_between(
        points, low, high, color=REPLICATED, alpha=0.2, linewidth=0,
        label=f"{calibration.probability:.0%} band",
    )  # fmt: skip
    ax.axhline(0, color=NEUTRAL, linewidth=1)
    pit = calibration.pit[:, list(calibration.values.columns).index(quantity)]
    rows = calibration.table.loc[[quantity]]
    whole = rows if "stratum" not in rows else rows[rows["stratum"] == "all"]
    verdict = str(whole["verdict"].iloc[0])
    failed = verdict == "fails"
    if calibration.strata is not None:
        labels = calibration.strata.astype(str).to_numpy()
        strata = [s for s in rows["stratum"] if s != "all"]
        for stratum, colour in zip(sorted(strata), CATEGORIES[1:], strict=False):
            part = _difference(pit[labels == stratum], points)
            ax.plot(points, part, color=colour, linewidth=1.0, alpha=0.9, label=stratum)
    ax.plot(points, _difference(pit, points), color=_FAILED if failed else OBSERVED)
    ax.set(xlim=(0, 1), xlabel="", ylabel="ECDF difference")
    p_value = float(whole["adjusted"].iloc[0])
    ax.set_title(_short(quantity))
    ax.text(
        0.98, 0.96, f"{verdict}, p = {p_value:.2g}",
        transform=ax.transAxes, ha="right", va="top", fontsize=9,
        color=_FAILED if failed else OBSERVED,
    )  # fmt: skip
    reach = max(np.abs(ax.get_ylim()).max(), 1e-6) * 1.15
    ax.set_ylim(-reach, reach)
    if calibration.strata is not None:
        ax.legend(loc="lower left", fontsize=8)
    return ax


def plot_histogram(calibration: Calibration, quantity: str, ax: Axes | None = None) -> Axes:
    """Histogram of ranks or transforms, with the interval of each bar if they were uniform.

    Parameters
    ----------
    calibration, quantity, ax
        As in :func:`plot_ecdf_difference`.

    Returns
    -------
    matplotlib.axes.Axes
        The interval holds for each bar alone: one bar in twenty may leave it.
    """
    values = _column(calibration, quantity)
    if ax is None:
        with figure(4.6, 3.0) as (_, (ax,)):
            return plot_histogram(calibration, quantity, ax)
    ranks = calibration.num_draws
    bins = _num_bins(len(values), None if ranks is None else ranks + 1)
    if ranks is None:
        bin_of = np.minimum((values * bins).astype(int), bins - 1)
        share = np.full(bins, 1 / bins)
    else:
        bin_of = (values * bins // (ranks + 1)).astype(int)
        share = np.bincount(np.arange(ranks + 1) * bins // (ranks + 1)) / (ranks + 1)
    counts = np.bincount(bin_of, minlength=bins)
    edges = np.arange(bins + 1) / bins
    low, high = (stats.binom.ppf(q, len(values), share) for q in (0.025, 0.975))
    ax.stairs(counts, edges, fill=True, color=NEUTRAL, alpha=0.55)
    ax.stairs(high, edges, baseline=low, fill=True, color=REPLICATED, alpha=0.22)
    ax.stairs(len(values) * share, edges, baseline=None, color=REPLICATED, linewidth=1.2)
    ax.set(xlim=(0, 1), ylim=(0, None), ylabel="Count")
    ax.set_xlabel("Rank of the truth / draws" if ranks is not None else "PIT")
    return ax


def _num_bins(n: int, num_ranks: int | None) -> int:
    """Bins with some ten values each, and with equal numbers of ranks where that can be."""
    most = int(np.clip(n // 10, 4, MAX_BINS))
    if num_ranks is None:
        return most
    most = min(most, num_ranks)
    even = [b for b in range(math.ceil(most / 2), most + 1) if num_ranks % b == 0]
    return even[-1] if even else most


def _difference(pit: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.asarray(ecdf_values(pit, points) - points)


def _column(calibration: Calibration, quantity: str) -> np.ndarray:
    if quantity not in calibration.values:
        known = ", ".join(map(str, calibration.values.columns[:10]))
        raise ModelError(f"There is no quantity {quantity!r}; quantities are: {known}.")
    return calibration.values[quantity].to_numpy(dtype=np.float64)


def _short(name: str, length: int = 26) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
