"""Evidence bounds of given observations: the ELBO and importance-weighted marginal likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.base import PyroBaseModule
from pyrovi.posterior.density import (
    global_density,
    local_nodes,
    log_density,
    observation_density,
    per_observation,
)
from pyrovi.posterior.discrete import DiscreteTable, enumerates
from pyrovi.posterior.stories import guide_trace, latent_values, model_trace
from pyrovi.posterior.vectorise import Story


def elbo_story(module: PyroBaseModule, minibatch: Minibatch) -> Story:
    """Parts of the ELBO of each observation under one draw, each of shape ``(n,)``.

    ``reconstruction`` is the log-likelihood; ``kl_local`` the KL of the local latents, in closed
    form where there is one and estimated by the draw where not. Enumerated sites, and what depends
    on them, are summed out within ``reconstruction``.
    """

    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        guide = guide_trace(module, minibatch, values)
        latents = latent_values(guide)
        if enumerates(module, latents):
            table = DiscreteTable(module, minibatch, latents)
            kl = observation_density(guide, minibatch) - table.density(observed=False)
            return {"reconstruction": table.density(observed=True), "kl_local": kl}
        model = model_trace(module, minibatch, latents)
        reconstruction = observation_density(model, minibatch, observed=True)
        return {"reconstruction": reconstruction, "kl_local": _kl_local(guide, model, minibatch)}

    return story


def importance_story(module: PyroBaseModule, minibatch: Minibatch) -> Story:
    r"""Log importance weight of each observation given the globals ``g``, shape ``(n,)``.

    .. math:: \log p(x_n, z_n \mid g) - \log q(z_n \mid x_n, g)

    The log of its mean over draws of :math:`z_n` estimates the marginal log-likelihood
    :math:`\log p(x_n \mid g)` from below (Burda et al. 2016, eq. 8). Every observation has its own
    weights: a joint weight over a plate is neither a bound nor finite in practice.
    """

    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        guide = guide_trace(module, minibatch, values)
        latents = latent_values(guide)
        if enumerates(module, latents):
            table = DiscreteTable(module, minibatch, latents)
            joint = table.density(observed=True) + table.density(observed=False)
        else:
            model = model_trace(module, minibatch, latents)
            joint = observation_density(model, minibatch, observed=True)
            joint = joint + observation_density(model, minibatch)
        return {"log_weight": joint - observation_density(guide, minibatch)}

    return story


def likelihood_story(module: PyroBaseModule, minibatch: Minibatch, sites: Sequence[str]) -> Story:
    """Log-likelihood of each observation under one joint draw, by observed site."""

    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents = latent_values(guide_trace(module, minibatch, values))
        if enumerates(module, latents):
            table = DiscreteTable(module, minibatch, latents)
            return {name: table.likelihood(name) for name in sites}
        nodes = model_trace(module, minibatch, latents).nodes
        return {
            name: per_observation(nodes[name], log_density(nodes[name]), minibatch.n)
            for name in sites
        }

    return story


def global_kl_story(module: PyroBaseModule, minibatch: Minibatch) -> Story:
    """Estimate, by one draw, of the KL of the global latents (a scalar, not per observation).

    The globals have to be drawn by the story itself: an automatic guide computes the density of a
    value from auxiliary sites, which a value given from outside would not fit.
    """

    def story(_: dict[str, Tensor]) -> dict[str, Tensor]:
        guide = guide_trace(module, minibatch, {})
        model = model_trace(module, minibatch, latent_values(guide))
        return {"kl_global": global_density(guide) - global_density(model)}

    return story


def _kl_local(guide: poutine.Trace, model: poutine.Trace, minibatch: Minibatch) -> Tensor:
    pairs = [(guide.nodes.get(name), node) for name, node in local_nodes(model, observed=False)]
    drawn = list(local_nodes(guide, observed=False))
    if len(drawn) > len(pairs) or any(q is None for q, _ in pairs):  # auxiliary sites
        return observation_density(guide, minibatch) - observation_density(model, minibatch)
    total = torch.zeros(minibatch.n, device=minibatch.indices.device)
    for q, p in pairs:
        total = total + _kl(q, p, minibatch.n)
    return total


def _kl(guide: Any, model: Any, n: int) -> Tensor:
    try:
        kl = kl_divergence(guide["fn"], model["fn"])
    except NotImplementedError:
        return per_observation(guide, log_density(guide), n) - per_observation(
            model, log_density(model), n
        )
    return per_observation(guide, scale_and_mask(kl, mask=guide["mask"]), n)
