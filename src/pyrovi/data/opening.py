"""Stores of AnnData, opened: what is small is read, matrices stay on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anndata
import h5py
from anndata.io import read_elem, sparse_dataset

from pyrovi._lazy import require
from pyrovi.data.sources import ArraySource, CSRSource
from pyrovi.data.stored_matrix import StoredMatrix
from pyrovi.errors import DataError

_REST = ("obsm", "varm", "obsp", "varp", "uns")


def open_store(path: str | os.PathLike[str]) -> anndata.AnnData:
    """Open an AnnData whose matrices stay on disk.

    ``X``, the layers and ``raw.X`` are read when they are needed; everything else now. That holds
    for subsets, too: ``open_store(path)[cells, genes]`` can be set up and trained on, and
    ``open_store(path).raw.to_adata()`` has the raw matrix as its ``X``.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a ``.zarr`` folder. It stays open as long as the AnnData is in use;
        write to another one.

    Returns
    -------
    AnnData
        To be set up and trained on like one in memory; its ``to_memory()`` is one. A matrix is a
        :class:`StoredMatrix`; one stored by column (CSC), whose rows cannot be read one by one, is
        anndata's own.

    Raises
    ------
    DataError
        If there is no such file, its name has another ending, or it is damaged or holds no AnnData.
    MissingExtraError
        If zarr is needed and not installed.
    """
    where = Path(path)
    return opened(open_root(where), where)


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
        If it is not the group of an AnnData, or a matrix has not the shape of it.
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
    obs, var = read_elem(root["obs"]), read_elem(root["var"])
    layers = root["layers"] if "layers" in names else {}
    stored = {f"layers[{name!r}]": _matrix(layers[name]) for name in layers}
    if "X" in names and (x := _matrix(root["X"])) is not None:
        stored["X"] = x
    for name, matrix in stored.items():
        if tuple(matrix.shape[:2]) != (len(obs), len(var)):
            raise DataError(
                f"{where} is damaged: {name} has the shape {tuple(matrix.shape)}, expected "
                f"{len(obs)} rows and {len(var)} columns. Copy or write it again."
            )
    rest = {name: read_elem(root[name]) for name in _REST if name in names} if whole else {}
    if whole and "raw" in names and hasattr(raw := root["raw"], "keys"):  # not the mark of none
        read = {name: read_elem(raw[name]) for name in ("var", "varm") if name in raw}
        rest["raw"] = {"X": _matrix(raw["X"]), **read}
    return anndata.AnnData(
        stored.get("X"),
        obs=obs,
        var=var,
        layers={name: stored[f"layers[{name!r}]"] for name in layers},
        **rest,
    )


def _matrix(node: Any) -> Any:
    """Matrix on disk, whose rows can be read unless it is stored by column."""
    encoding = node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", ""))
    if encoding in ("csr_matrix", "csr"):
        return StoredMatrix(CSRSource(sparse_dataset(node)))
    if encoding in ("csc_matrix", "csc"):
        return sparse_dataset(node)
    if hasattr(node, "dtype") and len(node.shape) == 2:
        return StoredMatrix(ArraySource(node))
    return read_elem(node)
