"""Aggregated posteriors of groups of cells and differential abundance. Functions of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch

from pyrovi._rng import generator
from pyrovi.data.categories import find_categories
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import MissingKeyError, ModelError

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

_BLOCK = 2**23
"""Largest number of cells x components x latent dimensions evaluated at a time."""


def get_aggregated_posterior(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    dof: float | None = 3.0,
) -> dist.MixtureSameFamily:
    r"""Average of the posteriors of the latent variables of a group of cells.

    .. math:: \bar q(z) = \frac{1}{N} \sum_n \prod_k
              \mathrm{StudentT}_\nu\!\left(z_k \mid m_{nk}, \sqrt{v_{nk}}\right)

    with mean :math:`m` and variance :math:`v` of :math:`q(z_n \mid x_n)`.

    Parameters
    ----------
    adata, indices, batch_size
        The cells, as in :meth:`sample_posterior`.
    dof
        Degrees of freedom :math:`\nu`; heavy tails keep the density of cells that are far from the
        group away from zero. ``None`` for normal components: the exact average.

    Returns
    -------
    pyro.distributions.MixtureSameFamily
        Distribution of vectors of length ``n_latent``.

    Raises
    ------
    ModelError
        If ``dof`` is not positive.
    """
    mean, variance = model.get_latent_representation(  # type: ignore[attr-defined]
        adata, indices, batch_size=batch_size, return_dist=True
    )
    return _mixture(mean, variance, dof)


def differential_abundance(
    model: BaseModelClass,
    adata: Any = None,
    sample_key: str | None = None,
    batch_size: int | None = None,
    num_cells_posterior: int | None = None,
    dof: float | None = None,
    *,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Log density of each cell under the aggregated posterior of each sample.

    Entry :math:`(n, s)` is :math:`\log \bar q_s(m_n)`, with :math:`m_n` the posterior mean of cell
    :math:`n` and :math:`\bar q_s` the average posterior of the cells of sample :math:`s`
    (:meth:`get_aggregated_posterior`). The difference of two columns says by how much a
    neighbourhood is more abundant in one sample than in the other, whatever their numbers of cells.

    Parameters
    ----------
    adata, batch_size
        The cells, as in :meth:`sample_posterior`.
    sample_key
        Column of ``obs`` with the sample of each cell.
    num_cells_posterior
        Take at most so many cells, chosen at random, of each sample for its average; ``None`` for
        all.
    dof
        As in :meth:`get_aggregated_posterior`.
    seed
        Root seed of the choice of cells.

    Returns
    -------
    pandas.DataFrame
        Cells by samples. Nothing is written into the AnnData.

    Raises
    ------
    MissingKeyError
        If there is no such column.
    ModelError
        If ``num_cells_posterior`` is not positive.

    References
    ----------
    Boyeau et al.: Deep generative modeling of sample-level heterogeneity in single-cell genomics.
    Nature Methods (2025).
    """
    manager = model.manager_of(adata)
    obs = manager.adata.obs
    if sample_key is None or sample_key not in obs:
        raise MissingKeyError(
            f"sample_key={sample_key!r} is no column of obs; columns: {', '.join(obs.columns)}."
        )
    if num_cells_posterior is not None and num_cells_posterior < 1:
        raise ModelError(f"num_cells_posterior must be at least 1, got {num_cells_posterior}.")
    mean, variance = model.get_latent_representation(  # type: ignore[attr-defined]
        adata, batch_size=batch_size, return_dist=True
    )
    samples, _ = find_categories(obs[sample_key], f"obs[{sample_key!r}]")
    columns = []
    for sample in samples:
        cells = resolve_indices((obs[sample_key] == sample).to_numpy(), manager.n_obs)
        if num_cells_posterior is not None and num_cells_posterior < len(cells):
            rng = generator("abundance", str(sample), seed=seed)
            cells = np.sort(rng.choice(cells, num_cells_posterior, replace=False))
        columns.append(_log_density(_mixture(mean[cells], variance[cells], dof), mean))
    return pd.DataFrame(np.stack(columns, 1), index=manager.obs_names, columns=samples)


def _mixture(mean: np.ndarray, variance: np.ndarray, dof: float | None) -> dist.MixtureSameFamily:
    if dof is not None and not dof > 0:
        raise ModelError(f"dof must be positive, or None for normal components, got {dof!r}.")
    loc, scale = torch.as_tensor(mean), torch.as_tensor(variance).sqrt()
    components = dist.Normal(loc, scale) if dof is None else dist.StudentT(dof, loc, scale)
    weights = dist.Categorical(torch.ones(len(loc)))
    return dist.MixtureSameFamily(weights, components.to_event(1))


def _log_density(mixture: dist.MixtureSameFamily, points: np.ndarray) -> np.ndarray:
    size = mixture.mixture_distribution.param_shape[-1] * points.shape[1]
    blocks = torch.as_tensor(points).split(max(1, _BLOCK // size))
    return torch.cat([mixture.log_prob(block) for block in blocks]).numpy()
