"""Checks that run when data are registered. Each error says how to mend the data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata.abc import CSCDataset
from numpy.typing import NDArray

from pyrovi.data.categories import Category
from pyrovi.data.containers import (
    AnyMatrix,
    is_backed,
    locate,
    nonzero_rows_and_columns,
    preview,
    value_chunks,
)
from pyrovi.errors import DataError

_SAMPLED_BLOCKS = 16
_SAMPLED_BLOCK_SIZE = 32
_RARE = 3


def check_unique_names(names: pd.Index, owner: str, attribute: str) -> None:
    """Names of observations or variables must differ, for results are labelled with them.

    Parameters
    ----------
    names
        ``obs_names`` or ``var_names``.
    owner
        How to call the object that has them, e.g. ``adata``.
    attribute
        ``"obs_names"`` or ``"var_names"``.

    Raises
    ------
    DataError
        If a name occurs twice.
    """
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise DataError(
            f"{owner}.{attribute} has duplicates: {preview(twice)}. Expected unique names: call "
            f"`{owner}.{attribute}_make_unique()`."
        )


def check_paired(mdata: Any) -> None:
    """All modalities of a MuData must hold the same observations in the same order.

    Raises
    ------
    DataError
        Naming the first modality that does not.
    """
    for name, modality in mdata.mod.items():
        if not modality.obs_names.equals(mdata.obs_names):
            missing = len(mdata.obs_names.difference(modality.obs_names))
            problem = f"lacks {missing} of them" if missing else "has them in another order"
            raise DataError(
                f"Modality {name!r} of the MuData has {modality.n_obs} observations, the MuData "
                f"has {mdata.n_obs}; the modality {problem}. Expected the same observations in the "
                "same order in each modality: keep the shared ones with "
                "`muon.pp.intersect_obs(mdata)` or add the missing ones as rows of zeros."
            )


def _bad_values(values: NDArray[Any], counts: bool) -> NDArray[np.bool_] | None:
    """Which values are not finite or, for counts, negative or fractional; None if all are good."""
    kind = values.dtype.kind
    if kind in "bu" or (kind == "i" and not counts):
        return None
    if not counts:
        good = np.isfinite(values)
    elif kind == "i":
        good = values >= 0
    else:  # a comparison with NaN is False
        good = (values >= 0) & (values == np.floor(values)) & (values < np.inf)
    return None if good.all() else ~good


def _expectation(counts: bool, fix: str) -> str:
    if counts:
        return f"Expected counts (finite, non-negative integers): {fix}"
    return (
        "Expected finite numbers: impute the missing ones, leave these rows or columns out, or, of "
        "an outcome, fill them with a possible value and mask them (dist.mask in the story, a "
        "column that says which are seen as another field)"
    )


def check_values(
    matrix: AnyMatrix,
    where: str,
    *,
    counts: bool,
    fix: str,
    row_names: pd.Index,
    column_names: Sequence[Any] | pd.Index,
    allow_empty_rows: bool = True,
) -> NDArray[np.bool_] | None:
    """Every value must be finite and, for counts, a non-negative integer.

    In-memory data are checked completely: sparse matrices through their stored values only. Data
    on disk are checked on a sample of blocks, drawn by a generator of its own.

    Parameters
    ----------
    matrix
        Matrix from :func:`pyrovi.data.containers.as_matrix`, shape (rows, columns).
    where
        How to call the matrix in messages, e.g. ``adata.layers['counts']``.
    counts
        Whether the values are counts.
    fix
        What to do about values that are not counts.
    row_names, column_names
        Names used in messages.
    allow_empty_rows
        Whether rows of zeros only are fine.

    Returns
    -------
    numpy.ndarray or None
        For counts in memory: which columns hold anything but zero, shape (columns,).

    Raises
    ------
    DataError
        Naming the first offending value, its row and its column; or the rows without counts.
    """
    backed = is_backed(matrix)
    columns = None
    for first_row, first_column, block in pieces_to_check(matrix):
        for start, values in value_chunks(block):
            bad = _bad_values(values, counts)
            if bad is None:
                continue
            at = int(np.argmax(bad))
            row, column = locate(block, start + at)
            row, column = row + first_row, column + first_column
            raise DataError(
                f"{where} holds {values[at]!s} in row {row} ({row_names[row]!r}), column {column} "
                f"({column_names[column]!r}). {_expectation(counts, fix)}."
            )
        if not counts:
            continue
        rows, columns = nonzero_rows_and_columns(block)
        whole_rows = block.shape[1] == matrix.shape[1]
        if not allow_empty_rows and whole_rows and not rows.all():
            empty = row_names[np.flatnonzero(~rows) + first_row]
            number = f"at least {len(empty)}" if backed else len(empty)  # not all were read
            shown = preview(empty[:5] if backed else empty)
            raise DataError(
                f"{where} has {number} observations without a single count: {shown}. "
                "Expected at least one count per observation: remove them, e.g. with "
                "`scanpy.pp.filter_cells(adata, min_counts=1)`."
            )
    return None if backed else columns


def holds_counts(matrix: AnyMatrix) -> bool:
    """Whether all values (on disk: those of a sample of blocks) are non-negative integers."""
    return all(
        _bad_values(values, counts=True) is None
        for _, _, block in pieces_to_check(matrix)
        for _, values in value_chunks(block)
    )


def pieces_to_check(matrix: AnyMatrix) -> Iterable[tuple[int, int, AnyMatrix]]:
    """What is looked at: all of a matrix in memory, a sample of blocks of one on disk.

    Each piece is the row and the column that a block starts at, and the block, in memory.
    """
    return _sampled_blocks(matrix) if is_backed(matrix) else [(0, 0, matrix)]


def _sampled_blocks(matrix: AnyMatrix) -> Iterator[tuple[int, int, AnyMatrix]]:
    """Blocks of a matrix on disk, in memory, with the row and the column they start at."""
    from pyrovi._rng import generator  # imports torch

    # Whole rows, except where the storage is by column: there a row would need the whole file.
    by_column = isinstance(matrix, CSCDataset)
    length = matrix.shape[1 if by_column else 0]
    n_blocks = -(-length // _SAMPLED_BLOCK_SIZE)
    chosen = np.arange(n_blocks)
    if n_blocks > _SAMPLED_BLOCKS:
        draws = generator("data checks").choice(n_blocks, _SAMPLED_BLOCKS, replace=False)
        chosen = np.sort(draws)
    for block in chosen:
        start = int(block) * _SAMPLED_BLOCK_SIZE
        piece = slice(start, min(start + _SAMPLED_BLOCK_SIZE, length))
        if by_column:
            yield 0, start, matrix[:, piece]
        else:
            yield start, 0, matrix[piece]


def warn_empty_columns(nonzero: NDArray[np.bool_], names: pd.Index, where: str) -> None:
    """Warn about variables without a single count: they carry no information."""
    if not nonzero.all():
        empty = names[~nonzero]
        warnings.warn(
            f"{where} has {len(empty)} variables without a single count: {preview(empty)}. "
            "They carry no information; remove them, e.g. with "
            "`scanpy.pp.filter_genes(adata, min_cells=1)`.",
            UserWarning,
            stacklevel=2,
        )


def warn_rare_categories(
    categories: Sequence[Category], counts: NDArray[np.int64], where: str
) -> None:
    """Warn, once per column, about categories with fewer than three rows."""
    rare = [c for c, count in zip(categories, counts, strict=True) if count < _RARE]
    if rare:
        warnings.warn(
            f"{where} has categories with fewer than {_RARE} rows: {preview(rare)}. Their "
            "parameters are hardly informed by the data; merge or remove them.",
            UserWarning,
            stacklevel=2,
        )


def warn_reads(matrix: AnyMatrix, where: str) -> None:
    """Warn if chromatin counts look like reads, where a fragment gives two reads, not one.

    The tell-tale is that twos outnumber ones (Martens et al., Nature Methods 21, 2024). A matrix
    on disk is judged by a sample.
    """
    ones = twos = 0
    for _, _, block in pieces_to_check(matrix):
        for _, values in value_chunks(block):
            ones += int(np.count_nonzero(values == 1))
            twos += int(np.count_nonzero(values == 2))
    if twos > ones:
        warnings.warn(
            f"{where} has {twos} values of 2 but only {ones} of 1: these look like counts of "
            "reads. Expected counts of fragments: convert them with (reads + 1) // 2.",
            UserWarning,
            stacklevel=2,
        )


def numeric_column(column: pd.Series, where: str) -> NDArray[Any]:
    """Values of a numeric column, shape (rows,), without copying where pandas allows.

    Raises
    ------
    DataError
        If the column is not numeric, or has missing or infinite values.
    """
    if not (pd.api.types.is_numeric_dtype(column.dtype)) or column.dtype.kind == "c":
        raise DataError(
            f"{where} has the type {column.dtype}. Expected numbers: convert the column with "
            "`.astype(float)`, or register it as a categorical covariate."
        )
    if isinstance(column.dtype, np.dtype):
        values = column.to_numpy()
    else:  # pandas' own nullable numbers
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        rows = np.flatnonzero(~finite)
        raise DataError(
            f"{where} has {len(rows)} missing (NaN) or infinite values, the first for "
            f"{column.index[rows[0]]!r}. Expected finite numbers: impute them or drop these rows; "
            "missing outcomes can be filled with a possible value and masked (dist.mask in the "
            "story, a column that says which are seen as another field)."
        )
    return values
