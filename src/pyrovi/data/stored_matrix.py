"""Matrices that stay in their store while an AnnData holds them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from anndata.abc import CSRDataset
from numpy.typing import ArrayLike, NDArray

from pyrovi.data import sources
from pyrovi.data.anndata_hooks import teach_anndata
from pyrovi.data.containers import preview
from pyrovi.data.joined import JoinedSource
from pyrovi.data.sources import CellSource, increasing, is_fork_safe, read_in_order
from pyrovi.errors import DataError

_SAMPLED_BLOCKS, _SAMPLED_ROWS = 8, 32
"""Rows whose values are counted to know the size of a selection of columns."""


class StoredMatrix(CSRDataset):
    """A :class:`~pyrovi.data.CellSource` as ``X``, a layer or an entry of ``obsm`` of an AnnData.

    It cannot be written to. A subset of the AnnData (``adata[cells, genes]``) holds a selection,
    which is not read either; ``to_memory``, ``toarray`` and indexing (``X[:]``) read. What indexing
    gives always has rows and columns: ``X[0]`` is of shape (1, n), ``X[0, 0]`` of (1, 1).
    Selections are read fastest in the order of the store, as those by a mask are. To anndata it is
    a ``CSRDataset``, dense or not (:attr:`is_sparse` tells): it knows no other matrix of this kind.

    Parameters
    ----------
    source
        Where the rows come from. Sparse sources give CSR matrices.
    rows, columns
        Positions of a selection, in any order, or a mask; ``None`` for all.

    Raises
    ------
    DataError
        If the source is none or has no columns, there are no such rows or columns, or anndata is
        of an unknown version.

    Examples
    --------
    >>> adata = anndata.AnnData(pv.data.StoredMatrix(my_source), obs=obs, var=var)
    """

    shape: tuple[int, ...]

    def __init__(
        self, source: CellSource, rows: ArrayLike | None = None, columns: ArrayLike | None = None
    ) -> None:
        teach_anndata(StoredMatrix)
        lacking = [name for name in ("shape", "is_sparse", "read") if not hasattr(source, name)]
        if lacking:
            raise DataError(
                f"The source is a {type(source).__name__}, which lacks {preview(lacking)}. "
                "Expected a pyrovi.data.CellSource; a matrix in memory is X of an AnnData as it is."
            )
        if len(source.shape) < 2:
            raise DataError(
                f"The source has the shape {source.shape}. Expected rows and columns: give (n, 1) "
                "as the shape of a single column."
            )
        self.source = source
        n_rows, n_columns, *more = source.shape
        self._rows = _positions("rows", rows, n_rows)
        self._columns = _positions("columns", columns, n_columns)
        self.shape = (
            n_rows if self._rows is None else len(self._rows),
            n_columns if self._columns is None else len(self._columns),
            *more,
        )

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values: what the source calls its ``dtype``, else that of its first row."""
        known = getattr(self.source, "dtype", None)
        if known is None:
            known = self.source.read(0, min(1, self.source.shape[0])).dtype
        return np.dtype(known)

    @property
    def is_sparse(self) -> bool:
        """Whether :meth:`read` returns a SciPy CSR matrix instead of an ndarray."""
        return self.source.is_sparse

    @cached_property
    def row_bytes(self) -> int:
        """Mean size of a row as it is read; of a selection of sparse columns, in a sample."""
        if self._columns is None:
            return self.source.row_bytes
        if not self.is_sparse:
            return max(1, self.source.row_bytes * self.shape[1] // max(1, self.source.shape[1]))
        n_rows = self.shape[0]
        starts = np.linspace(0, max(0, n_rows - _SAMPLED_ROWS), _SAMPLED_BLOCKS).astype(int)
        blocks = [self.read(start, min(start + _SAMPLED_ROWS, n_rows)) for start in set(starts)]
        size = sum(block.data.nbytes + block.indices.nbytes for block in blocks)
        return max(1, size // max(1, sum(block.shape[0] for block in blocks)))

    @property
    def chunk_rows(self) -> int:
        """Rows that storage hands out together."""
        if self._rows is None:
            return self.source.chunk_rows
        return max(1, self.source.chunk_rows * self.shape[0] // max(1, self.source.shape[0]))

    @property
    def shuffled(self) -> bool:
        """Whether the rows are in a random order: of a store's, or those left of it."""
        return self.source.shuffled and (self._rows is None or increasing(self._rows))

    @property
    def fork_safe(self) -> bool:
        """Whether a forked process can read the rows."""
        return is_fork_safe(self.source)

    def read(self, start: int, stop: int) -> Any:
        """Rows ``start`` to ``stop - 1``, as an ndarray or CSR matrix."""
        if self._rows is None and self._columns is None:
            return self.source.read(start, stop)
        wanted = np.arange(start, stop) if self._rows is None else self._rows[start:stop]
        step = max(1, sources.READ_BYTES // self.source.row_bytes)  # columns are cut after reading
        starts = range(0, max(1, len(wanted)), step)
        pieces = [self._selected(wanted[start : start + step]) for start in starts]
        if len(pieces) == 1:
            return pieces[0]
        return sp.vstack(pieces, format="csr") if self.is_sparse else np.concatenate(pieces)

    def _selected(self, positions: NDArray[np.int64]) -> Any:
        # of no rows the source knows the type of the values
        empty = len(positions) == 0
        rows = self.source.read(0, 0) if empty else read_in_order(self.source, positions)
        return rows if self._columns is None else rows[:, self._columns]

    def select(self, rows: Any = slice(None), columns: Any = slice(None)) -> StoredMatrix:
        """Selection of rows and of columns (each a slice, a mask or positions), not read yet."""
        return StoredMatrix(
            self.source,
            _composed(self._rows, rows, self.shape[0]),
            _composed(self._columns, columns, self.shape[1]),
        )

    def __getitem__(self, index: Any) -> Any:
        return self.select(*(index if isinstance(index, tuple) else (index,))).to_memory()

    def to_memory(self) -> Any:
        """All rows, as an ndarray or CSR matrix."""
        return self.read(0, self.shape[0])

    def toarray(self) -> NDArray[Any]:
        """All rows, as an ndarray."""
        rows = self.to_memory()
        return rows.toarray() if self.is_sparse else rows  # type: ignore[no-any-return]

    def copy(self) -> Self:
        """The same: it cannot be written to."""
        return self

    def __repr__(self) -> str:
        kind = "CSR" if self.is_sparse else "dense"
        size = " x ".join(map(str, self.shape))
        return f"<StoredMatrix of {size}, {kind} {self.dtype}, from {type(self.source).__name__}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (StoredMatrix, (self.source, self._rows, self._columns))

    def __setitem__(self, index: Any, value: Any) -> None:
        raise DataError(
            f"A matrix of shape {self.shape} that stays in its store cannot be written to. Copy "
            "the AnnData first, adata.to_memory(), or give it another matrix, adata.X = matrix (a "
            "subset: adata = adata[cells, genes].copy())."
        )

    def __array__(self, *args: Any, **kwargs: Any) -> NDArray[Any]:
        raise DataError(
            f"A matrix of shape {self.shape} that stays in its store is wanted as an array in "
            "memory. Read it first: adata.to_memory(), or adata[cells, genes].to_memory() for a "
            "part. anndata.concat joins stores if all matrices stay on disk, by row, and have the "
            "same variables in the same order: select them first, adata[:, names]."
        )

    def __array_function__(
        self, function: Any, types: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        # anndata.concat puts matrices under each other like this.
        if function is np.concatenate and len(args) == 1 and kwargs == {"axis": 0}:
            parts = args[0]
            if all(isinstance(part, StoredMatrix) for part in parts):
                return StoredMatrix(JoinedSource(parts, shuffled=False))
        return self.__array__()


def _positions(name: str, index: ArrayLike | None, length: int) -> NDArray[np.int64] | None:
    """Positions of a selection, as the constructor got it."""
    if index is None:
        return None
    try:
        return _composed(None, index, length)
    except IndexError as error:
        raise DataError(
            f"{name} of a StoredMatrix cannot be selected: {error}. Expected positions below "
            f"{length}, or a mask of that length."
        ) from error


def _composed(own: NDArray[np.int64] | None, index: Any, length: int) -> NDArray[np.int64] | None:
    """Positions in the source of a selection from a selection."""
    if isinstance(index, slice) and index == slice(None):
        return own
    selected = np.ravel(np.arange(length)[index])  # np.ix_ gives arrays of two axes
    return selected if own is None else own[selected]
