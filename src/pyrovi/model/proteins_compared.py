"""Genes and proteins together: differential expression and correlations. Functions of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data import AnnDataManager
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import ModelError
from pyrovi.model.comparing import Features, compare_groups
from pyrovi.model.decoding import (
    Weights,
    at_positions,
    batch_codes,
    gene_positions,
    likelihood_of,
)
from pyrovi.model.denoised import (
    check_size,
    correlations,
    denoised_genes,
    denoised_samples,
    gamma_rate,
)
from pyrovi.model.groups import comparisons
from pyrovi.model.protein_parts import (
    PROTEINS,
    protein_expression,
    protein_names,
    protein_positions,
    warn_unmeasured,
)
from pyrovi.posterior.differential import raw_moments

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


def differential_expression(
    model: BaseModelClass,
    adata: Any = None,
    groupby: str | None = None,
    group1: Any = None,
    group2: Any = None,
    idx1: Any = None,
    idx2: Any = None,
    mode: Literal["change", "vanilla"] = "change",
    delta: float = 0.25,
    batch_size: int | None = None,
    all_stats: bool = True,
    batch_correction: bool = False,
    batchid1: Sequence[Any] | None = None,
    batchid2: Sequence[Any] | None = None,
    fdr_target: float = 0.05,
    silent: bool = False,
    protein_prior_count: float = 0.1,
    scale_protein: bool = False,
    sample_protein_mixing: bool = False,
    include_protein_background: bool = False,
    pseudocounts: float | None = 1e-5,
    weights: Weights = "uniform",
    *,
    n_samples_overall: int = 5000,
    test_mode: Literal["two", "three"] = "three",
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Which genes and proteins are expressed differently in two groups of cells.

    As :meth:`SCVI.differential_expression`, on genes (by :math:`\rho`) and proteins (by their
    foreground, :meth:`get_normalized_expression`) together: one table, one false discovery rate.

    Parameters
    ----------
    adata, groupby, group1, group2, idx1, idx2, mode, delta, batch_size, all_stats
        As there.
    batch_correction, batchid1, batchid2, fdr_target, silent, weights, n_samples_overall, test_mode
        As there. With ``batch_correction``, name batches in which the proteins were measured.
    protein_prior_count
        Added to the expression of proteins, in counts: fold changes of a protein that both groups
        hardly have are near one.
    scale_protein, sample_protein_mixing, include_protein_background
        As in :meth:`get_normalized_expression`.
    pseudocounts
        The offset of :meth:`SCVI.differential_expression`; ``None`` estimates it.
    seed
        Root seed; ``None`` for ``settings.seed``.

    Returns
    -------
    pandas.DataFrame
        One row per gene or protein and comparison, with the columns described there and
        ``modality`` (``"rna"`` or ``"protein"``). Counts per 10,000 are those of the modality.

    Raises
    ------
    MissingKeyError, DataError, ModelError
        As there, or if ``protein_prior_count`` is negative.

    Warns
    -----
    UserWarning
        If proteins are decoded in a batch in which they were not measured.
    """
    if not protein_prior_count >= 0:
        raise ModelError(
            f"protein_prior_count is a number of counts, at least 0, got {protein_prior_count!r}."
        )
    options = {k: v for k, v in locals().items() if k != "model" and "protein" not in k}
    manager = options["adata"] = model.manager_of(adata)
    tasks = comparisons(manager.adata.obs, groupby, group1, group2, idx1, idx2)
    cells = np.flatnonzero(np.any([task.cells1 | task.cells2 for task in tasks], axis=0))
    codes = _decoded_in(model, batch_correction, batchid1, batchid2)
    warn_unmeasured(model, manager, cells, codes, protein_positions(model, None))

    def scale(nodes: Mapping[str, Any]) -> Tensor:
        protein = protein_expression(
            nodes,
            sample_mixing=sample_protein_mixing,
            scale=scale_protein,
            include_background=include_protein_background,
        )
        return torch.cat([nodes["rho"]["value"], protein + protein_prior_count], -1)

    names = _feature_names(model)
    positions = pd.RangeIndex(len(names))  # a protein may have the name of a gene
    table = compare_groups(model, Features(positions, scale, _raw_moments), **options)
    found = table.index.to_numpy()
    table.index = names[found].rename(table.index.name)
    table["modality"] = np.where(found < len(model.var_names), "rna", "protein")
    return table


