"""The look of all figures: readable type, thin frames, colours safe for the colour-blind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyrovi._lazy import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OBSERVED = "#000000"
REPLICATED = "#0072B2"
TRAIN, VALIDATION = "#0072B2", "#D55E00"
NEUTRAL = "#8A8A8A"

CATEGORIES = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7A5195", "#999933",
    "#000000", "#5C3A1E",
)  # fmt: skip
"""Colours of categories: Okabe and Ito's, its pale yellow left out, and four darker ones added."""

MARKERS = ("o", "s", "^", "D", "v", "P")
"""Shapes that tell categories apart once the colours repeat."""

_DPI = 150
_STYLE = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
}


@contextmanager
def figure(
    width: float, height: float, columns: int = 1, rows: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Make a figure with a grid of axes, drawn in pyrovi's style inside the context.

    Parameters
    ----------
    width, height
        Size in inches.
    columns, rows
        Number of axes side by side, and one below the other.

    Yields
    ------
    tuple
        The figure and its axes, row by row. The figure belongs to nobody else: pyplot does not
        know it, so that many figures leave nothing behind. Notebooks show either as a value.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "plots")
    from pyrovi._shown import ShownAxes, ShownFigure

    with matplotlib.rc_context(_STYLE):
        made = ShownFigure(figsize=(width, height), dpi=_DPI, layout="constrained")
        grid = made.subplots(rows, columns, squeeze=False, subplot_kw={"axes_class": ShownAxes})
        yield made, list(grid.ravel())


@contextmanager
def axes_of(ax: Axes | None, width: float, height: float) -> Iterator[Axes]:
    """The axes given, or those of a new figure, drawn in pyrovi's style inside the context.

    Parameters
    ----------
    ax
        Axes to draw into; ``None`` makes a figure (``ax.figure``).
    width, height
        Size of a new figure in inches.
    """
    if ax is not None:
        yield ax
        return
    with figure(width, height) as (_, (made,)):
        yield made
