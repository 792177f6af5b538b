"""Evidence bounds of given observations: the ELBO and importance-weighted marginal likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.closed_forms import closed_form_sites
from pyrovi.posterior.density import (
    global_density,
    global_nodes,
    local_nodes,
    log_density,
    observation_density,
    own_scale,
    per_observation,
)
from pyrovi.posterior.discrete import DiscreteTable, enumerates
from pyrovi.posterior.stories import guide_trace, latent_values, model_trace, proposal_trace
from pyrovi.posterior.vectorise import Story


def elbo_story(module: PyroBaseModule, minibatch: Minibatch) -> Story:
    """Parts of the ELBO of each observation under one draw, of shape ``(n,)``, and what is shared.

    ``reconstruction`` is the log-likelihood; ``kl_local`` the KL of the local latents, in closed
    form if training takes it so (``TraceMeanField_ELBO``) and there is one, else estimated by the
    draw. Enumerated sites, and what depends on them, are summed out within ``reconstruction``.
    ``shared``, a scalar, is the log density of what is observed outside the observation plate.
    Masks and the story's own scales weigh as they do in training; the plate's ``N / n`` does not.
    """
    closed_form = takes_closed_forms(module)

    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        guide = guide_trace(module, minibatch, values)
        latents = latent_values(guide)
        if enumerates(module, latents):
            table = DiscreteTable(module, minibatch, latents, scaled=True)
            guided = _guide_density(guide, minibatch, scaled=True)
            return {
                "reconstruction": table.density(observed=True),
                "kl_local": guided - table.density(observed=False),
                "shared": global_density(table.trace, observed=True),
            }
        model = model_trace(module, minibatch, latents)
        return {
            "reconstruction": observation_density(model, minibatch, observed=True, scaled=True),
            "kl_local": _kl_local(guide, model, minibatch, closed_form),
            "shared": global_density(model, observed=True),
        }

    return story


def importance_story(module: PyroBaseModule, minibatch: Minibatch) -> Story:
    r"""Log importance weight of each observation given the globals ``g``, shape ``(n,)``.

    .. math:: \log p(x_n, z_n \mid g) - \log q(z_n \mid x_n, g)

    The log of its mean over draws of :math:`z_n` estimates the marginal log-likelihood
    :math:`\log p(x_n \mid g)` from below (Burda et al. 2016, eq. 8). Every observation has its own
    weights: a joint weight over a plate is neither a bound nor finite in practice.
    """

    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        guide = proposal_trace(module, minibatch, values)
        latents = latent_values(guide)
        if enumerates(module, latents):
            table = DiscreteTable(module, minibatch, latents)
            joint = table.density(observed=True) + table.density(observed=False)
        else:
            model = model_trace(module, minibatch, latents)
            joint = observation_density(model, minibatch, observed=True)
            joint = joint + observation_density(model, minibatch)
        return {"log_weight": joint - _guide_density(guide, minibatch, scaled=False)}

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
    """KL of the global latents (a scalar, not per observation): by one draw, or in closed form.

    The globals have to be drawn by the story itself: an automatic guide computes the density of a
    value from auxiliary sites, which a value given from outside would not fit.
    """
    closed_form = takes_closed_forms(module)

    def story(_: dict[str, Tensor]) -> dict[str, Tensor]:
        guide = guide_trace(module, minibatch, {})
        model = model_trace(module, minibatch, latent_values(guide))
        return {"kl_global": _kl_global(guide, model, closed_form)}

    return story


def takes_closed_forms(module: PyroBaseModule) -> bool:
    """Whether training takes KL terms in closed form."""
    return isinstance(module.default_elbo(), TraceMeanField_ELBO)


def _guide_density(guide: poutine.Trace, minibatch: Minibatch, *, scaled: bool) -> Tensor:
    """Log density of the local draws of a guide, its ``pyro.factor`` terms included."""
    latent = observation_density(guide, minibatch, scaled=scaled)
    return latent + observation_density(guide, minibatch, observed=True, scaled=scaled)


def _kl_local(
    guide: poutine.Trace, model: poutine.Trace, minibatch: Minibatch, closed_form: bool
) -> Tensor:
    if not closed_form:
        guided = _guide_density(guide, minibatch, scaled=True)
        return guided - observation_density(model, minibatch, scaled=True)
    n = minibatch.n
    total = torch.zeros(n, device=minibatch.indices.device)
    latent = dict(local_nodes(model, observed=False))
    closed = closed_form_sites(model, guide)
    drawn = [*local_nodes(guide, observed=False), *local_nodes(guide, observed=True)]
    for name, q in drawn:
        scale = own_scale(q, minibatch)
        p = latent.pop(name, None)
        exact = _closed_form(q, p, scale) if p is not None and name in closed else None
        if exact is not None:
            total = total + per_observation(q, exact, n)
            continue
        total = total + per_observation(q, log_density(q, scale), n)
        if p is not None:
            total = total - per_observation(p, log_density(p, own_scale(p, minibatch)), n)
    return total


def _kl_global(guide: poutine.Trace, model: poutine.Trace, closed_form: bool) -> Tensor:
    if not closed_form:
        of_guide = global_density(guide) + global_density(guide, observed=True)
        return of_guide - global_density(model)
    total = torch.zeros(())
    latent = dict(global_nodes(model, observed=False))
    closed = closed_form_sites(model, guide)
    drawn = [*global_nodes(guide, observed=False), *global_nodes(guide, observed=True)]
    for name, q in drawn:
        p = latent.pop(name, None)
        exact = _closed_form(q, p, q["scale"]) if p is not None and name in closed else None
        term = log_density(q, q["scale"]).sum() if exact is None else exact.sum()
        total = total.to(term.device) + term
        if p is not None and exact is None:
            total = total - log_density(p, p["scale"]).sum()
    return total


def _closed_form(guide: Any, model: Any, scale: Any) -> Tensor | None:
    """KL of a site as ``TraceMeanField_ELBO`` takes it: with the mask of the guide."""
    try:
        kl = kl_divergence(guide["fn"], model["fn"])
    except NotImplementedError:
        return None
    return scale_and_mask(kl, scale, guide["mask"])
