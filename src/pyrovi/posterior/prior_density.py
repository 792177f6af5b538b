"""Log densities of what stands outside the observation plate: priors, and shared observations."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovi._rng import stream
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.base import PyroBaseModule, evaluation_mode
from pyrovi.module.ledger import Role
from pyrovi.posterior.density import global_nodes, log_density
from pyrovi.posterior.prior_draws import prior_factors
from pyrovi.posterior.stories import guide_trace, latent_values, model_trace
from pyrovi.posterior.vectorise import Story

SHARED = "shared likelihood"
"""Name of the log density of what is observed outside the observation plate."""


def prior_density_story(module: PyroBaseModule, example: Minibatch) -> Story:
    """Log prior density of each global site under one draw, a scalar each, and :data:`SHARED`.

    Each ``pyro.factor`` term of the prior (:func:`~pyrovi.posterior.prior_draws.prior_factors`) has
    an entry of its own, and is no part of the shared likelihood. Densities are masked as the story
    says, summed over the elements of a site, and not scaled.

    Parameters
    ----------
    module
        The pair.
    example
        Any minibatch: global sites do not depend on it.
    """
    names = {*module.ledger.names(Role.GLOBAL), *prior_factors(module.ledger)}

    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents = latent_values(guide_trace(module, example, values)) | values
        trace = model_trace(module, example, latents)
        densities = {
            name: log_density(node).double().sum()
            for observed in (False, True)
            for name, node in global_nodes(trace, observed=observed)
            if name in names
        }
        shared = torch.zeros((), dtype=torch.float64, device=example.indices.device)
        for name, node in global_nodes(trace, observed=True):
            if name not in names:
                shared = shared + log_density(node).double().sum()
        return densities | {SHARED: shared}

    return story


def prior_parents(module: PyroBaseModule, example: Minibatch) -> dict[str, list[str]]:
    """Global site -> the latent sites that its prior depends on; none for a top-level site.

    Found by automatic differentiation of the prior densities, so a dependence on a discrete site
    does not show.

    Parameters
    ----------
    module
        The pair.
    example
        Any minibatch.
    """
    with torch.no_grad(), evaluation_mode(module), stream("prior parents"):
        latents = latent_values(guide_trace(module, example, {}))
    leaves = {
        name: value.detach().clone().requires_grad_()
        for name, value in latents.items()
        if value.is_floating_point()
    }
    given = {name: leaves.get(name, value) for name, value in latents.items()}
    with (
        torch.enable_grad(),
        evaluation_mode(module),
        stream("prior parents"),
        pyro.validation_enabled(False),
    ):
        trace = model_trace(module, example, given)
        return {
            name: _parents(name, trace.nodes[name], leaves)
            for name in module.ledger.names(Role.GLOBAL)
        }


def top_level_priors(module: PyroBaseModule, example: Minibatch) -> list[str]:
    """Global sites whose priors say something by themselves: what a sensitivity analysis scales.

    They depend on no other latent site, and stand outside of all plates: the members of a plate are
    a population, whose standard normal offsets are a parametrisation and no prior opinion. If all
    sites stand in plates, they count. The ``pyro.factor`` terms of the prior are among them,
    whatever sites they depend on.

    Parameters
    ----------
    module
        The pair.
    example
        Any minibatch.
    """
    parents = prior_parents(module, example)
    top = [name for name, above in parents.items() if not above] + prior_factors(module.ledger)
    return [name for name in top if not module.ledger[name].plates] or top


def _parents(name: str, node: Any, leaves: dict[str, Tensor]) -> list[str]:
    density = node["fn"].log_prob(node["value"].detach()).sum()
    others = {other: leaf for other, leaf in leaves.items() if other != name}
    if not density.requires_grad or not others:
        return []
    gradients = torch.autograd.grad(
        density, list(others.values()), allow_unused=True, retain_graph=True
    )
    return [other for other, g in zip(others, gradients, strict=True) if g is not None]
