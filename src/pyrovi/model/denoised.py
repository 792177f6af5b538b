"""Posterior predictive counts and correlations of genes. Functions of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import rankdata
from torch import Tensor

from pyrovi.data import AnnDataManager
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import ModelError
from pyrovi.model.decoding import (
    Reader,
    at_positions,
    batch_codes,
    gene_positions,
    likelihood_of,
    read_sites,
    single_batch,
    stream_decoded,
)
from pyrovi.model.queries import MAX_ELEMENTS

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

_BLOCK = 2**22


def posterior_predictive_sample(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    n_samples: int = 1,
    gene_list: Sequence[str] | None = None,
    batch_size: int | None = None,
    *,
    transform_batch: Any = None,
    seed: int | None = None,
) -> sparse.csr_matrix | np.ndarray:
    """Counts of each cell drawn from the posterior predictive distribution.

    Parameters
    ----------
    adata, indices, gene_list, batch_size, seed
        As in :meth:`get_normalized_expression`.
    n_samples
        Number of draws.
    transform_batch
        Batch to decode all cells in; ``None`` for their own.

    Returns
    -------
    scipy.sparse.csr_matrix or numpy.ndarray
        One draw is a sparse matrix of shape ``(cells, genes)``, ready to be a layer of the
        AnnData; several are an array of shape ``(cells, genes, n_samples)``.

    Raises
    ------
    ModelError
        If the array would be too large, or several batches are named.
    """
    codes = single_batch(model, transform_batch)
    genes = gene_positions(model, gene_list)
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    if n_samples > 1:
        check_size(n_samples * len(positions) * len(genes), "n_samples, gene_list or indices")
    found = predictive_counts(
        model, read_sites(["X"], genes), manager, positions, n_samples, batches=codes,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    return found["X"]


def predictive_counts(
    model: BaseModelClass,
    read: Reader,
    manager: AnnDataManager,
    positions: NDArray[np.int64],
    n_samples: int,
    **options: Any,
) -> dict[str, Any]:
    """Counts drawn anew at what is read.

    One draw is a sparse matrix of cells by features; several are an array of ``(cells, features,
    n_samples)``.
    """
    parts: dict[str, list[Any]] = {}
    for values in stream_decoded(
        model, read, manager, positions, num_samples=n_samples, predictive=True, **options
    ):
        for name, value in values.items():
            drawn = value.cpu().numpy()
            part = sparse.csr_matrix(drawn[0]) if n_samples == 1 else np.moveaxis(drawn, 0, -1)
            parts.setdefault(name, []).append(part)
    if n_samples == 1:
        return {name: sparse.vstack(blocks, format="csr") for name, blocks in parts.items()}
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


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
    *,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Correlations of genes over cells and posterior draws of their denoised expression.

    The denoised expression is the rate of the Poisson counts at a common library size :math:`f`,

    .. math:: w_{ng} \sim \mathrm{Gamma}(\theta_g, \theta_g / (f \rho_{ng})),

    or :math:`f \rho_{ng}` under likelihoods without overdispersion: correlations are not diluted by
    the noise of counting.

    Parameters
    ----------
    adata, indices, batch_size, seed
        As in :meth:`get_normalized_expression`.
    n_samples
        Number of draws of each cell.
    rna_size_factor
        The library size :math:`f`.
    transform_batch
        Batch to decode in, as in :meth:`get_normalized_expression`; for a list, the matrices of the
        batches are averaged.
    correlation_type
        ``"spearman"`` or ``"pearson"``.
    gene_list
        Genes; ``None`` for all.

    Returns
    -------
    pandas.DataFrame
        Genes by genes; ``NaN`` for a gene that does not vary.

    Raises
    ------
    ModelError
        If an option has no meaning, or the draws would be too large.
    """
    genes = gene_positions(model, gene_list)
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    check_size(n_samples * len(positions) * len(genes), "n_samples, gene_list or indices")

    def draw(code: int | None) -> np.ndarray:
        return denoised_samples(
            model, lambda nodes: denoised_genes(nodes, rna_size_factor, genes), manager, positions,
            batch=code, n_samples=n_samples, batch_size=batch_size, seed=seed,
        )  # fmt: skip

    codes = batch_codes(model, transform_batch)
    return correlations(draw, codes, model.var_names[genes], correlation_type)


