"""Stores of AnnData, opened: what is small is read, matrices stay on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
from anndata.io import read_elem, sparse_dataset

from pyrovi._lazy import require
from pyrovi.data.sources import ArraySource, CSRSource
from pyrovi.data.stored_columns import StoredColumns
from pyrovi.data.stored_matrix import StoredMatrix
from pyrovi.errors import DataError, PyroviError

_REST = ("obsm", "varm", "obsp", "varp", "uns")


def open_store(path: str | os.PathLike[str]) -> anndata.AnnData:
    """Open an AnnData whose matrices stay on disk.

    ``X``, the layers and ``raw.X`` are read when they are needed; everything else now. That holds
    for subsets, too: ``open_store(path)[cells, genes]`` can be set up and trained on, and
    ``open_store(path).raw.to_adata()`` has the raw matrix as its ``X``.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a ``.zarr`` folder. It stays open as long as the AnnData is in use.

    Warnings
    --------
    Write to another path, never to ``path`` itself: HDF5 refuses that, but of a ``.zarr`` folder
    anndata removes all data before they could be copied. Reading what was removed or written anew
    is an error. A single missing chunk of a zarr array cannot be told: zarr reads it as zeros.

    Returns
    -------
    AnnData
        To be set up and trained on like one in memory; its ``to_memory()`` is one. A matrix is a
        :class:`StoredMatrix`; one stored by column (CSC), whose rows cannot be read one by one, is
        of anndata's kind: a subset of it is read at once.

    Raises
    ------
    DataError
        If there is no such file, its name has another ending, or it is damaged or holds no AnnData.
    MissingExtraError
        If zarr is needed and not installed.
    """
    where = store_path(path)
    root = open_root(where)
    try:
        return opened(root, where)
    except DataError:
        if isinstance(root, h5py.File):
            root.close()  # so that the file can be written again
        raise


def store_path(path: Any) -> Path:
    """Path of a store, as the user gave it.

    Raises
    ------
    DataError
        If it is none.
    """
    if not isinstance(path, str | os.PathLike):
        raise DataError(
            f"The path of a store is {path!r}. Expected that of an .h5ad file or a .zarr folder."
        )
    return Path(path)


def store_suffix(path: Path, *, exists: bool) -> str:
    """Ending of the name of a store that is to be read or written.

    Raises
    ------
    DataError
        If it is unknown, or the store does not exist or should not.
    """
    if path.suffix not in (".h5ad", ".zarr"):
        raise DataError(f"{path} ends in {path.suffix!r}, expected '.h5ad' or '.zarr'")
    if path.exists() != exists:
        problem = "does not exist" if exists else "exists already; remove it or write elsewhere"
        raise DataError(f"{path} {problem}")
    if not exists and not path.resolve().parent.is_dir():
        raise DataError(f"The folder of {path} does not exist; create it first")
    return path.suffix


def open_root(path: Path) -> Any:
    """Root group of a store, for reading.

    Raises
    ------
    DataError
        If there is none.
    """
    if store_suffix(path, exists=True) == ".h5ad":
        opener, kind = (lambda: h5py.File(path, "r")), "HDF5 file"
    else:
        zarr = require("zarr", "zarr")
        opener, kind = (lambda: zarr.open_group(path, mode="r")), "zarr group"
    try:
        return opener()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be opened ({error}). Expected a whole {kind}, as AnnData write it: "
            "copy or write it again."
        ) from error


def opened(root: Any, where: Path, *, whole: bool = True) -> anndata.AnnData:
    """AnnData of a group.

    Parameters
    ----------
    root
        Group of an HDF5 file or a zarr store.
    where
        How to call it in messages.
    whole
        Whether to read ``obsm``, ``varm``, ``obsp``, ``varp``, ``uns`` and ``raw``, too.

    Raises
    ------
    DataError
        If it is not the group of an AnnData, an entry is damaged, or a matrix has not its shape.
    """
    names = set(root)
    if not {"obs", "var"} <= names:
        raise DataError(
            f"{where} has no obs or no var (it has {sorted(names)}). Expected an AnnData: write "
            "one with write_h5ad or write_zarr."
        )
    if hasattr(root["obs"], "dtype"):
        raise DataError(
            f"{where} is in the format of anndata before 0.7. Expected a newer one: write it anew, "
            f"anndata.read_h5ad({str(where)!r}).write_h5ad(...)."
        )
    read = {}
    for name in ("obs", "var", *(_REST if whole else ())):
        if name in names:
            with _reading(name, where):
                read[name] = read_elem(root[name])
    obs, var = read["obs"], read["var"]
    stored = {}
    with _reading("layers", where):
        layers = list(root["layers"].keys()) if "layers" in names else []
    for name in layers:
        with _reading(f"layers[{name!r}]", where):
            stored[f"layers[{name!r}]"] = _matrix(root["layers"][name])
    if "X" in names:
        with _reading("X", where):
            x = _matrix(root["X"])
        if x is not None:
            stored["X"] = x
    for name, matrix in stored.items():
        if tuple(matrix.shape) != (len(obs), len(var)):
            raise DataError(
                f"{where} is damaged: {name} has the shape {tuple(matrix.shape)}, expected "
                f"{len(obs)} rows and {len(var)} columns. Copy or write it again."
            )
    if whole and "raw" in names and hasattr(raw := root["raw"], "keys"):  # not the mark of none
        with _reading("raw", where):
            parts = {name: read_elem(raw[name]) for name in ("var", "varm") if name in raw}
            read["raw"] = {"X": _matrix(raw["X"]), **parts}
    with _reading("the AnnData", where):
        return anndata.AnnData(
            stored.get("X"),
            layers={name: stored[f"layers[{name!r}]"] for name in layers},
            **read,
        )


@contextmanager
def _reading(entry: str, where: Path) -> Iterator[None]:
    """Name what cannot be read: damage can make anndata, HDF5 and zarr raise anything."""
    try:
        yield
    except PyroviError:
        raise
    except Exception as error:
        raise DataError(
            f"{where} is damaged, or written by a newer anndata: {entry} cannot be read "
            f"({type(error).__name__}: {error}). Copy or write it again."
        ) from error


def _matrix(node: Any) -> Any:
    """Matrix on disk, whose rows can be read unless it is stored by column."""
    encoding = node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", ""))
    if encoding in ("csr_matrix", "csr"):
        return StoredMatrix(CSRSource(sparse_dataset(node)))
    if encoding in ("csc_matrix", "csc"):
        return StoredColumns(sparse_dataset(node))
    if hasattr(node, "dtype") and len(node.shape) == 2:
        return StoredMatrix(ArraySource(node))
    return read_elem(node)
