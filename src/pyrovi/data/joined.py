"""Several matrices, one under the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from pyrovi.data.sources import CellSource, is_fork_safe
from pyrovi.errors import DataError


class JoinedSource:
    """Rows of several sources: a :class:`~pyrovi.data.CellSource`.

    Parameters
    ----------
    parts
        The sources, of equal numbers of columns, with their ``dtype``. If one is sparse, all rows
        are read as CSR.
    shuffled
        Whether the rows were put into a random order over all of them.

    Raises
    ------
    DataError
        If the numbers of columns differ.
    """

    def __init__(self, parts: Sequence[CellSource], shuffled: bool) -> None:
        self.parts = list(parts)
        self.shuffled = shuffled
        widths = {tuple(part.shape[1:]) for part in parts}
        if len(widths) > 1:
            raise DataError(
                f"The matrices have the shapes {[tuple(part.shape) for part in parts]}. Expected "
                "the same number of columns: select shared variables first, adata[:, names]."
            )
        self._ends = np.cumsum([part.shape[0] for part in parts])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *widths.pop())
        self.is_sparse = any(part.is_sparse for part in parts)
        self.dtype = np.result_type(*(part.dtype for part in parts))  # type: ignore[attr-defined]

    @property
    def row_bytes(self) -> int:
        """Mean size of a row as it is read."""
        sizes = [part.row_bytes * part.shape[0] for part in self.parts]
        return max(1, sum(sizes) // max(1, self.shape[0]))

    @property
    def chunk_rows(self) -> int:
        """Largest mean number of rows of a chunk."""
        return max(part.chunk_rows for part in self.parts)

    @property
    def fork_safe(self) -> bool:
        """Whether a forked process can read all parts."""
        return all(map(is_fork_safe, self.parts))

    def read(self, start: int, stop: int) -> Any:
        """Rows ``start`` to ``stop - 1``."""
        begins = self._ends - [part.shape[0] for part in self.parts]
        pieces = [
            part.read(max(start, begin) - begin, min(stop, end) - begin).astype(
                self.dtype, copy=False
            )
            for part, begin, end in zip(self.parts, begins, self._ends, strict=True)
            if start < end and stop > begin
        ] or [self.parts[0].read(0, 0).astype(self.dtype, copy=False)]
        if self.is_sparse:
            pieces = [sp.csr_matrix(piece) for piece in pieces]
        if len(pieces) == 1:
            return pieces[0]
        return sp.vstack(pieces, format="csr") if self.is_sparse else np.concatenate(pieces)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.parts, self.shuffled))
