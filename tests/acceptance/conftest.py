"""Where the reference posteriors are, and the table that the whole run prints."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

ROWS: list[dict[str, object]] = []


@pytest.fixture(scope="session")
def posteriordb() -> Path:
    """Folder of reference posteriors, beside the folder that PYROVI_DATA names."""
    data = os.environ.get("PYROVI_DATA")
    if not data:
        pytest.skip("needs reference posteriors: set PYROVI_DATA; they are in ../posteriordb of it")
    folder = Path(data).resolve().parent / "posteriordb"
    if not folder.is_dir():
        pytest.skip(f"needs reference posteriors: there is no folder {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def table() -> list[dict[str, object]]:
    """Rows that the tests add; printed as one table at the end."""
    return ROWS


def pytest_terminal_summary(terminalreporter: object) -> None:
    """Print the table, case by case."""
    for case, rows in pd.DataFrame(ROWS).groupby("case") if ROWS else ():
        frame = rows.drop(columns="case").dropna(axis=1, how="all").set_index("fit").sort_index()
        with pd.option_context("display.width", 200, "display.max_rows", None):
            terminalreporter.write_line(f"\n{case}\n{frame.to_string()}")  # type: ignore[attr-defined]
