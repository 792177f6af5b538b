"""A self-contained document: sections of text, tables and figures, as HTML and as JSON."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovi.errors import SaveLoadError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table with its caption; the index of the frame is the first column."""

    frame: pd.DataFrame
    caption: str = ""


@dataclass(frozen=True)
class Image:
    """A figure with its caption; ``alt`` says in words what it shows."""

    figure: Figure
    caption: str
    alt: str


Block = str | Table | Image
"""What a section is made of; a string is a paragraph of plain text."""


@dataclass(frozen=True)
class Section:
    """Blocks under a title."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """Sections under a title.

    Attributes
    ----------
    title, subtitle
        Heading.
    sections
        The content.
    values
        Further content of the JSON twin: numbers for programs.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    values: dict[str, Any] = field(default_factory=dict)

    def to_html(self) -> str:
        """The document as one HTML page that loads nothing: style and images are inside."""
        links = "".join(
            f'<a href="#section-{i}">{html.escape(section.title)}</a>'
            for i, section in enumerate(self.sections)
        )
        body = "".join(
            f'<section id="section-{i}"><h2>{html.escape(section.title)}</h2>'
            + "".join(map(_block_html, section.blocks))
            + "</section>\n"
            for i, section in enumerate(self.sections)
        )
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head>\n"
            f"<body><header><h1>{html.escape(self.title)}</h1>"
            f"<p>{html.escape(self.subtitle)}</p><nav>{links}</nav></header>\n<main>{body}</main>"
            "</body></html>\n"
        )

    def to_json(self) -> dict[str, Any]:
        """The content of the document without its images; numbers that are not finite are null."""
        return {
            "title": self.title,
            "subtitle": self.subtitle,
            "values": plain(self.values),
            "sections": [
                {"title": section.title, "blocks": [_block_json(block) for block in section.blocks]}
                for section in self.sections
            ],
        }

    def write(self, path: str | Path) -> Path:
        """Write the page, and the JSON twin beside it.

        Parameters
        ----------
        path
            Name of the page; the twin has the suffix ``.json``.

        Returns
        -------
        Path
            Where the page is.

        Raises
        ------
        SaveLoadError
            If the name does not end in ``.html``, or a file cannot be written.
        """
        page = Path(path)
        if page.suffix.lower() not in (".html", ".htm"):
            raise SaveLoadError(f"The report is a web page: name it *.html, not {page.name!r}.")
        # everything is made before anything is written
        files = {
            page: self.to_html(),
            page.with_suffix(".json"): json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n",
        }
        try:
            page.parent.mkdir(parents=True, exist_ok=True)
            for file, text in files.items():
                file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise SaveLoadError(f"Cannot write the report {str(page)!r}: {error}") from error
        return page


def plain(value: Any) -> Any:
    """Make a value one that JSON can hold: NumPy scalars become numbers, NaN and infinity null."""
    if isinstance(value, dict):
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


def _block_json(block: Block) -> dict[str, Any]:
    if isinstance(block, str):
        return {"kind": "text", "text": block}
    if isinstance(block, Image):
        return {"kind": "figure", "caption": block.caption, "alt": block.alt}
    frame = block.frame.reset_index()
    return {
        "kind": "table",
        "caption": block.caption,
        "columns": [str(column) for column in frame.columns],
        "rows": plain([list(row) for row in frame.itertuples(index=False, name=None)]),
    }


def _block_html(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{html.escape(block)}</p>"
    if isinstance(block, Table):
        return _table_html(block)
    data = BytesIO()
    block.figure.savefig(data, format="png")
    image = base64.b64encode(data.getvalue()).decode()
    return (
        f'<figure><img alt="{html.escape(block.alt)}" width="{_pixels(block.figure)}" '
        f'src="data:image/png;base64,{image}">'
        f"<figcaption>{html.escape(block.caption)}</figcaption></figure>"
    )


def _pixels(figure: Figure) -> int:
    """Width on the page; the image has more pixels, for sharp screens and print."""
    return round(figure.get_figwidth() * 104)


def _table_html(table: Table) -> str:
    frame = table.frame.reset_index()
    numeric = [kind in "iuf" for kind in (dtype.kind for dtype in frame.dtypes)]
    classes = [' class="number"' if is_number else "" for is_number in numeric]
    head = "".join(
        f"<th{css}>{html.escape(str(column))}</th>"
        for css, column in zip(classes, frame.columns, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{css}>{html.escape(format_value(value))}</td>"
            for css, value in zip(classes, row, strict=True)
        )
        + "</tr>"
        for row in frame.itertuples(index=False, name=None)
    )
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    return (
        f'<div class="table"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def format_value(value: Any) -> str:
    """A value for the eye: four significant digits, thousands apart, a dash for what is missing."""
    if value is None:
        return "–"
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "–"
    text = f"{value:,.1f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"
    return text.replace("-", "−")


_STYLE = """
:root { --ink: #1f2328; --soft: #57606a; --line: #d8dee4; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.5rem 4rem; color: var(--ink);
  background: #fff; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
  "DejaVu Sans", Arial, sans-serif; }
header { border-bottom: 3px solid var(--accent); padding-bottom: .6rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
header p { color: var(--soft); margin: 0 0 .8rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
nav a { color: var(--accent); text-decoration: none; }
nav a:hover { text-decoration: underline; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 .5rem; }
p { max-width: 48rem; margin: .5rem 0; }
figure { margin: 1.2rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .92rem; max-width: 48rem; margin-top: .3rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .94rem; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; color: var(--soft); font-size: .92rem;
  padding-top: .4rem; max-width: 48rem; }
th, td { padding: .32rem .9rem .32rem .1rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--ink); white-space: nowrap; }
.number { text-align: right; padding-left: .9rem; white-space: nowrap; }
@media print { nav { display: none; } body { max-width: none; padding: 0; } }
"""
