"""Matrices as AnnData may hold them: dense, sparse (matrix or array), data frame, or on disk.

Everything here reads; nothing converts a container unless its name says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata.abc import CSCDataset, CSRDataset
from numpy.typing import NDArray
from scipy import sparse

from pyrovi.errors import DataError

AnyMatrix: TypeAlias = Any
"""``numpy.ndarray``, SciPy CSR/CSC matrix or array, ``h5py.Dataset``, zarr array, or an AnnData
sparse dataset on disk."""

_CHUNK = 1 << 20
"""Stored values looked at in one go: small enough to stay in cache, large enough to vectorise."""


def is_sparse(matrix: AnyMatrix) -> bool:
    """Whether ``matrix`` is an in-memory SciPy sparse matrix or sparse array."""
    return bool(sparse.issparse(matrix))


def is_backed(matrix: AnyMatrix) -> bool:
    """Whether ``matrix`` lives on disk: dense HDF5 or zarr, or an AnnData sparse dataset."""
    if isinstance(matrix, (CSRDataset, CSCDataset)):
        return True
    # By module name, so that neither h5py nor zarr has to be imported to answer.
    return type(matrix).__module__.split(".")[0] in ("h5py", "zarr")


def is_stored_sparse(matrix: AnyMatrix) -> bool:
    """Whether ``matrix`` lives on disk and gives sparse rows or columns."""
    return isinstance(matrix, (CSRDataset, CSCDataset)) and getattr(matrix, "is_sparse", True)


def as_matrix(container: Any, where: str) -> AnyMatrix:
    """Two-dimensional matrix of a container, without copying where NumPy and pandas allow.

    Parameters
    ----------
    container
        What AnnData returned. Data frames become arrays; everything else is returned as it is.
    where
        How to call the container in messages, e.g. ``adata.obsm['X_pca']``.

    Raises
    ------
    DataError
        If the container is not a numeric two-dimensional matrix that pyrovi can read.
    """
    if isinstance(container, pd.DataFrame):
        wrong = [
            str(name)
            for name, dtype in zip(container.columns, container.dtypes, strict=True)
            if not (pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype))
        ]
        if wrong:
            raise DataError(
                f"{where} has columns that are not numeric: {preview(wrong)}. "
                "Expected numbers only: drop these columns or convert them with `.astype(float)`."
            )
        container = container.to_numpy()
        if container.dtype == object:  # pandas' own nullable numbers
            container = container.astype(np.float64)
    if is_sparse(container):
        if container.format not in ("csr", "csc"):
            raise DataError(
                f"{where} is a sparse container in {container.format.upper()} format. Expected "
                "CSR or CSC: convert it with `.tocsr()`."
            )
    elif not (isinstance(container, np.ndarray) or is_backed(container)):
        raise DataError(
            f"{where} is a {type(container).__module__}.{type(container).__qualname__}. Expected "
            "a NumPy array, a SciPy CSR or CSC matrix or array, a data frame, or a matrix on disk "
            "(HDF5 or zarr): convert it with `numpy.asarray` or `scipy.sparse.csr_array`."
        )
    if len(container.shape) != 2:
        raise DataError(
            f"{where} has {len(container.shape)} dimensions, shape {tuple(container.shape)}. "
            "Expected two (rows and columns): reshape it."
        )
    if np.dtype(container.dtype).kind not in "fiub":
        raise DataError(
            f"{where} has values of type {container.dtype}. Expected real numbers: convert it "
            "with `.astype(numpy.float32)`."
        )
    return container


def value_chunks(matrix: AnyMatrix) -> Iterator[tuple[int, NDArray[Any]]]:
    """Stored values of an in-memory matrix in pieces, with the storage position of the first.

    Dense matrices are walked row by row; sparse ones in the order of ``.data``, so that implicit
    zeros are never looked at. :func:`locate` turns a storage position into a row and a column.
    """
    if is_sparse(matrix):
        stored = int(matrix.indptr[-1])
        for start in range(0, stored, _CHUNK):
            yield start, matrix.data[start : min(start + _CHUNK, stored)]
        return
    n_rows, n_columns = matrix.shape
    step = max(1, _CHUNK // max(1, n_columns))
    for start in range(0, n_rows, step):
        yield start * n_columns, np.asarray(matrix[start : start + step]).ravel()


def locate(matrix: AnyMatrix, position: int) -> tuple[int, int]:
    """Row and column of a storage position given by :func:`value_chunks`."""
    if not is_sparse(matrix):
        row, column = divmod(position, matrix.shape[1])
        return row, column
    major = int(np.searchsorted(matrix.indptr, position, side="right")) - 1
    minor = int(matrix.indices[position])
    return (major, minor) if matrix.format == "csr" else (minor, major)


def nonzero_rows_and_columns(matrix: AnyMatrix) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows and which columns of an in-memory matrix hold anything but zero."""
    rows = np.zeros(matrix.shape[0], dtype=bool)
    columns = np.zeros(matrix.shape[1], dtype=bool)
    if is_sparse(matrix):
        major, minor = (rows, columns) if matrix.format == "csr" else (columns, rows)
        lengths = np.diff(matrix.indptr)
        major[:] = lengths > 0
        for start, values in value_chunks(matrix):
            indices = matrix.indices[start : start + len(values)]
            minor[indices if values.all() else indices[values != 0]] = True
        stored = matrix.data[: matrix.indptr[-1]]
        if not stored.all():  # explicit zeros: count what is left of each row (or column)
            filled = np.repeat(np.arange(len(lengths)), lengths)[stored != 0]
            major[:] = np.bincount(filled, minlength=len(lengths)) > 0
        return rows, columns
    step = max(1, _CHUNK // max(1, matrix.shape[1]))
    for start in range(0, matrix.shape[0], step):
        block = np.asarray(matrix[start : start + step])
        rows[start : start + step] = block.any(axis=1)
        columns |= block.any(axis=0)
    return rows, columns


def nonzero_by_group(
    matrix: AnyMatrix, groups: NDArray[np.int64], n_groups: int
) -> NDArray[np.bool_]:
    """Which columns hold anything but zero in which group of rows, shape (n_groups, columns).

    Parameters
    ----------
    matrix
        In memory or on disk, shape (rows, columns). A matrix on disk is read in blocks of rows.
    groups
        Group of each row, shape (rows,).
    n_groups
        Number of groups.
    """
    found = np.zeros((n_groups, matrix.shape[1]), dtype=bool)
    if isinstance(matrix, CSCDataset):  # stored by column: row blocks would read all of it each
        matrix = matrix.to_memory()
    if is_sparse(matrix):
        major = np.repeat(np.arange(len(matrix.indptr) - 1), np.diff(matrix.indptr))
        stored = slice(0, int(matrix.indptr[-1]))
        rows, columns = major, matrix.indices[stored]
        if matrix.format == "csc":
            rows, columns = columns, rows
        nonzero = matrix.data[stored] != 0
        found[groups[rows[nonzero]], columns[nonzero]] = True
        return found
    step = max(1, 16 * _CHUNK // max(1, matrix.shape[1]))
    for start in range(0, matrix.shape[0], step):
        block, of_rows = matrix[start : start + step], groups[start : start + step]
        if is_sparse(block):
            found |= nonzero_by_group(block, of_rows, n_groups)
            continue
        for group in np.unique(of_rows):
            found[group] |= np.asarray(block)[of_rows == group].any(axis=0)
    return found


def row_sums(matrix: AnyMatrix) -> NDArray[np.float64]:
    """Sum of each row, shape (rows,), in double precision; a matrix on disk is read in blocks."""
    if is_sparse(matrix) or isinstance(matrix, np.ndarray):
        return np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    if isinstance(matrix, CSCDataset):  # stored by column: row blocks would read all of it each
        total = np.zeros(matrix.shape[0])
        step = max(1, 16 * _CHUNK // max(1, matrix.shape[0]))
        for start in range(0, matrix.shape[1], step):
            total += row_sums(matrix[:, start : start + step])
        return total
    step = max(1, 16 * _CHUNK // max(1, matrix.shape[1]))
    parts = [row_sums(matrix[i : i + step]) for i in range(0, matrix.shape[0], step)]
    return np.concatenate(parts) if parts else np.zeros(0)


def select_columns(matrix: AnyMatrix, positions: NDArray[np.int64]) -> AnyMatrix:
    """Some columns of a matrix, in the order of ``positions``, shape (rows, len(positions)).

    Of a matrix on disk they are read into memory, in blocks of rows where it is stored by row; a
    :class:`~pyrovi.data.StoredMatrix` stays in its store.
    """
    if hasattr(matrix, "select"):
        return matrix.select(columns=positions)
    if not is_backed(matrix):
        return matrix[:, positions]
    if isinstance(matrix, CSCDataset):  # stored by column: row blocks would read all of it each
        order = np.argsort(positions)
        return matrix[:, positions[order]][:, np.argsort(order)]
    step = max(1, 16 * _CHUNK // max(1, matrix.shape[1]))
    parts = [matrix[i : i + step][:, positions] for i in range(0, matrix.shape[0], step)]
    return sparse.vstack(parts, format="csr") if is_sparse(parts[0]) else np.concatenate(parts)


def preview(names: Any, limit: int = 5) -> str:
    """First few of many names for a message, e.g. ``'a', 'b', ... (12 in all)``."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"
