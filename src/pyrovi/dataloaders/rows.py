"""Rows of a data container in exactly the order asked, whatever the container.

One class per kind of container. Memory-resident containers are indexed directly. Containers on disk
read runs of neighbours (:mod:`pyrovi.data.sources`), each needed row once and in storage order, and
the rows are then put in the order asked.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.abc import CSCDataset
from numpy.typing import NDArray

from pyrovi.data.damage import check_csr
from pyrovi.data.sources import CellSource, disk_source, read_in_order, read_rows
from pyrovi.errors import DataError

_NANOSECONDS = 0.2
"""About how long it takes to write one value of a sparse row."""


class Rows(ABC):
    """Row access to one container.

    Attributes
    ----------
    source
        The container that is read.
    shape
        Shape of the container; the first axis is the rows.
    is_sparse
        Whether :meth:`take` returns a SciPy CSR matrix instead of an ndarray.
    """

    is_sparse: bool = False
    shape: tuple[int, ...]
    source: Any

    @abstractmethod
    def take(self, index: NDArray[np.int64]) -> Any:
        """Rows at ``index`` (any order, repetitions allowed), as a new ndarray or CSR matrix."""

    def dense(self, index: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The same as a new ndarray of a type."""
        rows = self.take(index)
        if self.is_sparse:  # stored values are converted before the zeros exist
            rows = rows.astype(dtype, copy=False).toarray()
        return np.ascontiguousarray(rows, dtype=dtype)


class DenseRows(Rows):
    """Rows of an array in memory, of at least two axes (a vector becomes one column)."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.source = array.reshape(-1, 1) if array.ndim == 1 else array
        self.shape = self.source.shape

    def take(self, index: NDArray[np.int64]) -> NDArray[Any]:
        return self.source.take(index, axis=0)


class SparseRows(Rows):
    """Rows of a CSR matrix in memory.

    Parameters
    ----------
    matrix
        The matrix.
    in_one_thread
        Whether one thread makes rows dense, because another reads the next ones.
    """

    is_sparse = True

    def __init__(self, matrix: Any, in_one_thread: bool = False) -> None:
        if matrix.indptr.dtype != matrix.indices.dtype:
            # Files may have it so, and SciPy would convert all indices at every access.
            matrix = type(matrix)(matrix, copy=False)
            wide = matrix.indptr[-1] > np.iinfo(np.int32).max
            index = np.int64 if wide else np.int32
            matrix.indptr = matrix.indptr.astype(index, copy=False)
            matrix.indices = matrix.indices.astype(index, copy=False)
        check_csr(matrix)
        self.source = matrix
        self.shape = matrix.shape
        self._unique = bool(matrix.has_canonical_format)
        self._nanoseconds = 0.0 if in_one_thread else _NANOSECONDS

    def take(self, index: NDArray[np.int64]) -> Any:
        # SciPy's compiled row gather was measured faster than any gather of indptr/indices/data
        # written in NumPy (128 x 2000 at 5-10 % density: 104-124 against 139-208 microseconds).
        return self.source[index]

    def dense(self, index: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
        from pyrovi._loops import run
        from pyrovi.dataloaders.row_loops import dense_rows

        out = np.empty((len(index), self.shape[1]), dtype)
        matrix = self.source
        csr = matrix.indptr, matrix.indices, matrix.data, self._unique
        try:
            run(dense_rows, len(out), self._nanoseconds * out.size, index, *csr, out)
        except IndexError:
            raise _no_such_row(self.shape[0], index) from None
        return out


def _no_such_row(n_rows: int, index: NDArray[np.int64]) -> IndexError:
    return IndexError(
        f"There are {n_rows} rows, got positions from {index.min()} to {index.max()}."
    )


class BackedRows(Rows):
    """Rows of an array or CSR matrix on disk.

    Parameters
    ----------
    stored
        Reads neighbouring rows.
    """

    def __init__(self, stored: CellSource) -> None:
        self.stored = stored
        self.is_sparse = stored.is_sparse
        self.shape = tuple(stored.shape)

    @property
    def source(self) -> Any:  # type: ignore[override]
        """The dataset on disk."""
        return getattr(self.stored, "source", self.stored)

    def take(self, index: NDArray[np.int64]) -> Any:
        if len(index) and index.min() < 0:  # counted from the end, as in memory
            if index.min() < -self.shape[0]:
                raise _no_such_row(self.shape[0], index)
            index = np.where(index < 0, index + self.shape[0], index)
        return read_in_order(self.stored, index)

    def loaded(self, positions: NDArray[np.int64]) -> LoadedRows:
        """Some of the rows, read now.

        Parameters
        ----------
        positions
            The rows, strictly increasing.
        """
        stored = read_rows(self.stored, positions)
        rows = SparseRows(stored, in_one_thread=True) if self.is_sparse else DenseRows(stored)
        return LoadedRows(positions, rows)


class LoadedRows(Rows):
    """Some rows of a container on disk, in memory under the positions they have there.

    Parameters
    ----------
    positions
        Positions of the rows, strictly increasing.
    rows
        The rows.
    """

    def __init__(self, positions: NDArray[np.int64], rows: Rows) -> None:
        self.positions = positions
        self.rows = rows
        self.source = rows.source
        self.shape = rows.shape
        self.is_sparse = rows.is_sparse

    def take(self, index: NDArray[np.int64]) -> Any:
        return self.rows.take(np.searchsorted(self.positions, index))

    def dense(self, index: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
        return self.rows.dense(np.searchsorted(self.positions, index), dtype)


def as_rows(name: str, data: Any) -> Rows:
    """Row access to a container.

    Parameters
    ----------
    name
        Name of the field, for messages.
    data
        ndarray, DataFrame, SciPy sparse matrix or array, ``h5py.Dataset``, ``zarr.Array``, a
        sparse dataset of a backed AnnData (HDF5 or Zarr), or any
        :class:`~pyrovi.data.sources.CellSource`. Column-compressed and other sparse
        formats are converted to CSR once, because reading rows of a CSC matrix visits all of it.

    Raises
    ------
    DataError
        If the container is of another type.

    Warns
    -----
    UserWarning
        If a CSC matrix on disk has to be read into memory.
    """
    if isinstance(data, np.ndarray):
        return DenseRows(np.asarray(data))
    if isinstance(data, pd.DataFrame | pd.Series):
        return DenseRows(data.to_numpy())
    if sp.issparse(data):
        return SparseRows(data.tocsr())
    stored = data if isinstance(data, CellSource) else disk_source(data)
    if stored is not None:
        return BackedRows(stored)
    if isinstance(data, CSCDataset):
        warnings.warn(
            f"Field {name!r} is a CSC matrix on disk, whose rows cannot be read one by one: it is "
            "read into memory now. Write it as CSR to stream it from disk.",
            UserWarning,
            stacklevel=2,
        )
        return SparseRows(data.to_memory().tocsr())
    raise DataError(
        f"Field {name!r} is a {type(data).__module__}.{type(data).__qualname__}, expected an "
        "ndarray, DataFrame, SciPy sparse matrix, or a dataset of a backed AnnData; load it into "
        "memory with .to_memory() or .compute()"
    )
