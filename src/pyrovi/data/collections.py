"""Collections of annbatch: shuffled AnnData stores, one after the other, as one AnnData."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import scipy.sparse as sp

from pyrovi._lazy import require
from pyrovi.data.sources import ArraySource, CSRSource
from pyrovi.data.store import common_var, joined_obs, source_of
from pyrovi.data.stored_matrix import StoredMatrix
from pyrovi.errors import DataError

_ENCODING = "annbatch-preshuffled"
_PART = re.compile(r"dataset_(\d+)(\.h5ad)?")


class JoinedMatrix(StoredMatrix):
    """Rows of several CSR matrices on disk: a :class:`~pyrovi.data.CellSource`.

    Parameters
    ----------
    parts
        The matrices, of equal numbers of columns.
    shuffled
        Whether the rows were put into a random order over all of them.
    """

    def __init__(self, parts: Sequence[CSRSource], shuffled: bool) -> None:
        self.parts = list(parts)
        self.shuffled = shuffled
        self._ends = np.cumsum([part.shape[0] for part in parts])
        self.shape = (int(self._ends[-1]), int(parts[0].shape[1]))
        self.dtype = np.result_type(*(part.source.dtype for part in parts))

    @property
    def row_bytes(self) -> int:
        """Mean size of a row: its values and their columns."""
        sizes = [part.row_bytes * part.shape[0] for part in self.parts]
        return max(1, sum(sizes) // max(1, self.shape[0]))

    @property
    def chunk_rows(self) -> int:
        """Largest mean number of rows of a chunk."""
        return max(part.chunk_rows for part in self.parts)

    def read(self, start: int, stop: int) -> Any:
        """Rows ``start`` to ``stop - 1`` as a CSR matrix."""
        begins = self._ends - [part.shape[0] for part in self.parts]
        pieces = [
            part.read(max(start, begin) - begin, min(stop, end) - begin)
            for part, begin, end in zip(self.parts, begins, self._ends, strict=True)
            if start < end and stop > begin
        ]
        if not pieces:
            return sp.csr_matrix((0, self.shape[1]), dtype=self.dtype)
        return pieces[0] if len(pieces) == 1 else sp.vstack(pieces, format="csr")

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.parts, self.shuffled))


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
    names = [where / f"dataset_{number}" for number in groups]
    roots = list(groups.values())
    sources = [source_of(root, name, None) for root, name in zip(roots, names, strict=True)]
    var = common_var(roots, names)
    parts = [_csr(source, name) for source, name in zip(sources, names, strict=True)]
    # files say nothing about their order
    joined = JoinedMatrix(parts, shuffled=not isinstance(roots[0], h5py.File))
    return anndata.AnnData(joined, obs=joined_obs(roots, names), var=var)


def _csr(source: ArraySource | CSRSource, name: Path) -> CSRSource:
    if not isinstance(source, CSRSource):
        raise DataError(f"The matrix of {name} is dense; expected CSR. Write the collection anew.")
    return source


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