def get_feature_correlation_matrix(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    n_samples: int = 10,
    batch_size: int | None = None,
    rna_size_factor: float = 1000,
    transform_batch: Any = None,
    correlation_type: Literal["spearman", "pearson"] = "spearman",
    gene_list: Sequence[str] | None = None,
    protein_list: Sequence[str] | None = None,
    *,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Correlations of genes and proteins over cells and draws of their denoised expression.

    That of genes is the rate of their Poisson counts at a common library size (see
    :meth:`SCVI.get_feature_correlation_matrix`); that of proteins the rate of their foreground,

    .. math:: r_{nt} \sim \mathrm{Gamma}(\phi_t, \phi_t / (\alpha_{nt} \beta_{nt})),

    or zero where the draw of :math:`v_{nt} \sim \mathrm{Bernoulli}(\pi_{nt})` says background.

    Parameters
    ----------
    adata, indices, batch_size, gene_list, protein_list, seed
        As in :meth:`get_normalized_expression`.
    n_samples
        Number of draws of each cell.
    rna_size_factor
        The common library size.
    transform_batch
        Batch to decode in; for a list, the matrices of the batches are averaged.
    correlation_type
        ``"spearman"`` or ``"pearson"``.

    Returns
    -------
    pandas.DataFrame
        Genes and proteins by genes and proteins; ``NaN`` for one that does not vary.

    Raises
    ------
    ModelError
        If an option has no meaning, or the draws would be too large.

    Warns
    -----
    UserWarning
        If proteins are decoded in a batch in which they were not measured.
    """
    genes, proteins = gene_positions(model, gene_list), protein_positions(model, protein_list)
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    codes = batch_codes(model, transform_batch)
    warn_unmeasured(model, manager, positions, codes, proteins)
    names = model.var_names[genes].append(protein_names(model)[proteins])
    check_size(n_samples * len(positions) * len(names), "n_samples, gene_list or indices")

    def denoised(nodes: Mapping[str, Any]) -> Tensor:
        y = likelihood_of(nodes, PROTEINS)
        is_foreground = 1 - torch.bernoulli(at_positions(nodes["pi"]["value"], proteins))
        mean, inverse_dispersion = at_positions(y.mu2, proteins), at_positions(y.theta1, proteins)
        protein = is_foreground * gamma_rate(mean, inverse_dispersion)
        return torch.cat([denoised_genes(nodes, rna_size_factor, genes), protein], -1)

    def draw(code: int | None) -> np.ndarray:
        return denoised_samples(
            model, denoised, manager, positions, batch=code, n_samples=n_samples,
            batch_size=batch_size, seed=seed,
        )  # fmt: skip

    return correlations(draw, codes, names, correlation_type)


def _feature_names(model: BaseModelClass) -> pd.Index:
    return model.var_names.append(protein_names(model))


def _raw_moments(manager: AnnDataManager, cells: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    rna, protein = (
        raw_moments(manager.get_from_registry(key), cells)
        for key in (REGISTRY_KEYS.X_KEY, PROTEINS)
    )
    return {name: np.concatenate([rna[name], protein[name]], axis=1) for name in rna}


def _decoded_in(
    model: BaseModelClass, batch_correction: bool, batchid1: Any, batchid2: Any
) -> Sequence[int | None]:
    """Codes of the batches that cells are decoded in."""
    if not batch_correction:
        return [None]
    every = list(range(model.summary_stats.n_batch))
    both = [every if ids is None else batch_codes(model, ids) for ids in (batchid1, batchid2)]
    return sorted({code for codes in both for code in codes if code is not None})
