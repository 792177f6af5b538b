"""DataFrames and dicts of arrays as annotated data: everything else works on AnnData and MuData."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrovi.data.containers import preview
from pyrovi.data.sources import ArraySource, CellSource, disk_source
from pyrovi.data.stored_matrix import StoredMatrix
from pyrovi.errors import DataError


def is_plain(data: Any) -> bool:
    """Whether data are a DataFrame or a mapping of arrays."""
    return isinstance(data, (pd.DataFrame, Mapping))


def as_annotated(data: Any) -> Any:
    """AnnData of a DataFrame or of a dict of arrays; AnnData and MuData are returned as they are.

    Columns and vectors become columns of ``obs``, arrays of more axes entries of ``obsm``. Rows are
    observations, named by the index of the frame. An empty dict, for a story that closes over its
    data, is one observation without any field.

    Parameters
    ----------
    data
        AnnData, MuData, DataFrame or dict of arrays: anything that NumPy can read, SciPy sparse
        matrices, and sources of rows (:class:`~pyrovi.data.CellSource`, HDF5 and zarr arrays of two
        axes or more), which are not read.

    Raises
    ------
    DataError
        If the data are of another type, or if the arrays have different numbers of rows, or hold
        something that is neither a number nor a category.
    """
    if isinstance(data, pd.DataFrame):
        obs = data.copy(deep=False)
        obs.index = obs.index.astype(str)
        obs.columns = obs.columns.astype(str)
        return anndata.AnnData(obs=obs)
    if isinstance(data, Mapping):
        return _of_arrays({str(name): _as_array(name, value) for name, value in data.items()})
    if not hasattr(data, "obs"):
        hint = ""
        if hasattr(data, "shape"):
            hint = " Name the array after the argument of the story: {'X': array}."
        elif isinstance(data, str | os.PathLike):
            hint = " Read the file first: anndata.read_h5ad(path), pandas.read_csv(path)."
        raise DataError(
            f"The data are a {type(data).__name__}. Expected an AnnData, a MuData, a DataFrame, a "
            "dict of arrays, or {} for a story that closes over its data." + hint
        )
    return data


def _as_array(name: Any, value: Any) -> Any:
    if isinstance(value, pd.Series | pd.Categorical):
        return pd.Series(value).reset_index(drop=True)
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array: Any = _as_stored(value)
    if array is None:
        array = value.tocsr() if sp.issparse(value) else np.asarray(value)
    if len(array.shape) == 0 and array.dtype == object:
        members = [member for member in vars(CellSource) if not member.startswith("_")]
        lacking = [member for member in members if not hasattr(value, member)]
        told = f" (it lacks {preview(lacking, 9)})" if "read" not in lacking else ""
        raise DataError(
            f"data[{name!r}] is a {type(value).__name__}. Expected an array, a SciPy sparse matrix "
            f"or a pyrovi.data.CellSource{told}."
        )
    if len(array.shape) == 0:
        raise DataError(
            f"data[{name!r}] is the single value {array.item()!r}. Expected an array with one row "
            "per observation: give constants to the story itself, as defaults of its keyword-only "
            "arguments or with functools.partial."
        )
    if array.dtype.kind not in "biufUSO":
        raise DataError(
            f"data[{name!r}] is of dtype {array.dtype}. Expected numbers, or text for categories."
        )
    return array


def _as_stored(value: Any) -> StoredMatrix | None:
    """Rows that stay where they are; ``None`` of what is, or will be, in memory."""
    if isinstance(value, StoredMatrix):
        return value
    source = disk_source(value)
    if source is None or (isinstance(source, ArraySource) and len(value.shape) < 2):
        return None
    return StoredMatrix(source)


def _of_arrays(arrays: dict[str, Any]) -> anndata.AnnData:
    lengths = {name: value.shape[0] for name, value in arrays.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise DataError(
            f"The arrays have different numbers of rows ({found}). Expected one row per "
            "observation in each: what does not belong to the observations belongs to the story, "
            "which can close over it."
        )
    n_obs = next(iter(lengths.values()), 1)
    index = pd.RangeIndex(n_obs).astype(str)
    columns = {n: v for n, v in arrays.items() if len(v.shape) == 1}
    obs = pd.DataFrame(
        {n: np.asarray(v) if isinstance(v, np.ndarray) else v.array for n, v in columns.items()},
        index=index,
    )
    blocks = {n: v for n, v in arrays.items() if len(v.shape) > 1}
    return anndata.AnnData(obs=obs, obsm=blocks)
