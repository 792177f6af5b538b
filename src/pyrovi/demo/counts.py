"""Integer counts from log-normalised values."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from pyrovi.errors import DataError

MAX_RESIDUAL = 0.15
"""Largest distance from an integer that rounding may remove."""


def recover_counts(values: Any) -> sp.csr_matrix:
    """Undo ``log1p(counts / total * scale)`` without knowing the totals.

    In each cell all non-zero values are integer multiples of the value of one count. Where some
    gene of the cell has a single count, which is so in practically all cells of sparse data, that
    value is the smallest one, and dividing by it gives the counts.

    Parameters
    ----------
    values
        Log-normalised values, cells in rows; dense or sparse.

    Returns
    -------
    scipy.sparse.csr_matrix
        Counts (float32, integer-valued).

    Raises
    ------
    DataError
        If a value is negative or not finite, a cell is empty, or a quotient is further than 0.15
        from an integer: then the values are no log-normalised counts, or were scaled since.
    """
    matrix = sp.csr_matrix(values, dtype=np.float64, copy=True)
    matrix.eliminate_zeros()
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        raise DataError(
            "The values are negative or not finite, so they are not log-normalised counts. Give "
            "raw counts, or values that were not scaled to unit variance."
        )
    empty = np.flatnonzero(np.diff(matrix.indptr) == 0)
    if len(empty):
        raise DataError(
            f"{len(empty)} cell(s) have no non-zero value, first row {empty[0]}: there is nothing "
            "to recover. Remove them with sc.pp.filter_cells(adata, min_counts=1)."
        )
    linear = np.expm1(matrix.data)
    smallest = np.minimum.reduceat(linear, matrix.indptr[:-1])
    quotient = linear / np.repeat(smallest, np.diff(matrix.indptr))
    counts = np.round(quotient)
    residual = np.abs(quotient - counts)
    worst = int(residual.argmax())
    if residual[worst] >= MAX_RESIDUAL:
        row = int(np.searchsorted(matrix.indptr, worst, side="right")) - 1
        raise DataError(
            f"The counts cannot be recovered: in row {row}, column {matrix.indices[worst]}, the "
            f"value is {quotient[worst]:.3f} times the smallest of its cell, which is "
            f"{residual[worst]:.3f} from an integer; at most {MAX_RESIDUAL} was expected. The "
            "values are not log1p(counts / total * scale); give raw counts instead."
        )
    matrix.data = counts
    return matrix.astype(np.float32)
