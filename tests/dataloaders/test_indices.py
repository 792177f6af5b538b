"""Selections of observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import DataError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ([3, 1, 1], [3, 1, 1]),
        (range(1, 3), [1, 2]),
        (np.array([2, 0], dtype=np.uint8), [2, 0]),
        (np.array([True, False, False, True]), [0, 3]),
        ([False, True, False, False], [1]),
        (pd.Series([False, True, True, False], index=list("abcd")), [1, 2]),
    ],
)
def test_selections(given: Any, expected: list[int]) -> None:
    resolved = resolve_indices(given, 4)
    assert resolved.dtype == np.int64
    assert resolved.tolist() == expected


def test_the_result_is_a_copy() -> None:
    given = np.array([0, 1], dtype=np.int64)
    resolve_indices(given, 4)[:] = 3
    assert given.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "selects no observation"),
        (np.zeros(4, dtype=bool), "selects no observation"),
        (np.ones(3, dtype=bool), "mask of length 3, expected one entry for each of the 4"),
        ([0, 4], "position 4, expected positions from 0 to 3"),
        ([-1, 0], "position -1, expected"),
        ([0.0, 1.0], "got dtype float64"),
        (["cell0"], "got dtype <U5"),
        ([[0, 1]], r"one-dimensional, got shape \(1, 2\)"),
        (2, r"one-dimensional, got shape \(\)"),
    ],
)
def test_bad_selections(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        resolve_indices(given, 4, "cells")


def test_no_observations_at_all() -> None:
    with pytest.raises(DataError, match="no observations to select from"):
        resolve_indices(None, 0)
