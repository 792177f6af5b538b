"""TileDB-SOMA experiments as AnnData whose matrix stays in the store."""

from __future__ import annotations

import os
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrovi._lazy import require
from pyrovi.data.stored_matrix import StoredMatrix
from pyrovi.errors import DataError, MissingKeyError

_TILE_VALUES = 100_000
"""Values that TileDB stores together unless told otherwise."""


class SomaSource:
    """Rows of a ``SparseNDArray`` of TileDB-SOMA: a :class:`~pyrovi.data.CellSource`.

    Parameters
    ----------
    uri
        Address of the array.
    shape
        Numbers of observations and of variables.
    """

    is_sparse = True
    shuffled = False
    fork_safe = False  # TileDB reads with threads, which do not survive a fork

    def __init__(self, uri: str, shape: tuple[int, int]) -> None:
        self.uri = uri
        self.shape: tuple[int, ...] = shape
        self._array = require("tiledbsoma", "soma").SparseNDArray.open(uri)
        self.dtype = np.dtype(self._array.schema.field("soma_data").type.to_pandas_dtype())

    @property
    def row_bytes(self) -> int:
        """Mean size of a row: its values and their columns."""
        return max(1, self._array.nnz * (self.dtype.itemsize + 4) // max(1, self.shape[0]))

    @property
    def chunk_rows(self) -> int:
        """Mean number of rows in a tile of TileDB's default capacity."""
        return max(1, _TILE_VALUES * self.shape[0] // max(1, self._array.nnz))

    def read(self, start: int, stop: int) -> Any:
        """Rows ``start`` to ``stop - 1`` as a CSR matrix."""
        shape = (stop - start, self.shape[1])
        if start >= stop:
            return sp.csr_matrix(shape, dtype=self.dtype)
        # SOMA includes both ends of a slice.
        table = self._array.read((slice(start, stop - 1),)).tables().concat()
        rows, columns, values = (
            table[name].to_numpy() for name in ("soma_dim_0", "soma_dim_1", "soma_data")
        )
        return sp.csr_matrix((values, (rows - start, columns)), shape=shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.uri, self.shape))


def open_soma(
    uri: str | os.PathLike[str], measurement: str = "RNA", matrix: str = "data"
) -> anndata.AnnData:
    """Open a TileDB-SOMA experiment whose matrix stays in the store.

    Needs the package ``tiledbsoma`` (``pip install 'pyrovi[soma]'``).

    Parameters
    ----------
    uri
        Address of the experiment: a folder, or one in an object store.
    measurement
        Key of ``ms``.
    matrix
        Key of ``ms[measurement].X``.

    Returns
    -------
    AnnData
        With ``obs``, ``var`` (names from ``obs_id`` and ``var_id`` where there are such columns,
        else join ids) and the matrix as ``X``; to be set up and trained on like one in memory.

    Raises
    ------
    MissingExtraError
        If tiledbsoma is not installed.
    MissingKeyError
        If there is no such measurement or matrix.
    DataError
        If there is no experiment, or join ids are not 0, 1, 2, ... as they are when AnnData are
        written to SOMA.
    """
    address = os.fspath(uri)
    with _experiment(address) as experiment:
        _check_key(address, "measurement", measurement, experiment.ms)
        measured = experiment.ms[measurement]
        _check_key(address, "matrix", matrix, measured.X)
        obs, var = _table(experiment.obs, "obs"), _table(measured.var, "var")
        source = SomaSource(measured.X[matrix].uri, (len(obs), len(var)))
    return anndata.AnnData(StoredMatrix(source), obs=obs, var=var)


def _experiment(uri: str) -> Any:
    soma = require("tiledbsoma", "soma")
    try:
        return soma.Experiment.open(uri)
    except soma.SOMAError as error:
        raise DataError(
            f"{uri!r} is no TileDB-SOMA experiment ({error}). Expected the address of one, as "
            "`tiledbsoma.io.from_anndata` writes it."
        ) from error


def _check_key(uri: str, what: str, key: str, collection: Any) -> None:
    if key not in collection:
        raise MissingKeyError(f"{uri} has no {what} {key!r}; it has {list(collection.keys())}")


def _table(stored: Any, name: str) -> pd.DataFrame:
    table: pd.DataFrame = stored.read().concat().to_pandas().sort_values("soma_joinid")
    if not np.array_equal(table["soma_joinid"], np.arange(len(table))):
        raise DataError(
            f"The join ids of {name} are not 0 to {len(table) - 1}: rows were removed. Write the "
            "experiment anew, e.g. with `tiledbsoma.io.from_anndata`."
        )
    key = f"{name}_id" if f"{name}_id" in table else "soma_joinid"
    names = pd.Index(table[key].astype(str), name=None)
    return table.drop(columns=list({key, "soma_joinid"})).set_index(names)
