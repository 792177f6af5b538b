"""Simulated data without structure, for tests and examples."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from pyrovi.errors import DataError

SparseFormat = Literal["csr_matrix", "csc_matrix", "csr_array", "csc_array"]
_FORMATS: dict[str, Any] = {
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
}


def synthetic_iid(
    batch_size: int = 200,
    n_genes: int = 100,
    n_proteins: int = 100,
    n_regions: int = 100,
    n_batches: int = 2,
    n_labels: int = 3,
    dropout_ratio: float = 0.7,
    sparse_format: SparseFormat | None = None,
    generate_coordinates: bool = False,
    return_mudata: bool = False,
    seed: int | None = None,
) -> Any:
    """Independent negative binomial counts in which batches and labels make no difference.

    Parameters
    ----------
    batch_size
        Observations per batch.
    n_genes, n_proteins, n_regions
        Number of genes, proteins and chromatin regions; 0 leaves proteins or regions out.
    n_batches, n_labels
        Number of batches (``obs["batch"]``: ``batch_0``, ...) and labels (``obs["labels"]``:
        ``label_0``, ...). Labels are drawn at random; each occurs if there are enough observations.
    dropout_ratio
        Expected share of genes and regions set to zero, in [0, 1). Each observation keeps at least
        one gene count.
    sparse_format
        Class of the gene and region counts: ``"csr_matrix"``, ``"csc_matrix"``, ``"csr_array"``,
        ``"csc_array"``, or ``None`` for dense arrays.
    generate_coordinates
        Add standard normal ``obsm["coordinates"]``, shape (n_obs, 2).
    return_mudata
        Give a MuData with the modalities ``rna``, ``protein_expression`` and ``accessibility``.
    seed
        Seed of the simulation's own generator; ``None`` derives it from
        ``pyrovi.settings.seed``. The same seed and sizes give the same data.

    Returns
    -------
    AnnData or MuData
        AnnData: ``X`` genes (float32), ``obsm["protein_expression"]`` with names in
        ``uns["protein_names"]``, ``obsm["accessibility"]``.

    Raises
    ------
    DataError
        If a size or ratio is out of range, or the format is unknown.
    """
    for name, value in {
        "batch_size": batch_size,
        "n_genes": n_genes,
        "n_batches": n_batches,
        "n_labels": n_labels,
    }.items():
        if value < 1:
            raise DataError(f"{name} is {value!r}. Expected at least 1: pass a positive integer.")
    if not 0 <= dropout_ratio < 1:
        raise DataError(
            f"dropout_ratio is {dropout_ratio!r}. Expected a number in [0, 1): pass a share."
        )
    if sparse_format is not None and sparse_format not in _FORMATS:
        raise DataError(
            f"sparse_format is {sparse_format!r}. Expected one of {', '.join(_FORMATS)}, or None "
            "for dense arrays: pass one of these."
        )
    from pyrovi._rng import generator  # imports torch

    rng = generator("synthetic_iid", seed=seed)
    n_obs = batch_size * n_batches

    def counts(n_columns: int, dropout: float) -> NDArray[np.float32]:
        values = rng.negative_binomial(5, 0.3, size=(n_obs, n_columns))
        return (values * (rng.random(values.shape) >= dropout)).astype(np.float32)

    def stored(values: NDArray[np.float32]) -> Any:
        return values if sparse_format is None else _FORMATS[sparse_format](values)

    genes = counts(n_genes, dropout_ratio)
    empty = np.flatnonzero(~genes.any(axis=1))
    genes[empty, rng.integers(n_genes, size=len(empty))] = 1
    proteins = counts(n_proteins, 0.0)
    regions = counts(n_regions, dropout_ratio)
    labels = rng.integers(n_labels, size=n_obs)
    if n_obs >= n_labels:
        labels[rng.permutation(n_obs)[:n_labels]] = np.arange(n_labels)
    obs = pd.DataFrame(
        {
            "batch": _categories("batch", np.repeat(np.arange(n_batches), batch_size)),
            "labels": _categories("label", labels),
        },
        index=[str(i) for i in range(n_obs)],
    )
    protein_names = [f"protein_{i}" for i in range(n_proteins)]
    rna = anndata.AnnData(stored(genes), obs=obs, var=_names("gene", n_genes))
    coordinates = rng.normal(size=(n_obs, 2))
    if return_mudata:
        return _as_mudata(
            rna, proteins, stored(regions), coordinates if generate_coordinates else None
        )
    if n_proteins:
        rna.obsm["protein_expression"] = proteins
        rna.uns["protein_names"] = protein_names
    if n_regions:
        rna.obsm["accessibility"] = stored(regions)
    if generate_coordinates:
        rna.obsm["coordinates"] = coordinates
    return rna


def _as_mudata(
    rna: anndata.AnnData,
    proteins: NDArray[np.float32],
    regions: Any,
    coordinates: NDArray[np.float64] | None,
) -> Any:
    from pyrovi._lazy import require

    obs = rna.obs
    parts = {"rna": anndata.AnnData(rna.X, obs=pd.DataFrame(index=obs.index), var=rna.var)}
    for name, prefix, values in (
        ("protein_expression", "protein", proteins),
        ("accessibility", "region", regions),
    ):
        if values.shape[1]:
            var = _names(prefix, values.shape[1])
            parts[name] = anndata.AnnData(values, obs=pd.DataFrame(index=obs.index), var=var)
    mudata = require("mudata", "mudata")
    with no_pull_on_update(mudata):
        mdata = mudata.MuData(parts)
    for column in obs:
        mdata.obs[column] = obs[column]
    if coordinates is not None:
        mdata.obsm["coordinates"] = coordinates
    return mdata


def no_pull_on_update(mudata: Any) -> AbstractContextManager[Any]:
    """Update MuData as mudata 0.4 always does; 0.3 does so on request, and warns without it."""
    if not hasattr(mudata, "set_options"):
        return nullcontext()
    return mudata.set_options(pull_on_update=False)


def _categories(prefix: str, codes: NDArray[np.int64]) -> Any:
    return pd.Categorical([f"{prefix}_{code}" for code in codes])


def _names(prefix: str, n: int) -> pd.DataFrame:
    return pd.DataFrame(index=[f"{prefix}_{i}" for i in range(n)])
