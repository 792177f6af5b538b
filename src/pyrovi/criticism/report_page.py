"""Documents as HTML: one page that loads nothing, readable on a screen, on paper and by ear."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from pyrovi.criticism.report_blocks import (
    Block,
    Callout,
    Code,
    Diagram,
    Folded,
    Image,
    Section,
    Table,
    format_value,
)
from pyrovi.criticism.report_style import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = {"pass": "✓", "warn": "!", "fail": "✗", "not available": "–"}
"""Signs beside the words of verdicts, so that colour alone says nothing."""

_VERDICTS = {"pass": "pass", "passes": "pass", "warn": "warn", "fail": "fail", "fails": "fail"}
_PIXELS_PER_INCH = 104


def page_html(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """A document as one HTML page.

    Parameters
    ----------
    title, subtitle
        Heading.
    sections
        The content.
    """
    links = "".join(
        f'<li><a href="#section-{i}">{html.escape(section.title)}</a>'
        + (_mark(section.verdict) if section.verdict else "")
        + "</li>"
        for i, section in enumerate(sections)
    )
    body = "".join(
        f'<section id="section-{i}"><h2><span class="count">{i + 1}</span>'
        f"{html.escape(section.title)}</h2>"
        + "".join(map(block_html, section.blocks))
        + "</section>\n"
        for i, section in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header><h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p></header>\n"
        f'<nav aria-label="Contents"><ol>{links}</ol></nav>\n<main>{body}</main></body></html>\n'
    )


def block_html(block: Block) -> str:
    """One block as HTML."""
    if isinstance(block, str):
        return f"<p>{html.escape(block)}</p>"
    if isinstance(block, Table):
        return _table_html(block)
    if isinstance(block, Image):
        return _image_html(block)
    if isinstance(block, Code):
        return _figure(f"<pre><code>{html.escape(block.text)}</code></pre>", block.caption)
    if isinstance(block, Diagram):
        return _figure(f'<div class="diagram">{block.markup}</div>', block.caption)
    if isinstance(block, Callout):
        css = block.verdict.replace(" ", "-")
        return f'<p class="callout {css}">{_badge(block.verdict)} {html.escape(block.text)}</p>'
    assert isinstance(block, Folded)
    inner = "".join(map(block_html, block.blocks))
    return f"<details><summary>{html.escape(block.title)}</summary>{inner}</details>"


def _figure(content: str, caption: str) -> str:
    words = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{content}{words}</figure>"


def _image_html(image: Image) -> str:
    data = BytesIO()
    figure: Any = image.figure.figure  # of a part, the whole
    figure.savefig(data, format="png", metadata={"Software": None})
    encoded = base64.b64encode(data.getvalue()).decode()
    return _figure(
        f'<img alt="{html.escape(image.alt)}" width="{_pixels(figure)}" '
        f'src="data:image/png;base64,{encoded}">',
        image.caption,
    )


def _pixels(figure: Figure) -> int:
    """Width on the page; the image has more pixels, for sharp screens and print."""
    return round(figure.get_figwidth() * _PIXELS_PER_INCH)


def _table_html(table: Table) -> str:
    frame = table.frame.reset_index()
    verdicts = [str(column) == "verdict" for column in frame.columns]
    numeric = [_is_numeric(frame.iloc[:, i]) for i in range(frame.shape[1])]
    wide = [not is_number and _is_prose(frame.iloc[:, i]) for i, is_number in enumerate(numeric)]
    classes = [
        ' class="number"' if is_number else ' class="prose"' if is_wide else ""
        for is_number, is_wide in zip(numeric, wide, strict=True)
    ]
    head = "".join(
        f'<th scope="col"{css}>{html.escape(str(column))}</th>'
        for css, column in zip(classes, frame.columns, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{css}>{_badge(value) if is_verdict else html.escape(format_value(value))}</td>"
            for css, value, is_verdict in zip(classes, row, verdicts, strict=True)
        )
        + "</tr>"
        for row in frame.itertuples(index=False, name=None)
    )
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    return (
        f'<div class="table"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _is_numeric(column: Any) -> bool:
    if column.dtype.kind in "iuf":
        return True
    found = [value for value in column if value is not None]
    return bool(found) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in found
    )


def _is_prose(column: Any) -> bool:
    return any(isinstance(value, str) and len(value) > 40 for value in column)


def _badge(verdict: str) -> str:
    kind = _VERDICTS.get(verdict, "not available")
    css = kind.replace(" ", "-")
    return f'<span class="badge {css}">{MARKS[kind]} {html.escape(verdict)}</span>'


def _mark(verdict: str) -> str:
    css = verdict.replace(" ", "-")
    return f' <span class="mark {css}">{MARKS[verdict]} {verdict}</span>'
