"""Matrices of stores that AnnData does not know: what it asks of a sparse matrix on disk."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

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
        wanted = np.atleast_1d(np.arange(self.shape[0])[rows])
        stored, back = np.unique(wanted, return_inverse=True)
        return read_rows(self, stored)[back][:, columns]  # type: ignore[arg-type]

    def to_memory(self) -> Any:
        """All rows."""
        return self.read(0, self.shape[0])
