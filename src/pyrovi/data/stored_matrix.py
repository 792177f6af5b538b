"""Matrices of stores that AnnData does not know: what it asks of a sparse matrix on disk."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from anndata.abc import CSRDataset

from pyrovi.data.sources import read_rows


class StoredMatrix(CSRDataset):
    """A :class:`~pyrovi.data.CellSource` of CSR rows that can be the ``X`` of an AnnData.

    Subclasses have ``shape``, ``dtype`` and the members of a source.
    """

    is_sparse = True
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    @abstractmethod
    def read(self, start: int, stop: int) -> Any:
        """Rows ``start`` to ``stop - 1`` as a CSR matrix."""

    def __getitem__(self, index: Any) -> Any:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        wanted = np.ravel(np.arange(self.shape[0])[rows])  # AnnData asks with np.ix_
        stored, back = np.unique(wanted, return_inverse=True)
        own = np.ravel(np.arange(self.shape[1])[columns])
        return read_rows(self, stored)[back][:, own]  # type: ignore[arg-type]

    def copy(self) -> Self:
        """The same: it cannot be written to."""
        return self

    def to_memory(self) -> Any:
        """All rows."""
        return self.read(0, self.shape[0])
