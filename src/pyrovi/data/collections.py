"""Collections of annbatch: shuffled AnnData stores, one after the other, as one AnnData."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import anndata
import h5py

from pyrovi._lazy import require
from pyrovi.data.joined import JoinedSource
from pyrovi.data.opening import opened
from pyrovi.data.store import common_var, joined_obs, matrix_of
from pyrovi.data.stored_matrix import StoredMatrix
from pyrovi.errors import DataError

_ENCODING = "annbatch-preshuffled"
_PART = re.compile(r"dataset_(\d+)(\.h5ad)?")


def open_annbatch(path: str | os.PathLike[str]) -> anndata.AnnData:
    """Open a collection that annbatch has written, whose matrix stays on disk.

    A collection holds shuffled AnnData ``dataset_0``, ``dataset_1``, ... with the same variables,
    as groups of a zarr store or as ``.h5ad`` files of a folder. annbatch itself is not needed.

    Parameters
    ----------
    path
        The store or folder.

    Returns
    -------
    AnnData
        With all their observations as ``obs`` and ``X``, and the ``var`` of the first; to be set up
        and trained on like one in memory.

    Raises
    ------
    DataError
        If it is no such collection, if variables differ, names of observations repeat, or a matrix
        is not CSR.
    MissingExtraError
        If zarr is needed and not installed.
    """
    where = Path(path)
    if not where.is_dir():
        raise DataError(f"There is no folder {str(where)!r}; a collection of annbatch is one.")
    groups = _groups(where)
    if list(groups) != list(range(len(groups))):
        raise DataError(
            f"{str(where)!r} has the datasets {list(groups)}; expected all from 0 on: parts are "
            "missing."
        )
    names = [str(where / f"dataset_{number}") for number in groups]
    roots = list(groups.values())
    cells = [opened(root, Path(name), whole=False) for root, name in zip(roots, names, strict=True)]
    matrices = [matrix_of(adata, name, None) for adata, name in zip(cells, names, strict=True)]
    for matrix, name in zip(matrices, names, strict=True):
        if not matrix.is_sparse:
            raise DataError(
                f"The matrix of {name} is dense; expected CSR. Write the collection anew."
            )
    var = common_var(cells, names)
    # files say nothing about their order
    joined = JoinedSource(matrices, shuffled=not isinstance(roots[0], h5py.File))
    return anndata.AnnData(StoredMatrix(joined), obs=joined_obs(cells, names), var=var)


def _groups(where: Path) -> dict[int, Any]:
    """Number -> AnnData of a collection, in order."""
    found = [(m, f) for f in where.iterdir() if (m := _PART.fullmatch(f.name))]
    files = {int(match[1]): file for match, file in found if match[2]}
    if files:
        return {number: h5py.File(files[number], "r") for number in sorted(files)}
    zarr = require("zarr", "zarr")
    try:
        root = zarr.open_group(where, mode="r")
    except FileNotFoundError as error:
        raise DataError(
            f"{str(where)!r} is neither a zarr store nor a folder of files dataset_0.h5ad, ..."
        ) from error
    numbers = sorted(int(m[1]) for name in root if (m := _PART.fullmatch(name)))
    if root.attrs.get("encoding-type") != _ENCODING or not numbers:
        raise DataError(
            f"{str(where)!r} is not a collection of annbatch (encoding-type "
            f"{root.attrs.get('encoding-type')!r}, expected {_ENCODING!r}). Open a single AnnData "
            "with pyrovi.data.open_store."
        )
    return {number: root[f"dataset_{number}"] for number in numbers}
