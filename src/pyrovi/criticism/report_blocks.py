"""What documents are made of: paragraphs, tables, figures, code, and sections of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyrovi.criticism.diagnose_rows import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure, SubFigure


@dataclass(frozen=True)
class Table:
    """A table with its caption; the index of the frame is the first column.

    The words of a column ``verdict`` are shown as marks.
    """

    frame: pd.DataFrame
    caption: str = ""


@dataclass(frozen=True)
class Image:
    """A figure with its caption; ``alt`` says in words what it shows."""

    figure: Figure | SubFigure
    caption: str
    alt: str


@dataclass(frozen=True)
class Code:
    """Source code, or other text whose lines and spaces matter."""

    text: str
    caption: str = ""


@dataclass(frozen=True)
class Diagram:
    """A drawing in HTML or SVG; ``text`` says the same in words.

    The markup is taken as it is: whoever makes it escapes what is in it.
    """

    markup: str
    text: str
    caption: str = ""


@dataclass(frozen=True)
class Callout:
    """A verdict that is not to be overlooked."""

    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown on request."""

    title: str
    blocks: Sequence[Block]


Block = str | Table | Image | Code | Diagram | Callout | Folded
"""What a section is made of; a string is a paragraph of plain text."""

_ORDER: tuple[Verdict, ...] = ("fail", "warn", "pass", "not available")


@dataclass(frozen=True)
class Section:
    """Blocks under a title.

    Attributes
    ----------
    title
        Heading.
    blocks
        The content.
    checks
        The checks whose verdicts the section is about.
    values
        Further content of the JSON twin: numbers for programs.
    """

    title: str
    blocks: Sequence[Block]
    checks: Sequence[Check] = ()
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict | None:
        """The worst verdict of its checks; ``None`` if it has none."""
        found = {check.verdict for check in self.checks}
        return next((verdict for verdict in _ORDER if verdict in found), None)


def checks_table(checks: Sequence[Check], caption: str = "") -> Table:
    """Checks as a table: what was found, the limit, the verdict, and what to do."""
    import pandas as pd

    rows = [
        {
            "found": check.value,
            "limit": check.threshold,
            "verdict": check.verdict,
            "details and advice": ". ".join(filter(None, [check.detail, check.advice])),
        }
        for check in checks
    ]
    index = pd.Index([check.what for check in checks], name="check")
    return Table(pd.DataFrame(rows, index=index, dtype=object), caption)


def plain(value: Any) -> Any:
    """Make a value one that JSON can hold: NumPy scalars become numbers, NaN and infinity null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return str(value)


def format_value(value: Any) -> str:
    """A value for the eye: four significant digits, thousands apart, a dash for what is missing."""
    if value is None:
        return "–"
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if not math.isfinite(value):
        return "–"
    text = f"{value:,.1f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"
    return text.replace("-", "−")
