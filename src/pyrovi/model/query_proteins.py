"""Preparing a query for TOTALVI: its genes and its proteins, in the order of the reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data.checks import check_unique_names
from pyrovi.data.containers import preview
from pyrovi.errors import DataError
from pyrovi.model import query_data

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


def prepare_query_anndata(
    adata: AnnData,
    reference_model: str | Path | BaseModelClass,
    return_reference_var_names: bool = False,
    inplace: bool = True,
) -> AnnData | pd.Index | None:
    """Give data the genes and proteins of a reference model, in its order.

    Genes are treated as in :meth:`SCVI.prepare_query_anndata`. Proteins that the reference does not
    know are left out, and those the data lack are added with zeros, which in a batch of the query's
    own means that they were not measured: the model imputes them. Without any proteins, the
    whole matrix is added.

    Parameters
    ----------
    adata
        The data.
    reference_model
        The reference, set up with :meth:`TOTALVI.setup_anndata`, or the folder it was saved to.
    return_reference_var_names
        Only return the names of the reference's genes.
    inplace
        Change ``adata``. If not, it stays as it is and a new AnnData is returned.

    Returns
    -------
    None, AnnData or pandas.Index
        The new AnnData with ``inplace=False``.

    Raises
    ------
    DataError
        If no gene is shared, names are not unique, proteins have no names, or cells are of a batch
        in which the reference did measure what they lack: there zeros would be counts.
    """
    if return_reference_var_names:
        return query_data.prepare_query_anndata(adata, reference_model, True)
    registry = query_data.registry_of(reference_model)
    key = registry["setup_args"].get("protein_expression_obsm_key")
    if key is None:
        raise DataError(
            "The reference was set up with a MuData, and the query is an AnnData. Prepare the "
            "modalities of a MuData one by one."
        )
    proteins = _with_proteins(adata, key, registry)
    prepared = query_data.prepare_query_anndata(adata, reference_model, inplace=inplace)
    (adata if inplace else prepared).obsm[key] = proteins  # type: ignore[union-attr]
    return prepared


def _with_proteins(adata: AnnData, key: str, registry: Mapping[str, Any]) -> pd.DataFrame:
    """The proteins of the reference, zero where the data lack them."""
    state = registry["field_registries"][REGISTRY_KEYS.PROTEIN_EXP_KEY]["state_registry"]
    names = pd.Index(state["column_names"])
    given = adata.obsm.get(key)
    if given is None:
        given = pd.DataFrame(index=adata.obs_names)
    if not isinstance(given, pd.DataFrame):
        raise DataError(
            f"adata.obsm[{key!r}] is a {type(given).__name__}, which has no names of proteins. "
            "Expected a DataFrame with one column per protein."
        )
    check_unique_names(given.columns, f"adata.obsm[{key!r}]", "columns")
    lacking = ~names.isin(given.columns)
    _check_batches(adata, names, lacking, state, registry["setup_args"]["batch_key"])
    return given.reindex(columns=names, fill_value=0)


def _check_batches(
    adata: AnnData,
    names: pd.Index,
    lacking: np.ndarray,
    state: Mapping[str, Any],
    batch_key: str | None,
) -> None:
    """No cells of a batch in which the reference measured the proteins that they lack."""
    if batch_key is None:
        if lacking.any():
            raise DataError(
                f"The data lack proteins of the reference: {preview(names[lacking])}. It was set "
                "up without batches, so that zeros would be taken for counts. Expected a reference "
                "with a batch_key."
            )
        return
    if batch_key not in adata.obs:
        return  # loading the query tells so
    here = set(adata.obs[batch_key])
    for code, batch in enumerate(state["batch_mapping"]):
        measured = lacking & np.asarray(state["protein_batch_mask"][str(code)])
        if measured.any() and batch in here:
            raise DataError(
                f"The data lack proteins that the reference measured in batch {batch!r}: "
                f"{preview(names[measured])}. Zeros would be taken for counts there. Expected a "
                f"batch of their own for these cells: rename it in adata.obs[{batch_key!r}]."
            )
