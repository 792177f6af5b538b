from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given

from pyrovi.data.categories import encode, find_categories, mapping_array, unseen_categories
from pyrovi.errors import DataError, UnseenCategoryError


def column(values: Any, **kwargs: Any) -> pd.Series:
    series = pd.Series(values, **kwargs)
    series.index = [f"cell_{i}" for i in range(len(series))]
    return series


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", "a", "b"], ["a", "b"]),
        (np.array([2, 0, 2]), [0, 2]),
        (np.array([10, 9, 100]), [9, 10, 100]),
        (np.array([True, False, True]), [False, True]),
        (np.array([1.0, 0.0, 1.0]), [0, 1]),
        (pd.array(["b", "a", "b"], dtype="string"), ["a", "b"]),
        (pd.array([2, 1, 2], dtype="Int64"), [1, 2]),
        (pd.Categorical([3, 1, 3]), [1, 3]),
        (pd.Categorical([0.5, 1.0, 0.5]), [0.5, 1]),
        (pd.Categorical(["b", "a"], categories=["unused", "b", "a"]), ["a", "b"]),
        (
            pd.Categorical(["high", "low"], categories=["low", "mid", "high"], ordered=True),
            ["low", "high"],
        ),
        (np.array(["", "a"], dtype=object), ["", "a"]),
    ],
)
def test_categories_that_occur_keep_their_type(values: Any, expected: list[Any]) -> None:
    found, counts = find_categories(column(values), "adata.obs['x']")
    assert found == expected
    assert [type(c) for c in found] == [type(c) for c in expected]
    assert counts.sum() == len(values)
    # Mapping back gives the user's values, each in its place.
    codes = encode(column(values), found, "x")
    assert codes.dtype == np.int64
    assert [found[code] for code in codes] == list(values)


@pytest.mark.parametrize("target", [[1], [1.0], [0, 1]])
def test_equal_numbers_are_one_category(target: list[Any]) -> None:
    assert encode(column(target), [0, 1], "x").tolist() == [int(value) for value in target]


@pytest.mark.parametrize(
    ("target", "mapping"),
    [
        (["1", "0"], [0, 1]),
        ([1, 0], ["0", "1"]),
        ([True, False], [0, 1]),
        ([0, 1], [False, True]),
        ([0.0, 1.0], [False, True]),
        (["True"], [True]),
    ],
)
def test_categories_of_another_type_are_unseen(target: list[Any], mapping: list[Any]) -> None:
    assert unseen_categories(column(target), mapping, "x") == sorted(target)
    with pytest.raises(UnseenCategoryError, match="unknown to the registry"):
        encode(column(target), mapping, "x")


@pytest.mark.parametrize(("falsy", "known"), [(0, [1, 2]), ("", ["a"]), (False, [True])])
def test_falsy_category_is_unseen(falsy: Any, known: list[Any]) -> None:
    values = [known[0], falsy]
    assert unseen_categories(column(values), known, "x") == [falsy]
    with pytest.raises(UnseenCategoryError, match=r"adata\.obs\['x'\] holds the category"):
        encode(column(values), known, "adata.obs['x']")


def test_unseen_error_names_category_and_fix() -> None:
    with pytest.raises(UnseenCategoryError, match=r"'new'.*'old'.*extend_categories=True"):
        encode(column(["old", "new"]), ["old"], "adata.obs['x']")


@pytest.mark.parametrize(
    "values",
    [
        np.array(["a", None], dtype=object),
        np.array([1.0, np.nan]),
        pd.Categorical(["a", None]),
        pd.array([1, None], dtype="Int64"),
    ],
)
def test_missing_values_name_the_row(values: Any) -> None:
    with pytest.raises(DataError, match=r"adata\.obs\['x'\] has 1 missing.*'cell_1'.*fillna"):
        find_categories(column(values), "adata.obs['x']")


@pytest.mark.parametrize(
    "values",
    [
        np.array(["a", 1], dtype=object),
        np.array([True, 1], dtype=object),
        pd.to_datetime(["2020-01-01", "2021-01-01"]),
        np.array([(1, 2), (3, 4)], dtype="i,i").astype(object),
    ],
)
def test_mixed_or_foreign_types_are_refused(values: Any) -> None:
    with pytest.raises(DataError, match=r"astype\(str\)"):
        find_categories(column(values), "x")


def test_fractional_numbers_are_no_categories_unless_declared() -> None:
    with pytest.raises(DataError, match=r"0\.5.*continuous covariate"):
        find_categories(column([0.5, 1.0]), "x")
    with pytest.raises(DataError, match="inf"):
        find_categories(column([np.inf, 1.0]), "x")


def test_mapping_array_keeps_types() -> None:
    assert mapping_array([0, 1]).dtype == np.int64
    assert mapping_array([True]).dtype == bool
    strings = mapping_array(["a", "b"])
    assert isinstance(strings[0], str)
    assert type(strings[0]) is str
    mixed = mapping_array([0, "unknown"])
    assert list(mixed) == [0, "unknown"]


@given(
    values=st.one_of(
        st.lists(st.text(max_size=3), min_size=1),
        st.lists(st.integers(-5, 5), min_size=1),
        st.lists(st.booleans(), min_size=1),
    ),
    as_category=st.booleans(),
)
def test_codes_agree_with_a_dictionary(values: list[Any], as_category: bool) -> None:
    series = column(pd.Categorical(values) if as_category else values)
    categories, counts = find_categories(series, "x")
    position = {category: code for code, category in enumerate(sorted(set(values)))}
    assert categories == sorted(set(values))
    assert encode(series, categories, "x").tolist() == [position[value] for value in values]
    assert counts.tolist() == [values.count(category) for category in categories]
