"""Matrices stored by column that stay in their store while an AnnData holds them."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from anndata.abc import CSCDataset
from numpy.typing import NDArray

from pyrovi.data.anndata_hooks import teach_anndata
from pyrovi.data.damage import check_readable, stamp
from pyrovi.data.sources import closed, reopened
from pyrovi.errors import DataError


class StoredColumns(CSCDataset):
    """A CSC matrix on disk: anndata's own, which can be copied, pickled and put into ``raw``, too.

    It cannot be written to. Its rows cannot be read one by one: of a subset of the AnnData it is in
    memory, as is all of it for training.

    Parameters
    ----------
    dataset
        What :func:`anndata.io.sparse_dataset` gives.

    Raises
    ------
    DataError
        If anndata is of an unknown version.
    """

    format = "csc"

    def __init__(self, dataset: CSCDataset) -> None:
        teach_anndata(StoredColumns)
        self.source: Any = dataset
        self.shape: tuple[int, int] = tuple(dataset.shape)  # type: ignore[assignment]
        self.dtype: np.dtype[Any] = np.dtype(dataset.dtype)
        self._opened = stamp(self.source.group)

    def __getitem__(self, index: Any) -> Any:
        return self._readable[index]

    def select(self, *index: Any) -> Any:
        """Selection of rows and of columns (each a slice, a mask or positions), in memory."""
        return self._readable[index]

    def to_memory(self) -> Any:
        """All of it, as a CSC matrix."""
        return self._readable.to_memory()

    @property
    def _readable(self) -> Any:
        check_readable(self.source.group, self._opened)
        return self.source

    def copy(self) -> Self:
        """The same: it cannot be written to."""
        return self

    def __array__(self, *args: Any, **kwargs: Any) -> NDArray[Any]:
        raise DataError(
            f"A matrix of shape {self.shape}, stored by column (CSC), is wanted as an array in "
            "memory. Read it first: adata.to_memory()."
        )

    def __repr__(self) -> str:
        return f"<StoredColumns of {self.shape[0]} x {self.shape[1]}, CSC {self.dtype}>"

    def __getstate__(self) -> dict[str, Any]:
        return closed(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(reopened(state))
