from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from pyrovi.data import containers
from pyrovi.errors import DataError

DENSE = np.array([[0, 3, 0], [0, 0, 0], [1, 0, 0], [0, 2, 0]], dtype=np.float32)
FORMATS = ["csr_matrix", "csc_matrix", "csr_array", "csc_array"]


def with_explicit_zeros(name: str) -> Any:
    matrix = getattr(sparse, name)(DENSE)
    matrix.data[matrix.data == 1] = 0
    return matrix


def on_disk(kind: str, folder: Path) -> Any:
    """DENSE in a file: dense or sparse, HDF5 or zarr."""
    store, _, form = kind.partition("-")
    if store == "h5":
        group = h5py.File(folder / "m.h5", "w")
    else:
        group = zarr.open_group(folder / "m.zarr", mode="w")
    element = DENSE if form == "dense" else getattr(sparse, f"{form}_matrix")(DENSE)
    anndata.io.write_elem(group, "m", element)
    return group["m"] if form == "dense" else anndata.io.sparse_dataset(group["m"])


ON_DISK = ["h5-dense", "h5-csr", "h5-csc", "zarr-dense", "zarr-csr", "zarr-csc"]


@pytest.mark.parametrize("kind", ON_DISK)
def test_matrices_on_disk(kind: str, tmp_path: Path) -> None:
    matrix = on_disk(kind, tmp_path)
    assert containers.is_backed(matrix)
    assert not containers.is_sparse(matrix)
    assert containers.as_matrix(matrix, "x") is matrix
    np.testing.assert_array_equal(containers.row_sums(matrix), DENSE.sum(1))
    groups = np.array([0, 1, 1, 0])
    np.testing.assert_array_equal(
        containers.nonzero_by_group(matrix, groups, 3),
        [[False, True, False], [True, False, False], [False] * 3],
    )


@pytest.mark.parametrize("matrix", [DENSE, *(getattr(sparse, name)(DENSE) for name in FORMATS)])
def test_matrices_in_memory(matrix: Any) -> None:
    assert not containers.is_backed(matrix)
    assert containers.as_matrix(matrix, "x") is matrix
    np.testing.assert_array_equal(containers.row_sums(matrix), DENSE.sum(1))
    rows, columns = containers.nonzero_rows_and_columns(matrix)
    np.testing.assert_array_equal(rows, DENSE.any(1))
    np.testing.assert_array_equal(columns, DENSE.any(0))
    for start, values in containers.value_chunks(matrix):
        for at, value in enumerate(values):
            assert DENSE[containers.locate(matrix, start + at)] == value


@pytest.mark.parametrize("name", FORMATS)
def test_explicit_zeros_are_zeros(name: str) -> None:
    matrix = with_explicit_zeros(name)
    rows, columns = containers.nonzero_rows_and_columns(matrix)
    np.testing.assert_array_equal(rows, matrix.toarray().any(1))
    np.testing.assert_array_equal(columns, matrix.toarray().any(0))
    found = containers.nonzero_by_group(matrix, np.zeros(4, dtype=np.int64), 1)
    np.testing.assert_array_equal(found[0], matrix.toarray().any(0))


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("container", [np.asarray, np.asfortranarray, sparse.csr_array])
def test_chunks_of_any_size(container: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_CHUNK", chunk)
    matrix = container(DENSE)
    test_matrices_in_memory(matrix)
    np.testing.assert_array_equal(containers.row_sums(matrix), DENSE.sum(1))


def test_row_sums_of_narrow_types_do_not_overflow() -> None:
    ones = np.full((2, 300), 200, dtype=np.uint8)
    assert containers.row_sums(ones).tolist() == [60000, 60000]
    assert containers.row_sums(sparse.csr_array(ones)).tolist() == [60000, 60000]


def test_frames_become_arrays() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})
    np.testing.assert_array_equal(containers.as_matrix(frame, "x"), [[1, 0.5], [2, 1.5]])
    values = np.ones((3, 2))
    frame = pd.DataFrame(values, copy=False)
    assert np.shares_memory(containers.as_matrix(frame, "x"), values)
    nullable = pd.DataFrame({"a": pd.array([1, None], dtype="Int64")})
    np.testing.assert_array_equal(containers.as_matrix(nullable, "x"), [[1], [np.nan]])


@pytest.mark.parametrize(
    ("container", "message"),
    [
        (pd.DataFrame({"a": ["x"]}), r"not numeric: 'a'.*astype\(float\)"),
        (sparse.coo_array(DENSE), r"COO.*tocsr"),
        ([[1.0]], r"builtins\.list"),
        (np.ones((2, 2, 2)), "3 dimensions"),
        (np.array([["a"]]), r"<U1.*float32"),
        (np.ones((1, 1), dtype=complex), "complex128"),
    ],
)
def test_other_containers_are_refused(container: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        containers.as_matrix(container, "adata.obsm['x']")


def test_preview() -> None:
    assert containers.preview(["a", "b"]) == "'a', 'b'"
    assert containers.preview(range(9), 2) == "0, 1, ... (9 in all)"
