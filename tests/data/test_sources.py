"""Sources give exactly the rows of their matrix, and say what it costs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from anndata.io import sparse_dataset, write_elem
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrovi.data import CellSource, sources
from pyrovi.data.sources import MemorySource, disk_source, read_rows, runs
from pyrovi.errors import DataError

N_ROWS, N_COLUMNS = 301, 9


def matrix() -> np.ndarray:
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.4, size=(N_ROWS, N_COLUMNS)).astype(np.float32)
    dense[:, 0] = np.arange(N_ROWS)  # no row equals another; the first may be empty
    return dense


def h5ad(x: Any, folder: Path) -> Any:
    anndata.AnnData(x).write_h5ad(folder / "a.h5ad")
    return disk_source(anndata.read_h5ad(folder / "a.h5ad", backed="r").X)


def in_zarr(x: Any, folder: Path) -> Any:
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=2)
    write_elem(group, "X", x)
    return disk_source(sparse_dataset(group["X"]) if sp.issparse(x) else group["X"])


def in_memory(x: Any, folder: Path) -> Any:
    return MemorySource(x)


KINDS: list[Callable[[Any, Path], Any]] = [h5ad, in_zarr, in_memory]


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix], ids=["dense", "csr"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_matrix(
    kind: Callable[..., Any], form: Callable[..., Any], tmp_path: Path
) -> None:
    x = matrix()
    source = kind(form(x), tmp_path)
    assert isinstance(source, CellSource)
    assert source.shape == x.shape
    assert source.is_sparse == (form is sp.csr_matrix)
    dense = (lambda rows: rows.toarray()) if source.is_sparse else np.asarray
    for start, stop in ((0, N_ROWS), (0, 1), (17, 18), (100, 250), (300, 301), (5, 5)):
        found = source.read(start, stop)
        assert sp.issparse(found) == source.is_sparse
        np.testing.assert_array_equal(dense(found), x[start:stop])
    for wanted in (np.arange(N_ROWS), np.array([0, 1, 150, 299, 300]), np.arange(0, N_ROWS, 3)):
        np.testing.assert_array_equal(dense(read_rows(source, wanted)), x[wanted])
    stored = 8 * np.count_nonzero(x) // N_ROWS if source.is_sparse else 4 * N_COLUMNS
    assert source.row_bytes == pytest.approx(stored, abs=5)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(dense(again.read(3, 9)), x[3:9])


@settings(deadline=None, max_examples=60)
@given(
    st.sets(st.integers(0, N_ROWS - 1), min_size=1),
    st.integers(1, 5000),
    st.sampled_from([1, 7, 64]),
)
def test_any_rows_in_any_runs(wanted: set[int], read_bytes: int, many: int) -> None:
    x = matrix()
    positions = np.array(sorted(wanted))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "READ_BYTES", read_bytes)
        patch.setattr(sources, "_MANY_ROWS", many)
        source = MemorySource(x)
        found = list(runs(source, positions))
        np.testing.assert_array_equal(read_rows(source, positions), x[positions])
    assert [end for _, end in found[:-1]] == [first for first, _ in found[1:]]
    longest = max(1, read_bytes // source.row_bytes)
    for first, end in found:
        assert positions[end - 1] - positions[first] < longest
        assert (np.diff(positions[first:end]) <= many).all()


class Counting(MemorySource):
    """Counts the rows that are read."""

    n_read = 0

    def read(self, start: int, stop: int) -> Any:
        self.n_read += stop - start
        return super().read(start, stop)


def test_far_rows_are_read_by_themselves() -> None:
    source = Counting(np.zeros((10_000, 2), np.float32))
    read_rows(source, np.array([3, 5, 5000, 9999]))
    assert source.n_read == 3 + 1 + 1


def test_a_store_that_ends_early_is_named() -> None:
    with pytest.raises(DataError, match="Row 301 is wanted from a store of 301 rows"):
        read_rows(MemorySource(matrix()), np.array([4, 301]))

    class Truncated(MemorySource):
        def read(self, start: int, stop: int) -> Any:
            return super().read(start, min(stop, 200))

    with pytest.raises(DataError, match="gave 0 rows for the positions 250 to 259, expected 10"):
        read_rows(Truncated(matrix()), np.arange(250, 260))


def test_chunks_count_in_rows(tmp_path: Path) -> None:
    file = h5py.File(tmp_path / "a.h5", "w")
    dense = disk_source(file.create_dataset("dense", data=matrix(), chunks=(20, N_COLUMNS)))
    assert dense is not None
    assert dense.chunk_rows == 20
    csr = sp.csr_matrix(np.ones((100, 5), np.float32))
    write_elem(file, "X", csr, dataset_kwargs={"chunks": (50,)})
    sparse = disk_source(sparse_dataset(file["X"]))
    assert sparse is not None
    assert sparse.chunk_rows == 10
    assert disk_source(matrix()) is None
