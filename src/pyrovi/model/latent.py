"""Latent representations of observations. Functions of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.infer.autoguide import AutoGuide

from pyrovi._rng import stream
from pyrovi._settings import settings
from pyrovi.errors import ModelError
from pyrovi.model.draws import warn_if_untrained
from pyrovi.module.base import evaluation_mode
from pyrovi.module.guides import StoryGuide
from pyrovi.module.ledger import Role
from pyrovi.posterior.stories import guide_trace

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


_DRAWS_FOR_MOMENTS = 1000


def guide_moments(
    model: BaseModelClass,
    site: str,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the guide's distribution of a local site, for each observation.

    Parameters
    ----------
    site
        Name of a local site.
    adata, indices, batch_size
        As in :meth:`sample_posterior`.

    Returns
    -------
    tuple of numpy.ndarray
        Mean and variance, each of shape ``(n, ...)``: exact where the guide samples the site from a
        distribution that knows them, else (automatic guides, globals that the guide conditions on)
        of 1,000 draws.

    Raises
    ------
    ModelError
        If the site is not a local latent.
    """
    if model.sites[site].role is not Role.LOCAL:
        raise ModelError(
            f"Site {site!r} is no latent with a value per observation; those are: "
            f"{', '.join(model.sites.names(Role.LOCAL)) or 'none'}."
        )
    module = model.module
    if model.sites.names(Role.GLOBAL) or isinstance(module.guide, (AutoGuide, StoryGuide)):
        options: dict[str, Any] = {"adata": adata, "indices": indices, "batch_size": batch_size}
        draws = model.sample_posterior(
            site, num_samples=_DRAWS_FOR_MOMENTS, reduce=["mean", "sd"], **options
        )
        mean, sd = draws[site].values
        return mean, sd**2
    warn_if_untrained(model)
    _, _, loader = model.loader(adata, indices)
    means, variances = [], []
    for minibatch in loader(batch_size or settings.batch_size):
        with evaluation_mode(module), torch.no_grad(), stream("moments"):
            node: Any = guide_trace(module, minibatch.to(model.device), {}).nodes[site]
        means.append(node["fn"].mean.cpu().numpy())
        variances.append(node["fn"].variance.cpu().numpy())
    return np.concatenate(means), np.concatenate(variances)


def get_latent_representation(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    *,
    give_mean: bool = True,
    mc_samples: int = 5000,
    batch_size: int | None = None,
    return_dist: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Latent representation of each observation.

    Parameters
    ----------
    adata, indices, batch_size
        As in :meth:`sample_posterior`.
    give_mean
        The posterior mean; otherwise one draw.
    mc_samples
        Draws for the mean where it has no closed form (``latent_distribution="ln"``).
    return_dist
        Return mean and **variance** of the Gaussian ``q(z | x)`` instead.

    Returns
    -------
    numpy.ndarray or tuple
        Shape ``(n, n_latent)``.
    """
    if return_dist:
        return guide_moments(model, "z", adata, indices, batch_size)
    options: dict[str, Any] = {"adata": adata, "indices": indices, "batch_size": batch_size}
    if not give_mean:
        site = "latent" if "latent" in model.sites else "z"
        return model.sample_posterior(site, num_samples=1, **options)[site].values[0]
    if getattr(model.module, "latent_distribution", "normal") == "normal":
        return guide_moments(model, "z", **options)[0]
    draws = model.sample_posterior("latent", num_samples=mc_samples, reduce="mean", **options)
    return draws["latent"].values
