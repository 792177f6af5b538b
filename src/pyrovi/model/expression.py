"""Normalised expression and the parameters of the likelihood of cells. Functions of a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import ModelError
from pyrovi.model.decoding import (
    Weights,
    batch_codes,
    collect_decoded,
    gene_positions,
    likelihood_of,
    read_sites,
    rows_to_draw,
)
from pyrovi.model.latent import guide_moments

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


def get_normalized_expression(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    transform_batch: Any = None,
    gene_list: Sequence[str] | None = None,
    library_size: float | Literal["latent"] = 1,
    n_samples: int = 1,
    n_samples_overall: int | None = None,
    weights: Weights = "uniform",
    batch_size: int | None = None,
    return_mean: bool = True,
    return_numpy: bool | None = None,
    *,
    seed: int | None = None,
) -> np.ndarray | pd.DataFrame:
    r"""Normalised (decoded) expression :math:`\rho_n` of each cell, from posterior draws.

    Parameters
    ----------
    adata, indices
        Cells; ``None`` for all of the model's own.
    transform_batch
        Batch to decode in: ``None`` for the one of each cell, a category of the registered batch
        column, or a list of categories, over which the expression is averaged. This is an
        intervention: the latent variables are inferred from the cell as it was observed, and only
        the decoder sees the other batch. All batches share the same latent draws.
    gene_list
        Genes, in the order wanted; ``None`` for all.
    library_size
        Number that the expression of a cell sums to over all genes (where it is a softmax), or
        ``"latent"`` for the library size of the cell: its expected counts.
    n_samples
        Number of draws of each cell.
    n_samples_overall
        Draw this many times in all instead, spread evenly over the cells in random order: a sample
        of the average of the cells' posteriors.
    weights
        ``"uniform"``: draws of the guide. ``"importance"``: each draw is chosen among 25 proposals
        of the guide for that cell, by their importance for the model's own posterior.
    batch_size
        Largest number of cells at a time.
    return_mean
        Return the mean of the draws.
    return_numpy
        Return an array. ``None`` does so where the result has no row per cell.
    seed
        Root seed; ``None`` for ``settings.seed``.

    Returns
    -------
    pandas.DataFrame or numpy.ndarray
        Cells by genes; ``(n_samples, cells, genes)`` without ``return_mean`` for more than one
        draw; ``(n_samples_overall, genes)``, always an array, with ``n_samples_overall``.

    Raises
    ------
    UnseenCategoryError, MissingKeyError
        If a batch or a gene is not known.
    ModelError
        If an option has no meaning.
    """
    check_library_size(library_size)
    genes = gene_positions(model, gene_list)
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    rows = rows_to_draw(positions, n_samples, n_samples_overall, seed)
    average = return_mean or n_samples == 1
    site = "mu" if library_size == "latent" else "rho"
    found = collect_decoded(
        model, read_sites([site], genes), manager, rows, average=average,
        batches=batch_codes(model, transform_batch), num_samples=n_samples, weights=weights,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    result = of_library_size(found[site], library_size)
    if return_numpy or n_samples_overall is not None:
        return result
    if not average:
        if return_numpy is False:
            warnings.warn(
                "A data frame cannot hold several draws of each cell: the result is an array. Pass "
                "return_mean=True, or return_numpy=True.",
                UserWarning,
                stacklevel=2,
            )
        return result
    return pd.DataFrame(result, index=manager.obs_names[positions], columns=model.var_names[genes])


def get_likelihood_parameters(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    n_samples: int = 1,
    give_mean: bool = False,
    batch_size: int | None = None,
    *,
    seed: int | None = None,
) -> dict[str, np.ndarray]:
    r"""Parameters of the likelihood of each count, from posterior draws.

    Parameters
    ----------
    adata, indices, n_samples, batch_size, seed
        As in :meth:`get_normalized_expression`.
    give_mean
        Return the mean of the draws.

    Returns
    -------
    dict
        ``mean`` (:math:`\mu`, before any zero inflation); for negative binomials ``dispersions``
        (the inverse dispersion :math:`\theta`), with ``dropout`` (probability of an extra zero)
        where there is zero inflation; for the normal likelihood ``scale`` (standard deviation).
        Each of shape ``(cells, genes)``, or ``(n_samples, cells, genes)`` for several draws.
    """
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    return collect_decoded(
        model, _read_parameters, manager, positions, average=give_mean or n_samples == 1,
        num_samples=n_samples, batch_size=batch_size, seed=seed,
    )  # fmt: skip


def get_latent_library_size(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    give_mean: bool = True,
    batch_size: int | None = None,
    *,
    seed: int | None = None,
) -> np.ndarray:
    r"""Library size :math:`e^{l_n}` of each cell.

    Parameters
    ----------
    adata, indices, batch_size, seed
        As in :meth:`get_normalized_expression`.
    give_mean
        Posterior mean where the library size is latent; otherwise one draw. It makes no difference
        where the library size is the observed total or a given size factor.

    Returns
    -------
    numpy.ndarray
        Shape ``(cells, 1)``.
    """
    if give_mean and "l" in model.sites:
        mean, variance = guide_moments(model, "l", adata, indices, batch_size)
        return np.exp(mean + variance / 2)
    draw = model.sample_posterior(
        "library", num_samples=1, adata=adata, indices=indices, batch_size=batch_size, seed=seed
    )
    return np.exp(draw["library"].values[0])


def get_batch_representation(
    model: BaseModelClass, adata: Any = None, indices: Any = None
) -> np.ndarray:
    """Learned vector of the batch of each cell.

    Parameters
    ----------
    adata, indices
        Cells; ``None`` for all of the model's own.

    Returns
    -------
    numpy.ndarray
        Shape ``(cells, batch_embedding_dim)``.

    Raises
    ------
    ModelError
        If batches are not embedded.
    """
    embedding: Any = getattr(model.module, "batch_embedding", None)
    if embedding is None:
        raise ModelError(
            "Batches have no learned vectors in this model. Make the model with "
            "batch_representation='embedding'."
        )
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    codes = np.asarray(manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY))[positions, 0]
    weight: np.ndarray = embedding.weight.detach().cpu().numpy()
    return weight[codes.astype(np.int64)]


def _read_parameters(nodes: Mapping[str, Any]) -> dict[str, Tensor]:
    fn = likelihood_of(nodes)
    mean = nodes["mu"]["value"]
    if hasattr(fn, "theta"):
        parameters = {"mean": mean, "dispersions": fn.theta}
        return parameters | ({"dropout": fn.zi_probs} if hasattr(fn, "zi_probs") else {})
    if isinstance(fn, torch.distributions.Normal):
        return {"mean": mean, "scale": fn.scale.expand(mean.shape)}
    return {"mean": mean}


def of_library_size(
    expression: NDArray[Any], library_size: float | Literal["latent"]
) -> NDArray[Any]:
    """Expression of cells that sum to a number; as it is where that is their own."""
    if not isinstance(library_size, str) and library_size != 1:
        expression *= np.asarray(library_size, dtype=expression.dtype)
    return expression


def check_library_size(library_size: Any) -> None:
    """Refuse what is no library size.

    Raises
    ------
    ModelError
        If it is neither "latent" nor a positive number.
    """
    if library_size == "latent":
        return
    number = isinstance(library_size, (int, float, np.integer, np.floating))
    if not number or isinstance(library_size, bool) or not 0 < library_size < np.inf:
        raise ModelError(
            f"library_size must be 'latent' or a positive number, got {library_size!r}."
        )
