"""Documents: one page that loads nothing, and a twin that programs can read."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from pyrovi.criticism.diagnose_rows import Check
from pyrovi.criticism.document import (
    Callout,
    Code,
    Diagram,
    Document,
    Folded,
    Image,
    Section,
    Table,
    format_value,
    plain,
)
from pyrovi.criticism.report_blocks import checks_table
from pyrovi.criticism.style import figure
from pyrovi.errors import SaveLoadError


class Page(HTMLParser):
    """What a page refers to, and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.problems: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)

    def handle_data(self, data) -> None:
        self.text += data


def loads_nothing(page: Page) -> bool:
    inside = all(r.startswith(("#", "data:image/png;base64,")) for r in page.references)
    return inside and not {"script", "link", "iframe", "object"} & set(page.tags)


def is_well_formed(page: Page) -> bool:
    return not page.problems and not page.open


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
    assert is_well_formed(page)
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


@pytest.fixture
def judged() -> Document:
    checks = [
        Check("good", 0.1, 1.0, "pass", "", "of 3"),
        Check("bad <x>", 2.0, 1.0, "fail", "mend it"),
        Check("none", None, None, "not available", "because"),
    ]
    blocks = [
        Callout("fail", "one & only"),
        checks_table(checks),
        Folded("more <b>", [Code("if a < b:\n    pass", "code")]),
        Diagram('<div class="plate">drawn</div>', "in words", "cap"),
    ]
    return Document("T", "s", [Section("Judged", blocks, checks, {"k": 1})], {"own": 2})


def test_verdicts_are_words_beside_colours_and_contents_say_the_worst(judged) -> None:
    text = judged.to_html()
    page = Page(text)
    assert is_well_formed(page)
    for words in ("✗ fail", "✓ pass", "– not available", "mend it", "if a < b:", "bad <x>"):
        assert words in page.text
    contents = text[text.index("<nav") : text.index("</nav>")]
    assert "✗ fail" in contents
    assert '<div class="plate">drawn</div>' in text


def test_twin_lists_the_checks(judged) -> None:
    twin = judged.to_json()
    assert twin["passed"] is False
    assert twin["values"] == {"k": 1, "own": 2}
    assert twin["checks"][1] == {
        "section": "Judged",
        "check": "bad <x>",
        "value": 2.0,
        "threshold": 1.0,
        "verdict": "fail",
        "advice": "mend it",
        "detail": "",
    }
    assert twin["sections"][0]["verdict"] == "fail"
    kinds = [block["kind"] for block in twin["sections"][0]["blocks"]]
    assert kinds == ["callout", "table", "folded", "diagram"]
    assert twin["sections"][0]["blocks"][2]["blocks"][0]["text"] == "if a < b:\n    pass"


def test_warnings_and_what_could_not_be_made_do_not_fail() -> None:
    checks = [Check("a", 1.0, 0.5, "warn"), Check("b", None, None, "not available", "no")]
    assert Document("T", "s", [Section("S", [], checks)]).to_json()["passed"] is True


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
