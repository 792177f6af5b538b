"""Figure of probability integral transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyrovi.criticism.style import NEUTRAL, OBSERVED, REPLICATED, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyrovi.criticism.pit import PredictivePIT

_SHOWN_BINS = 20
_MISFIT = "#D55E00"


def plot_pit(pit: PredictivePIT, probability: float = 0.95) -> Figure:
    """Histogram of all transforms, and the distribution function of each variable with its band.

    Parameters
    ----------
    pit
        Result of :func:`predictive_pit`.
    probability
        Content of the simultaneous band of one variable.

    Returns
    -------
    matplotlib.figure.Figure
        Left: histogram; flat if the predictions are right, a U where they are too narrow, a hump
        where they are too wide, a slope where they are biased. Right: empirical distribution
        functions minus the uniform one, variables that leave the band in orange.
    """
    counts = pit.by_variable["histogram"].to_numpy()
    pooled = counts.sum(0).reshape(_SHOWN_BINS, -1).sum(-1)
    bands, difference = pit.bands(probability), pit.ecdf
    inside = np.array([bands.contains(row) for row in difference])
    difference = difference - bands.points
    with figure(9.5, 4.2, columns=2) as (made, (left, right)):
        heights = pooled / pooled.mean()
        edges = np.linspace(0, 1, _SHOWN_BINS + 1)
        left.stairs(heights, edges, fill=True, color=REPLICATED, alpha=0.55)
        left.axhline(1, color=NEUTRAL, linewidth=1.2)
        left.set(
            title="Where the data lie among predictions",
            xlabel="Randomised probability integral transform",
            ylabel="Density",
            xlim=(0, 1),
            ylim=(0, max(1.5, 1.12 * heights.max())),
        )
        right.fill_between(
            bands.points, bands.lower - bands.points, bands.upper - bands.points, step="mid",
            color=NEUTRAL, alpha=0.28, linewidth=0,
            label=f"{probability:.0%} band of one variable ({pit.num_observations} observations)",
        )  # fmt: skip
        for rows, colour, order in ((inside, REPLICATED, 2), (~inside, _MISFIT, 3)):
            lines = difference[rows]
            faint = min(0.9, max(0.12, 12 / max(1, len(difference))))
            right.plot(
                bands.points, lines.T, color=colour, alpha=faint, linewidth=0.9, zorder=order,
                rasterized=len(lines) > 50,
            )  # fmt: skip
        right.plot([], [], color=REPLICATED, label=f"inside ({inside.mean():.0%} of variables)")
        if not inside.all():
            right.plot([], [], color=_MISFIT, label=f"outside ({(~inside).mean():.0%})")
        right.axhline(0, color=OBSERVED, linewidth=0.8)
        right.set(
            title="Distribution functions",
            xlabel="Randomised probability integral transform",
            ylabel="Empirical minus uniform",
            xlim=(0, 1),
        )
        low, high = right.get_ylim()
        right.set_ylim(low, high + 0.45 * (high - low))
        right.legend(loc="upper left")
    return made
