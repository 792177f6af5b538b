"""Matrices of any size, read by runs of neighbouring rows.

Storage hands out neighbours far faster than single rows: a source reads contiguous rows, and says
how much it costs to do so. What order the rows are wanted in is for others to decide.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import h5py
import numpy as np
import scipy.sparse as sp
from anndata.abc import CSRDataset
from anndata.io import sparse_dataset
from numpy.typing import NDArray

from pyrovi.data.damage import check_columns, check_pointers, check_readable, place, stamp
from pyrovi.errors import DataError

READ_BYTES = 2**24
"""Largest run of rows that is read at once."""

SHUFFLED = "pyrovi_shuffled"
"""Attribute of a matrix on disk whose rows were put into a random order."""

_MANY_ROWS = 64
"""Rows that cost no more to read and drop than the beginning of another read."""


@runtime_checkable
class CellSource(Protocol):
    """Rows of one matrix, read by contiguous blocks.

    Any object with these members is one: loaders read from it block by block. It is given to a
    model in a dict of arrays or, in a :class:`StoredMatrix`, as ``X`` of an AnnData. An attribute
    ``fork_safe = False`` says that a forked process cannot read from it (libraries whose threads do
    not survive a fork); without it, one can.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix; the first axis is the rows."""

    @property
    def is_sparse(self) -> bool:
        """Whether :meth:`read` returns a SciPy CSR matrix instead of an ndarray."""

    @property
    def row_bytes(self) -> int:
        """Mean size of a row as it is read."""

    @property
    def chunk_rows(self) -> int:
        """Rows that storage hands out together: shorter reads cost as much. 1 if none matter."""

    @property
    def shuffled(self) -> bool:
        """Whether the rows are stored in a random order: neighbours are no more alike."""

    def read(self, start: int, stop: int) -> Any:
        """Rows ``start`` to ``stop - 1``, in the order of the storage."""


def is_fork_safe(data: Any) -> bool:
    """Whether a forked process can read from a source, or any other container."""
    return bool(getattr(data, "fork_safe", True))


class MemorySource:
    """Rows of an ndarray or a SciPy CSR matrix in memory.

    Parameters
    ----------
    matrix
        ndarray of at least two axes, or CSR matrix or array.
    """

    chunk_rows = 1
    shuffled = False

    def __init__(self, matrix: Any) -> None:
        self.source = matrix
        self.shape: tuple[int, ...] = tuple(matrix.shape)
        self.dtype: np.dtype[Any] = matrix.dtype
        self.is_sparse = bool(sp.issparse(matrix))

    @property
    def row_bytes(self) -> int:
        """Mean size of a row."""
        parts = (self.source.data, self.source.indices) if self.is_sparse else (self.source,)
        return max(1, sum(part.nbytes for part in parts) // max(1, self.shape[0]))

    def read(self, start: int, stop: int) -> Any:
        """Rows ``start`` to ``stop - 1``."""
        return self.source[start:stop]


class ArraySource:
    """Rows of a dense array on disk: ``h5py.Dataset`` or ``zarr.Array``.

    Parameters
    ----------
    array
        The array. A vector is read as one column.
    """

    is_sparse = False
    shuffled = False

    def __init__(self, array: Any) -> None:
        self.source = array
        self.shape: tuple[int, ...] = (*array.shape, 1) if len(array.shape) == 1 else array.shape
        self.dtype: np.dtype[Any] = array.dtype
        self.chunk_rows = int(array.chunks[0]) if array.chunks else 1
        self._opened = stamp(array)

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return max(1, int(np.prod(self.shape[1:])) * self.dtype.itemsize)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start`` to ``stop - 1``; :class:`DataError` if the store is not there any more."""
        check_readable(self.source, self._opened)
        rows = np.asarray(self.source[start:stop])
        return rows.reshape(len(rows), *self.shape[1:])

    def __getstate__(self) -> dict[str, Any]:
        return closed(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(reopened(state))


class CSRSource:
    """Rows of a CSR matrix on disk, in AnnData's layout (HDF5 or zarr).

    Where the rows begin (``indptr``, 8 bytes a row) is kept in memory.

    Parameters
    ----------
    dataset
        What ``adata.X`` of a backed AnnData, or :func:`anndata.io.sparse_dataset`, gives.
    """

    is_sparse = True

    def __init__(self, dataset: Any) -> None:
        self.source = dataset
        self.shape: tuple[int, ...] = tuple(dataset.shape)
        self.dtype: np.dtype[Any] = np.dtype(dataset.dtype)
        self._opened = stamp(dataset.group)

    @cached_property
    def _parts(self) -> tuple[NDArray[np.int64], Any, Any]:
        group = self.source.group
        check_readable(group, self._opened)
        try:
            pointers, indices, data = (group[name] for name in ("indptr", "indices", "data"))
        except KeyError as error:
            raise DataError(
                f"{place(group)} is damaged: it has {sorted(group)}. Expected indptr, indices and "
                "data: copy or write it again."
            ) from error
        indptr = np.asarray(pointers[:], dtype=np.int64)
        n_values = min(indices.shape[0], data.shape[0])
        check_pointers(indptr, self.shape, n_values, place(group))
        return indptr, indices, data

    @property
    def row_bytes(self) -> int:
        """Mean size of a row: its values and their columns."""
        indptr, indices, data = self._parts
        per_value = indices.dtype.itemsize + data.dtype.itemsize
        return max(1, int(indptr[-1]) * per_value // max(1, self.shape[0]))

    @property
    def chunk_rows(self) -> int:
        """Mean number of rows whose values are in one chunk."""
        indptr, _, data = self._parts
        if not data.chunks:
            return 1
        return max(1, int(data.chunks[0] * self.shape[0] // max(1, int(indptr[-1]))))

    @property
    def shuffled(self) -> bool:
        """Whether :func:`pyrovi.data.shuffled_store` has written it."""
        return bool(self.source.group.attrs.get(SHUFFLED, False))

    def read(self, start: int, stop: int) -> Any:
        """Rows ``start`` to ``stop - 1``; :class:`DataError` if the store is damaged or gone."""
        check_readable(self.source.group, self._opened)
        indptr, indices, data = self._parts
        first, last = int(indptr[start]), int(indptr[stop])
        columns = indices[first:last]
        check_columns(columns, self.shape[1], place(self.source.group))
        return sp.csr_matrix(
            (data[first:last], columns, indptr[start : stop + 1] - first),
            shape=(stop - start, self.shape[1]),
        )

    def __getstate__(self) -> dict[str, Any]:
        return closed({key: value for key, value in self.__dict__.items() if key != "_parts"})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(reopened(state))


def closed(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes for pickling, with the place of an HDF5 node instead of ``source`` itself.

    HDF5 handles cannot be pickled: worker processes that are not forked reopen the file.
    """
    state = dict(attributes)
    node = getattr(state["source"], "group", state["source"])
    if isinstance(node, h5py.Dataset | h5py.Group):
        state["source"] = (node.file.filename, node.name)
    return state


def reopened(state: dict[str, Any]) -> dict[str, Any]:
    """Attributes from what :func:`closed` gave."""
    if not isinstance(state["source"], tuple):
        return state
    path, name = state["source"]
    node = h5py.File(path, "r")[name]
    return {**state, "source": sparse_dataset(node) if isinstance(node, h5py.Group) else node}


def disk_source(data: Any) -> CellSource | None:
    """Source of a container on disk whose rows can be read; ``None`` for any other container.

    Parameters
    ----------
    data
        ``h5py.Dataset``, ``zarr.Array``, a sparse dataset of a backed AnnData (HDF5 or zarr), or a
        source, which is returned.
    """
    if isinstance(data, CellSource):
        return data
    if isinstance(data, CSRDataset):
        return CSRSource(data)
    # Zarr is optional in some versions of anndata; its arrays exist only once it is imported.
    zarr = sys.modules.get("zarr")
    if isinstance(data, h5py.Dataset) or (zarr is not None and isinstance(data, zarr.Array)):
        return ArraySource(data)
    return None


def runs(source: CellSource, positions: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring rows that hold all wanted ones.

    Rows are read and dropped where that is cheaper than to begin another read; no run is larger
    than :data:`READ_BYTES`.

    Parameters
    ----------
    source
        The matrix.
    positions
        Wanted rows, in increasing order.

    Yields
    ------
    tuple of int
        First and last (exclusive) index into ``positions`` of the rows of a run.
    """
    n = len(positions)
    longest = max(1, READ_BYTES // source.row_bytes)
    breaks = np.flatnonzero(np.diff(positions) > max(_MANY_ROWS, source.chunk_rows)) + 1
    for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), n], strict=True):
        while first < last:
            end = int(np.searchsorted(positions[first:last], positions[first] + longest)) + first
            yield first, end
            first = end


def read_in_order(source: CellSource, positions: NDArray[np.int64]) -> Any:
    """Rows at any positions, in their order and as often as they are named; each is read once.

    Parameters
    ----------
    source
        The matrix.
    positions
        Wanted rows, counted from the first.

    Returns
    -------
    ndarray or CSR matrix

    Raises
    ------
    DataError
        If the store ends before the last of them.
    """
    if increasing(positions):
        return read_rows(source, positions)
    stored, back = np.unique(positions, return_inverse=True)
    return read_rows(source, stored)[back]


def increasing(positions: NDArray[np.int64]) -> bool:
    """Whether every position is larger than the one before it."""
    return bool((np.diff(positions) > 0).all())


def read_rows(source: CellSource, positions: NDArray[np.int64]) -> Any:
    """Rows at increasing positions, in one piece.

    Parameters
    ----------
    source
        The matrix.
    positions
        Wanted rows, strictly increasing.

    Returns
    -------
    ndarray or CSR matrix

    Raises
    ------
    DataError
        If the store ends before the last of them.
    """
    if len(positions) and positions[-1] >= source.shape[0]:
        raise DataError(
            f"Row {positions[-1]} is wanted from a store of {source.shape[0]} rows; was the file "
            "changed after setup?"
        )
    pieces = []
    for first, end in runs(source, positions):
        wanted = positions[first:end]
        start, stop = int(wanted[0]), int(wanted[-1]) + 1
        piece = source.read(start, stop)
        if piece.shape[0] != stop - start:
            raise DataError(
                f"The store gave {piece.shape[0]} rows for the positions {start} to {stop - 1}, "
                f"expected {stop - start}; it is truncated or was changed after setup"
            )
        pieces.append(piece if len(wanted) == stop - start else piece[wanted - start])
    if len(pieces) == 1:
        return pieces[0]
    if source.is_sparse:
        empty = sp.csr_matrix((0, source.shape[1]))
        return sp.vstack(pieces, format="csr") if pieces else empty
    return np.concatenate(pieces) if pieces else np.empty((0, *source.shape[1:]))
