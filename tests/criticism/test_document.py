"""Documents: one page that loads nothing, and a twin that programs can read."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from pyrovi.criticism.document import Document, Image, Section, Table, format_value, plain
from pyrovi.criticism.style import figure
from pyrovi.errors import SaveLoadError


class Page(HTMLParser):
    """What a page refers to, and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data) -> None:
        self.text += data


def loads_nothing(page: Page) -> bool:
    inside = all(r.startswith(("#", "data:image/png;base64,")) for r in page.references)
    return inside and not {"script", "link", "iframe", "object"} & set(page.tags)


@pytest.fixture
def document() -> Document:
    with figure(2, 2) as (made, (axes,)):
        axes.plot([0, 1])
    frame = pd.DataFrame(
        {"number": [1.5, np.nan], "word": ["<b>", "&"]}, index=pd.Index(["r1", "r2"], name="row")
    )
    return Document(
        "A <title>",
        "sub",
        [
            Section(
                "First & last", ["text <i>", Table(frame, "cap"), Image(made, "capt", 'a "line"')]
            )
        ],
        {"x": np.float64(2.0), "bad": np.nan, "array": np.arange(2)},
    )


def test_page_loads_nothing_and_escapes_text(document) -> None:
    page = Page(document.to_html())
    assert loads_nothing(page)
    assert page.tags.count("img") == 1
    assert not {"b", "i"} & set(page.tags)
    for text in ("A <title>", "First & last", "text <i>", "<b>", "capt"):
        assert text in page.text


def test_json_twin_has_the_same_content(document, tmp_path) -> None:
    path = document.write(tmp_path / "new" / "page.html")
    assert sorted(p.name for p in path.parent.iterdir()) == ["page.html", "page.json"]

    def no_constants(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    twin = json.loads(path.with_suffix(".json").read_text(), parse_constant=no_constants)
    assert twin["values"] == {"x": 2.0, "bad": None, "array": [0, 1]}
    kinds = [block["kind"] for block in twin["sections"][0]["blocks"]]
    assert kinds == ["text", "table", "figure"]
    table = twin["sections"][0]["blocks"][1]
    assert table["columns"] == ["row", "number", "word"]
    assert table["rows"] == [["r1", 1.5, "<b>"], ["r2", None, "&"]]


def test_another_suffix_is_refused_and_nothing_written(document, tmp_path) -> None:
    with pytest.raises(SaveLoadError, match=r"name it \*\.html, not 'report\.json'"):
        document.write(tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_typed_error(document, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveLoadError, match="Cannot write the report"):
        document.write(tmp_path / "file" / "report.html")


def test_plain_values() -> None:
    assert plain({1: (np.int64(2), float("inf")), "p": object}) == {
        "1": [2, None],
        "p": "<class 'object'>",
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345, "12,345"), (-0.123456, "−0.1235"), (1234.56, "1,234.6"), (np.nan, "–"), (None, "–"),
     ("a", "a"), (True, "True"), (np.float32(0.5), "0.5")],
)  # fmt: skip
def test_values_for_the_eye(value, text) -> None:
    assert format_value(value) == text
