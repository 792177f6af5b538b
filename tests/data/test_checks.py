from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from pyrovi.data.checks import (
    check_unique_names,
    check_values,
    numeric_column,
    warn_empty_columns,
    warn_rare_categories,
    warn_reads,
)
from pyrovi.errors import DataError

CONTAINERS = [
    np.asarray,
    np.asfortranarray,
    sparse.csr_matrix,
    sparse.csc_matrix,
    sparse.csr_array,
    sparse.csc_array,
]


def check(matrix: Any, **kwargs: Any) -> Any:
    options = {"counts": True, "fix": "`layer=`", **kwargs}
    rows = pd.Index([f"cell_{i}" for i in range(matrix.shape[0])])
    columns = pd.Index([f"gene_{i}" for i in range(matrix.shape[1])])
    return check_values(matrix, "adata.X", row_names=rows, column_names=columns, **options)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("bad", [-1.0, 0.5, np.nan, np.inf])
def test_bad_count_is_named(container: Any, bad: float) -> None:
    values = np.ones((5, 4), dtype=np.float32)
    values[3, 2] = bad
    message = rf"adata\.X holds {bad} in row 3 \('cell_3'\), column 2 \('gene_2'\).*`layer=`"
    with pytest.raises(DataError, match=message):
        check(container(values))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, int, np.uint8, bool])
@pytest.mark.parametrize("container", CONTAINERS)
def test_good_counts_of_all_types(container: Any, dtype: Any) -> None:
    if dtype is np.float16 and container not in (np.asarray, np.asfortranarray):
        pytest.skip("SciPy has no sparse half precision")
    values = np.array([[0, 1, 0], [1, 1, 0]], dtype=dtype)
    np.testing.assert_array_equal(check(container(values)), [True, True, False])


def test_negative_integers_are_no_counts() -> None:
    with pytest.raises(DataError, match="holds -2"):
        check(np.array([[1, -2]]))


def test_numbers_that_are_not_counts_must_be_finite() -> None:
    assert check(np.array([[-1.5, 2.0]]), counts=False) is None
    with pytest.raises(DataError, match=r"holds nan in row 0.*finite numbers.*impute"):
        check(np.array([[1.0, np.nan]]), counts=False)


def test_the_last_value_of_a_large_matrix_is_looked_at() -> None:
    values = np.zeros((3000, 1000), dtype=np.float32)  # three chunks
    values[-1, -1] = 0.25
    with pytest.raises(DataError, match=r"row 2999 \('cell_2999'\), column 999"):
        check(values)


@pytest.mark.parametrize("container", CONTAINERS)
def test_empty_rows(container: Any) -> None:
    values = np.array([[1, 0], [0, 0], [0, 0]])
    check(container(values))
    message = "2 observations without a single count: 'cell_1', 'cell_2'.*filter_cells"
    with pytest.raises(DataError, match=message):
        check(container(values), allow_empty_rows=False)


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_data_on_disk_are_sampled(form: str, tmp_path: Path) -> None:
    import anndata
    import h5py

    values = np.ones((2000, 700), dtype=np.float32)
    values[:, :] = -1
    with h5py.File(tmp_path / "x.h5", "w") as file:
        element = values if form == "dense" else getattr(sparse, f"{form}_matrix")(values)
        anndata.io.write_elem(file, "x", element)
        matrix = file["x"] if form == "dense" else anndata.io.sparse_dataset(file["x"])
        messages = set()
        for _ in range(2):  # the sample has a seed of its own
            with pytest.raises(DataError, match="holds -1") as caught:
                check(matrix)
            messages.add(str(caught.value))
            np.random.default_rng().random()
        assert len(messages) == 1
        del file["x"]
        anndata.io.write_elem(file, "x", -values)
        assert check(file["x"]) is None  # nothing is known of columns that were not read


def test_sampled_rows_are_named_by_their_place_in_the_file(tmp_path: Path) -> None:
    import h5py

    values = np.ones((40, 3), dtype=np.float32)
    values[37, 1] = 0.5
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = values
        with pytest.raises(DataError, match=r"row 37 \('cell_37'\), column 1"):
            check(file["x"])
        values[37] = 0
        file["y"] = values
        with pytest.raises(DataError, match=r"1 observations without.*'cell_37'"):
            check(file["y"], allow_empty_rows=False)
        file["z"] = np.zeros((1000, 3))  # more than are read
        with pytest.raises(DataError, match=r"at least 32 obs.*count: ('\w+', ){4}'\w+'\. Exp"):
            check(file["z"], allow_empty_rows=False)


def test_unique_names() -> None:
    check_unique_names(pd.Index(["a", "b"]), "adata", "obs_names")
    with pytest.raises(DataError, match=r"adata\.obs_names has.*'a'.*obs_names_make_unique\(\)"):
        check_unique_names(pd.Index(["a", "b", "a"]), "adata", "obs_names")


def test_empty_columns_warn() -> None:
    names = pd.Index(["a", "b"])
    with pytest.warns(UserWarning, match="1 variables without a single count: 'b'"):
        warn_empty_columns(np.array([True, False]), names, "adata.X")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_empty_columns(np.array([True, True]), names, "adata.X")


def test_rare_categories_warn() -> None:
    with pytest.warns(UserWarning, match="fewer than 3 rows: 'a', 'b'") as caught:
        warn_rare_categories(["a", "b", "c"], np.array([1, 2, 3]), "adata.obs['x']")
    assert len(caught) == 1


def test_reads_warn() -> None:
    with pytest.warns(UserWarning, match="3 values of 2 but only 1 of 1"):
        warn_reads(sparse.csr_array(np.array([[2, 2, 1], [0, 2, 4]])), "adata.X")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_reads(np.array([[1, 1, 2]]), "adata.X")


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.5, 2.0]),
        np.array([1, 2], dtype=np.int8),
        np.array([True, False]),
        pd.array([1, 2], dtype="Int64"),
        pd.array([1.5, 2.5], dtype="Float64"),
    ],
)
def test_numeric_columns(values: Any) -> None:
    result = numeric_column(pd.Series(values), "x")
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, np.asarray(values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1.0, np.nan]), "1 missing.*for 1"),
        (np.array([1.0, -np.inf]), "infinite"),
        (pd.array([None, 2], dtype="Int64"), "1 missing.*for 0"),
        (np.array(["a", "b"], dtype=object), r"type (object|str).*astype\(float\)"),
        (pd.Categorical([1, 2]), "type category"),
        (pd.to_datetime(["2020-01-01", "2021-01-01"]), "datetime64"),
    ],
)
def test_columns_that_are_not_numeric(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        numeric_column(pd.Series(values), "x")
