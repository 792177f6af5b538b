"""Evidence bounds of given observations: the ELBO and importance-weighted marginal likelihoods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.handlers import is_random
from pyrovi.posterior.stories import guide_trace, latent_values, model_trace, obs_dim
from pyrovi.posterior.vectorise import Story


def elbo_story(module: PyroBaseModule, minibatch: Minibatch) -> Story:
    """Parts of the ELBO of each observation under one draw, each of shape ``(n,)``.

    ``reconstruction`` is the log-likelihood; ``kl_local`` the KL of the local latents, in closed
    form where there is one and estimated by the draw where not.
    """

    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        guide, model = _traces(module, minibatch, values)
        pairs = [(guide.nodes.get(name), node) for name, node in _local(model, observed=False)]
        if any(q is None for q, _ in pairs) or _has_auxiliary(guide):
            kl = _density(guide, minibatch) - _density(model, minibatch)
        else:
            kl = _zeros(minibatch) + sum(_kl(q, p, minibatch.n) for q, p in pairs)
        return {"reconstruction": _density(model, minibatch, observed=True), "kl_local": kl}

    return story


def importance_story(module: PyroBaseModule, minibatch: Minibatch) -> Story:
    r"""Log importance weight of each observation given the globals ``g``, shape ``(n,)``.

    .. math:: \log p(x_n, z_n \mid g) - \log q(z_n \mid x_n, g)

    The log of its mean over draws of :math:`z_n` estimates the marginal log-likelihood
    :math:`\log p(x_n \mid g)` from below (Burda et al. 2016, eq. 8). Every observation has its own
    weights: a joint weight over a plate is neither a bound nor finite in practice.
    """

    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        guide, model = _traces(module, minibatch, values)
        weight = _density(model, minibatch, observed=True) + _density(model, minibatch)
        return {"log_weight": weight - _density(guide, minibatch)}

    return story


def likelihood_story(module: PyroBaseModule, minibatch: Minibatch, sites: Sequence[str]) -> Story:
    """Log-likelihood of each observation under one joint draw, by observed site."""

    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        _, model = _traces(module, minibatch, values)
        result = {}
        for name in sites:
            node = model.nodes[name]
            result[name] = per_observation(node, node["fn"].log_prob(node["value"]), minibatch.n)
        return result

    return story


def global_kl_story(module: PyroBaseModule, minibatch: Minibatch) -> Story:
    """Estimate, by one draw, of the KL of the global latents (a scalar, not per observation)."""

    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        guide, model = _traces(module, minibatch, values)
        return {"kl_global": _global_density(guide) - _global_density(model)}

    return story


def _traces(
    module: PyroBaseModule, minibatch: Minibatch, values: dict[str, Tensor]
) -> tuple[poutine.Trace, poutine.Trace]:
    guide = guide_trace(module, minibatch, values)
    return guide, model_trace(module, minibatch, latent_values(guide))


def _local(trace: poutine.Trace, *, observed: bool) -> Iterator[tuple[str, Any]]:
    for name, node in trace.nodes.items():
        if is_random(node) and node["is_observed"] == observed and obs_dim(node) is not None:
            yield name, node


def _density(trace: poutine.Trace, minibatch: Minibatch, *, observed: bool = False) -> Tensor:
    """Sum of the unscaled log densities of the local sites, for each observation."""
    total = _zeros(minibatch)
    for _, node in _local(trace, observed=observed):
        total = total + per_observation(node, node["fn"].log_prob(node["value"]), minibatch.n)
    return total


def _global_density(trace: poutine.Trace) -> Tensor:
    total = torch.zeros(())
    for node in trace.nodes.values():
        if is_random(node) and not node["is_observed"] and obs_dim(node) is None:
            log_prob = node["fn"].log_prob(node["value"])
            total = total + scale_and_mask(log_prob, node["scale"], node["mask"]).sum()
    return total


def _kl(guide: Any, model: Any, n: int) -> Tensor:
    try:
        kl = kl_divergence(guide["fn"], model["fn"])
    except NotImplementedError:
        kl = guide["fn"].log_prob(guide["value"]) - model["fn"].log_prob(model["value"])
    return per_observation(guide, kl, n)


def _has_auxiliary(trace: poutine.Trace) -> bool:
    return any(
        node["type"] == "sample" and node["infer"].get("is_auxiliary")
        for node in trace.nodes.values()
    )


def _zeros(minibatch: Minibatch) -> Tensor:
    return torch.zeros(minibatch.n, device=minibatch.indices.device)


def per_observation(node: Any, values: Tensor, n: int) -> Tensor:
    """Sum what a site of the observation plate has per batch element into ``n`` observations.

    Parameters
    ----------
    node
        Trace node of the site.
    values
        Tensor of the site's batch shape, e.g. its log density.
    n
        Number of observations.
    """
    values = scale_and_mask(values, mask=node["mask"])
    dim = obs_dim(node)
    assert dim is not None
    moved = values.expand(torch.broadcast_shapes(values.shape, (n,) + (1,) * (-dim - 1)))
    return moved.movedim(dim, -1).reshape(-1, n).sum(0)
