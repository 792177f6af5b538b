"""Every container gives exactly the rows asked for, in the order asked."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata.io import sparse_dataset, write_elem

from pyrovi.dataloaders.rows import as_rows
from pyrovi.errors import DataError

UNSORTED_REPEATED = np.array([7, 3, 3, 52, 0, 7, 19, 20, 21])
INDICES = [UNSORTED_REPEATED, np.array([4]), np.arange(10, 30), np.array([1, 5, 6, 50])]


def hdf5_dense(x: np.ndarray, folder: Path) -> Any:
    return h5py.File(folder / "dense.h5", "w").create_dataset("X", data=x)


def hdf5_csr(x: np.ndarray, folder: Path) -> Any:
    file = h5py.File(folder / "csr.h5", "w")
    write_elem(file, "X", sp.csr_matrix(x))
    return sparse_dataset(file["X"])


def zarr_dense(x: np.ndarray, folder: Path) -> Any:
    group = zarr.open_group(folder / "dense.zarr", mode="w")
    write_elem(group, "X", x)
    return group["X"]


def zarr_csr(x: np.ndarray, folder: Path) -> Any:
    group = zarr.open_group(folder / "csr.zarr", mode="w")
    write_elem(group, "X", sp.csr_matrix(x))
    return sparse_dataset(group["X"])


def backed_h5ad(x: np.ndarray, folder: Path) -> Any:
    anndata.AnnData(sp.csr_matrix(x)).write_h5ad(folder / "a.h5ad")
    return anndata.read_h5ad(folder / "a.h5ad", backed="r").X


IN_MEMORY: dict[str, Callable[[np.ndarray], Any]] = {
    "c_order": np.ascontiguousarray,
    "f_order": np.asfortranarray,
    "float64": lambda x: x.astype(np.float64),
    "data_frame": pd.DataFrame,
    "csr_matrix": sp.csr_matrix,
    "csr_array": sp.csr_array,
    "csc_matrix": sp.csc_matrix,
    "csc_array": sp.csc_array,
    "coo_array": sp.coo_array,
    "view": lambda x: anndata.AnnData(np.vstack([x, x]))[: len(x)].X,
    "sparse_view": lambda x: anndata.AnnData(sp.csr_matrix(np.vstack([x, x])))[: len(x)].X,
}
ON_DISK = {f.__name__: f for f in (hdf5_dense, hdf5_csr, zarr_dense, zarr_csr, backed_h5ad)}


def dense(rows: Any) -> np.ndarray:
    return rows.toarray() if sp.issparse(rows) else rows


@pytest.mark.parametrize("index", INDICES, ids=["unsorted", "one", "run", "sorted"])
@pytest.mark.parametrize("kind", IN_MEMORY)
def test_containers_in_memory(kind: str, index: np.ndarray, x: np.ndarray) -> None:
    rows = as_rows("X", IN_MEMORY[kind](x))
    assert rows.shape == x.shape
    taken = rows.take(index)
    assert sp.issparse(taken) == rows.is_sparse
    np.testing.assert_array_equal(dense(taken), x[index])


@pytest.mark.parametrize("index", INDICES, ids=["unsorted", "one", "run", "sorted"])
@pytest.mark.parametrize("kind", ON_DISK)
def test_containers_on_disk(kind: str, index: np.ndarray, x: np.ndarray, tmp_path: Path) -> None:
    rows = as_rows("X", ON_DISK[kind](x, tmp_path))
    assert rows.shape == x.shape
    taken = rows.take(index)
    assert sp.issparse(taken) == rows.is_sparse == ("csr" in kind or kind == "backed_h5ad")
    np.testing.assert_array_equal(dense(taken), x[index])


@pytest.mark.parametrize("kind", ["hdf5_dense", "hdf5_csr", "zarr_dense", "zarr_csr"])
def test_rows_on_disk_survive_pickling(kind: str, x: np.ndarray, tmp_path: Path) -> None:
    """Worker processes that are spawned get the dataset through pickle."""
    source = ON_DISK[kind](x, tmp_path)
    copied = pickle.dumps(as_rows("X", source))
    node = getattr(source, "group", source)
    if isinstance(node, h5py.Dataset | h5py.Group):
        node.file.close()  # written above; HDF5 lets nobody else read until then
    rows = pickle.loads(copied)
    np.testing.assert_array_equal(dense(rows.take(UNSORTED_REPEATED)), x[UNSORTED_REPEATED])


def test_duplicate_entries_of_a_csr_matrix_add_up() -> None:
    matrix = sp.csr_matrix(([1.0, 2.0, 4.0, 8.0], [2, 0, 2, 1], [0, 3, 4]), shape=(2, 3))
    rows, order = as_rows("X", matrix), np.array([1, 0])
    for taken in (dense(rows.take(order)), rows.dense(order, np.dtype("float32"))):
        assert taken.tolist() == [[0.0, 8.0, 0.0], [2.0, 0.0, 5.0]]
    assert matrix.nnz == 4  # the caller's matrix is left as it was


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("stored", [np.float32, np.uint8, bool])
def test_dense_rows_of_a_csr_matrix(stored: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x = (rng.poisson(0.3, (60, 5)) % 200).astype(stored)
    rows = as_rows("X", sp.csr_matrix(x))
    for index in (*INDICES, np.array([-1, -60, 3]), np.array([], int)):
        dense = rows.dense(index, np.dtype(dtype))
        assert dense.dtype == dtype
        np.testing.assert_array_equal(dense, x[index].astype(dtype))
    for beyond in (60, -61):
        with pytest.raises(IndexError, match="60 rows"):
            rows.dense(np.array([0, beyond]), np.dtype(dtype))


@pytest.mark.parametrize(
    ("part", "value"), [("indices", 5), ("indices", -1), ("indptr", 4), ("indptr", -1)]
)
def test_damaged_csr_matrices_are_refused(part: str, value: int) -> None:
    matrix = sp.csr_matrix(np.eye(3, 5))
    getattr(matrix, part)[2] = value
    with pytest.raises(DataError, match="damaged"):
        as_rows("X", matrix)


def test_vectors_on_disk_become_columns(tmp_path: Path) -> None:
    vector = np.arange(60.0)
    for source in (
        h5py.File(tmp_path / "v.h5", "w").create_dataset("v", data=vector),
        zarr.create_array(tmp_path / "v.zarr", data=vector),
    ):
        taken = as_rows("v", source).take(UNSORTED_REPEATED)
        np.testing.assert_array_equal(taken, vector[UNSORTED_REPEATED, None])


def test_csc_on_disk_is_read_once_with_a_warning(x: np.ndarray, tmp_path: Path) -> None:
    file = h5py.File(tmp_path / "csc.h5", "w")
    write_elem(file, "X", sp.csc_matrix(x))
    with pytest.warns(UserWarning, match="'X' is a CSC matrix on disk"):
        rows = as_rows("X", sparse_dataset(file["X"]))
    np.testing.assert_array_equal(dense(rows.take(UNSORTED_REPEATED)), x[UNSORTED_REPEATED])


@pytest.mark.parametrize("data", [[[1.0]], "text"])
def test_other_containers_are_refused(data: Any) -> None:
    with pytest.raises(DataError, match=r"'X' is a builtins\.\w+, expected an ndarray"):
        as_rows("X", data)


@pytest.mark.parametrize("kind", ON_DISK)
def test_positions_from_the_end(kind: str, x: np.ndarray, tmp_path: Path) -> None:
    rows = as_rows("X", ON_DISK[kind](x, tmp_path))
    for index in (np.array([-1]), np.array([3, -2, 0, -len(x)])):
        np.testing.assert_array_equal(dense(rows.take(index)), x[index])
    with pytest.raises(
        IndexError, match=rf"There are {len(x)} rows, got positions from -{len(x) + 1}"
    ):
        rows.take(np.array([0, -len(x) - 1]))
