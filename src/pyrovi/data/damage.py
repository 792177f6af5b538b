"""What tells that a store is damaged, or not the one that was opened any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from pyrovi.errors import DataError

Stamp: TypeAlias = tuple[Path, int] | None
"""File that describes a node of a zarr folder, and when it was written; ``None`` of others."""

_METADATA = ("zarr.json", ".zarray", ".zgroup")


def stamp(node: Any) -> Stamp:
    """Stamp of an array or a group, to be kept from its opening on."""
    root = getattr(getattr(node, "store", None), "root", None)  # zarr's stores in local folders
    if root is None:
        return None
    files = [file for name in _METADATA if (file := Path(root, node.path, name)).is_file()]
    return (files[0], files[0].stat().st_mtime_ns) if files else None


def check_readable(node: Any, opened: Stamp) -> None:
    """Refuse to read what is closed or, in a zarr folder, was removed or written anew.

    Zarr reads chunks that do not exist as zeros: without this, a store that is overwritten would
    lose its data without an error.

    Parameters
    ----------
    node
        Array or group.
    opened
        Its stamp when it was opened.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    if isinstance(node, h5py.Dataset | h5py.Group) and not node:
        raise DataError(
            "A matrix that stays on disk is wanted, but its file is closed. Expected it to stay "
            "open as long as the AnnData is in use: open it again, pyrovi.data.open_store(path)."
        )
    if opened is None:
        return
    file, written = opened
    try:
        if file.stat().st_mtime_ns == written:
            return
        problem = "was written anew"
    except FileNotFoundError:
        problem = "was removed"
    raise DataError(
        f"{file.parent} {problem} after it was opened: what it held cannot be read any more. "
        "Expected a store to stay as it is while it is in use: write to another path, and open it "
        "again, pyrovi.data.open_store(path)."
    )


def place(node: Any) -> str:
    """How to call an array or a group on disk in messages."""
    if isinstance(node, h5py.Dataset | h5py.Group):
        return f"{node.file.filename}{node.name}"
    return str(node.store_path)


def check_csr(matrix: Any) -> None:
    """Refuse a matrix that points outside of itself: compiled loops would follow it anywhere.

    Raises
    ------
    DataError
        If it does.
    """
    name, n_values = "A CSR matrix", min(len(matrix.indices), len(matrix.data))
    check_pointers(matrix.indptr, matrix.shape, n_values, name)
    check_columns(matrix.indices, matrix.shape[1], name)


def check_pointers(
    indptr: NDArray[Any], shape: tuple[int, ...], n_values: int, name: str = "A CSR matrix"
) -> None:
    """Refuse row pointers that are not those of a matrix.

    Parameters
    ----------
    indptr
        Where the rows begin, and where the last one ends.
    shape
        Shape of the matrix.
    n_values
        Number of stored values.
    name
        How to call the matrix.

    Raises
    ------
    DataError
        If they are not.
    """
    sound = len(indptr) == shape[0] + 1 and indptr[0] == 0
    # there may be more values than the rows hold, but not values and no row that holds any: that
    # is what zarr reads if the chunks are missing
    sound = sound and min(1, n_values) <= indptr[-1] <= n_values
    if not sound or (np.diff(indptr) < 0).any():
        raise DataError(
            f"{name} of shape {tuple(shape)} with {n_values} values is damaged: indptr must begin "
            "at 0, never fall and end at the number of values. Read or build it anew."
        )


def check_columns(indices: NDArray[Any], n_columns: int, name: str = "A CSR matrix") -> None:
    """Refuse values of columns that a matrix does not have.

    Parameters
    ----------
    indices
        Columns of stored values.
    n_columns
        Number of columns.
    name
        How to call the matrix.

    Raises
    ------
    DataError
        If there are any.
    """
    if len(indices) and not 0 <= indices.min() <= indices.max() < n_columns:
        raise DataError(
            f"{name} with {n_columns} columns is damaged: its indices reach from "
            f"{indices.min()} to {indices.max()}. Read or build it anew."
        )
