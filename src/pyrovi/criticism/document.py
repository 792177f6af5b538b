"""A self-contained document: sections of text, tables and figures, as HTML and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
    plain,
)
from pyrovi.criticism.report_page import page_html
from pyrovi.errors import SaveLoadError


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
        Further content of the JSON twin, beside the values of the sections: numbers for programs.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    values: Mapping[str, Any] = field(default_factory=dict)

    def to_html(self) -> str:
        """The document as one HTML page that loads nothing: style and images are inside."""
        return page_html(self.title, self.subtitle, self.sections)

    def to_json(self) -> dict[str, Any]:
        """The content of the document without its images; numbers that are not finite are null.

        Returns
        -------
        dict
            ``passed``: whether no check failed; ``checks``: every check with ``section``,
            ``check``, ``value``, ``threshold``, ``verdict``, ``advice`` and ``detail``; ``values``;
            ``title``, ``subtitle`` and ``sections``, as the page has them.
        """
        checks = [
            {"section": section.title, "check": row.pop("what"), **row}
            for section in self.sections
            for row in map(asdict, section.checks)
        ]
        values = {k: v for section in self.sections for k, v in section.values.items()}
        return {
            "title": self.title,
            "subtitle": self.subtitle,
            "passed": all(check["verdict"] != "fail" for check in checks),
            "checks": plain(checks),
            "values": plain({**values, **self.values}),
            "sections": [
                {
                    "title": section.title,
                    "verdict": section.verdict,
                    "blocks": [_block_json(block) for block in section.blocks],
                }
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
        page = page_path(path)
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


def page_path(path: str | Path) -> Path:
    """Name of a page.

    Raises
    ------
    SaveLoadError
        If it does not end in ``.html``.
    """
    page = Path(path)
    if page.suffix.lower() not in (".html", ".htm"):
        raise SaveLoadError(f"The report is a web page: name it *.html, not {page.name!r}.")
    return page


def _block_json(block: Block) -> dict[str, Any]:
    if isinstance(block, str):
        return {"kind": "text", "text": block}
    if isinstance(block, Image):
        return {"kind": "figure", "caption": block.caption, "alt": block.alt}
    if isinstance(block, Code | Diagram):
        kind = "code" if isinstance(block, Code) else "diagram"
        return {"kind": kind, "caption": block.caption, "text": block.text}
    if isinstance(block, Callout):
        return {"kind": "callout", "verdict": block.verdict, "text": block.text}
    if isinstance(block, Folded):
        return {
            "kind": "folded",
            "title": block.title,
            "blocks": [_block_json(inner) for inner in block.blocks],
        }
    frame = block.frame.reset_index()
    return {
        "kind": "table",
        "caption": block.caption,
        "columns": [str(column) for column in frame.columns],
        "rows": plain([list(row) for row in frame.itertuples(index=False, name=None)]),
    }


__all__ = [
    "Block",
    "Callout",
    "Code",
    "Diagram",
    "Document",
    "Folded",
    "Image",
    "Section",
    "Table",
    "format_value",
    "page_path",
    "plain",
]
