"""Preparing the data of a query for a reference model: its variables, in its order."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData, concat
from scipy import sparse

from pyrovi.data.checks import check_unique_names
from pyrovi.data.containers import is_backed, preview
from pyrovi.data.registry import registry_var_names
from pyrovi.errors import DataError, ModelError
from pyrovi.model.registry_access import load_registry

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

ENOUGH_OVERLAP = 0.8
"""Share of the reference's variables below which a query is doubtful."""


def prepare_query_anndata(
    adata: AnnData,
    reference_model: str | Path | BaseModelClass,
    return_reference_var_names: bool = False,
    inplace: bool = True,
) -> AnnData | pd.Index | None:
    """Give data the variables of a reference model, in its order.

    Variables that the reference does not know are left out; those the data lack are added with
    zeros in ``X`` and every layer, and missing values in ``var`` and ``varm``.

    Parameters
    ----------
    adata
        The data.
    reference_model
        The reference, or the folder it was saved to.
    return_reference_var_names
        Only return the names of the reference's variables.
    inplace
        Change ``adata``. If not, it stays as it is and a new AnnData is returned.

    Returns
    -------
    None, AnnData or pandas.Index
        The new AnnData with ``inplace=False``.

    Raises
    ------
    DataError
        If no variable is shared, or names are not unique.

    Warns
    -----
    UserWarning
        If less than 80 % of the reference's variables are in the data.
    """
    names = registry_var_names(registry_of(reference_model))
    if return_reference_var_names:
        return names
    check_unique_names(adata.var_names, "adata", "var_names")
    missing = names[~names.isin(adata.var_names)]
    found = len(names) - len(missing)
    if found == 0:
        raise DataError(
            f"adata.var_names ({preview(adata.var_names)}) share no name with the reference "
            f"({preview(names)}). Expected the same kind of names: convert them, e.g. from gene "
            "symbols to the identifiers of the reference."
        )
    if found < ENOUGH_OVERLAP * len(names):
        warnings.warn(
            f"Only {found} of the {len(names)} variables of the reference "
            f"({100 * found / len(names):.0f} %) are in adata.var_names; missing: "
            f"{preview(missing)}. Zeros in their place may distort the results.",
            UserWarning,
            stacklevel=2,
        )
    prepared = _with_variables(adata, names, missing)
    if not inplace:
        return prepared
    if adata.isbacked:
        raise DataError(
            "The data are backed by a file, which is not changed. Expected data in memory: take "
            "`adata.to_memory()`, or pass inplace=False."
        )
    adata._init_as_actual(prepared)
    return None


def registry_of(reference_model: str | Path | BaseModelClass) -> dict[str, Any]:
    """Registry of a model, or of one that was saved.

    Raises
    ------
    ModelError
        If it is neither a model nor a folder.
    """
    if isinstance(reference_model, str | Path):
        return load_registry(reference_model)
    registry: dict[str, Any] | None = getattr(reference_model, "registry", None)
    if not isinstance(registry, dict):
        raise ModelError(
            f"reference_model is a {type(reference_model).__name__}. Expected a model, or the "
            "folder of a saved one."
        )
    return registry


def _with_variables(adata: AnnData, names: pd.Index, missing: pd.Index) -> AnnData:
    if adata.isbacked:
        adata = adata.to_memory()
    if len(missing) == 0:
        return adata[:, names].copy()
    if any(map(is_backed, (adata.X, *adata.layers.values()))):
        adata = adata.to_memory()  # columns cannot be added to what stays on disk
    padding = AnnData(
        _zeros_like(adata.X, len(missing)),
        obs=pd.DataFrame(index=adata.obs_names),
        var=pd.DataFrame(index=missing),
        layers={key: _zeros_like(layer, len(missing)) for key, layer in adata.layers.items()},
        shape=None if adata.X is not None else (adata.n_obs, len(missing)),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*`.raw`.*")  # it is put back below
        both = concat(
            [adata, padding],
            axis="var",
            join="outer",
            merge="first",
            uns_merge="first",
            pairwise=True,
        )
    prepared = both[:, names].copy()
    for column, values in adata.var.items():
        if values.dtype == bool:  # with missing values: a type that can be written to files
            prepared.var[column] = values.astype("boolean").reindex(names)
    if adata.raw is not None:
        prepared.raw = adata.raw.to_adata()
    return prepared


def _zeros_like(matrix: Any, n_columns: int) -> Any:
    if matrix is None:
        return None
    shape = (matrix.shape[0], n_columns)
    if isinstance(matrix, sparse.sparray):
        return sparse.csr_array(shape, dtype=matrix.dtype)
    if sparse.issparse(matrix):
        return sparse.csr_matrix(shape, dtype=matrix.dtype)
    return np.zeros(shape, dtype=matrix.dtype)
