"""Compiled loops that gather rows of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyrovi._loops import compiled


@compiled
def dense_rows(
    index: Any, indptr: Any, indices: Any, data: Any, unique: bool, out: Any, start: int, stop: int
) -> None:
    """Write rows of a CSR matrix into a dense one.

    Values at one place are added up, unless every place is known to have one (``unique``).
    """
    rows = len(indptr) - 1
    for i in range(start, stop):
        k = index[i] + rows if index[i] < 0 else index[i]
        if not 0 <= k < rows:
            raise IndexError("A position is beyond the last row.")
        row = out[i]
        row[:] = 0
        values = range(indptr[k], indptr[k + 1])
        # places are unsigned, or the compiler would allow for those from the end
        if unique:
            for p in values:
                row[np.uint64(indices[np.uint64(p)])] = data[np.uint64(p)]
        else:
            for p in values:
                row[np.uint64(indices[np.uint64(p)])] += data[np.uint64(p)]