def correlations(
    draw: Callable[[int | None], np.ndarray],
    codes: Sequence[int | None],
    names: pd.Index,
    correlation_type: Literal["spearman", "pearson"],
) -> pd.DataFrame:
    """Correlations of features over cells and draws, averaged over the batches to decode in.

    Parameters
    ----------
    draw
        Function that gives, for the code of a batch, an array of ``(cells * draws, features)``; it
        may be written into.
    codes
        Codes of the batches.
    names
        Names of the features.
    correlation_type
        ``"spearman"`` or ``"pearson"``.

    Raises
    ------
    ModelError
        If ``correlation_type`` is neither.
    """
    if correlation_type not in ("spearman", "pearson"):
        raise ModelError(
            f"correlation_type must be 'spearman' or 'pearson', got {correlation_type!r}."
        )
    total = np.zeros((len(names), len(names)))
    for code in codes:
        draws = draw(code)
        if correlation_type == "spearman":
            _rank_columns(draws)
        total += _pearson(draws)
    return pd.DataFrame(total / len(codes), index=names, columns=names)


def denoised_samples(
    model: BaseModelClass,
    denoised: Callable[[Mapping[str, Any]], Tensor],
    manager: AnnDataManager,
    positions: NDArray[np.int64],
    *,
    batch: int | None,
    n_samples: int,
    batch_size: int | None = None,
    seed: int | None = None,
) -> np.ndarray:
    """Denoised expression of each cell and draw, shape ``(cells * n_samples, features)``.

    Parameters
    ----------
    denoised
        Takes the expression, of shape ``(cells, features)``, from the nodes of a model trace.
    manager, positions
        The data, and which cells of them.
    batch
        Code of the batch to decode in; ``None`` for each cell's own.
    n_samples, batch_size, seed
        As in :func:`get_feature_correlation_matrix`.
    """
    parts = [
        values["denoised"].cpu().flatten(0, 1).numpy()
        for values in stream_decoded(
            model, lambda nodes: {"denoised": denoised(nodes)}, manager, positions,
            batches=[batch], num_samples=n_samples, batch_size=batch_size, seed=seed,
        )
    ]  # fmt: skip
    return np.concatenate(parts)


def denoised_genes(nodes: Mapping[str, Any], size_factor: float, genes: np.ndarray) -> Tensor:
    """Draw of the denoised expression of genes, from the nodes of a model trace."""
    fn, rho = likelihood_of(nodes), nodes["rho"]["value"]
    rate = size_factor * at_positions(rho, genes)
    return gamma_rate(rate, at_positions(fn.theta, genes)) if hasattr(fn, "theta") else rate


def gamma_rate(mean: Tensor, inverse_dispersion: Tensor) -> Tensor:
    """Draw of the rate of the Poisson counts that a negative binomial distribution mixes."""
    shape = inverse_dispersion.expand(mean.shape).contiguous()
    return torch._standard_gamma(shape) * mean / shape


def _rank_columns(values: np.ndarray) -> None:
    """Replace each column by its ranks (ties share their mean rank), in place."""
    step = max(1, _BLOCK // len(values))
    for start in range(0, values.shape[1], step):
        columns = slice(start, start + step)
        values[:, columns] = rankdata(values[:, columns], axis=0)


def _pearson(values: np.ndarray) -> np.ndarray:
    """Correlations of the columns, accumulated in double precision over blocks of rows."""
    mean = values.mean(0, dtype=np.float64)
    product = np.zeros((values.shape[1], values.shape[1]))
    step = max(1, _BLOCK // values.shape[1])
    for start in range(0, len(values), step):
        centred = values[start : start + step] - mean
        product += centred.T @ centred
    sd = np.sqrt(product.diagonal())
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = product / sd / sd[:, None]
    # rounding: the diagonal is exactly one, and nothing lies outside
    np.fill_diagonal(correlation, np.where(sd > 0, 1.0, np.nan))
    return np.clip(correlation, -1, 1)


def check_size(elements: int, options: str) -> None:
    """Refuse to hold more numbers than :data:`~pyrovi.model.queries.MAX_ELEMENTS`.

    Raises
    ------
    ModelError
        Naming the options that make it less.
    """
    if elements > MAX_ELEMENTS:
        raise ModelError(
            f"The draws would be {elements:.2g} numbers ({elements * 4 / 2**30:.0f} GiB). Ask for "
            f"less: {options}."
        )
