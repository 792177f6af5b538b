"""Figures that notebooks show by themselves. Needs matplotlib: imported where one is drawn."""

from __future__ import annotations

from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A figure that a notebook shows if it is the value of a cell.

    Figures outside pyplot have no picture of their own before ``%matplotlib inline`` was said; with
    it, the notebook draws them in place of this class, still once.
    """

    def _repr_png_(self) -> bytes:
        """The figure as a PNG (see IPython's rich display)."""
        picture = BytesIO()
        self.savefig(picture, format="png", dpi=self.dpi, bbox_inches="tight")
        return picture.getvalue()


class ShownAxes(Axes):
    """Axes that a notebook shows with all of their figure."""

    def _repr_png_(self) -> bytes | None:
        """The figure as a PNG; ``None`` if the axes were moved to a figure of another kind."""
        made = self.get_figure()
        return made._repr_png_() if isinstance(made, ShownFigure) else None
