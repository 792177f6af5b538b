"""Compiled loops that gather rows of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyrovi._loops import compiled


@compiled
def dense_rows(
    index: Any, indptr: Any, indices: Any, data: Any, out: Any, start: int, stop: int
) -> None:
    """Write rows of a CSR matrix into a dense one; values at one place are added up."""
    for i in range(start, stop):
        row = out[i]
        row[:] = 0
        for p in range(indptr[index[i]], indptr[index[i] + 1]):
            # unsigned, or the compiler would allow for positions from the end
            row[np.uint64(indices[np.uint64(p)])] += data[np.uint64(p)]
