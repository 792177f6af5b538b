"""Point estimates: what inference gives a single value, without a posterior distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.base import PyroBaseModule, evaluation_mode
from pyrovi.module.handlers import is_random
from pyrovi.module.ledger import Role
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.density import log_density
from pyrovi.posterior.discrete import DiscreteTable, enumerates
from pyrovi.posterior.stories import guide_trace, latent_values, model_trace
from pyrovi.posterior.vectorise import map_draws

_DRAWS = 5
"""Draws of a guide: in single precision two may be equal by chance."""


def point_sites(module: PyroBaseModule, minibatch: Minibatch, *roles: Role) -> list[str]:
    """Continuous latent sites that the guide gives a single value: point estimates.

    All stored draws of such a site are equal (draws of MCMC may repeat each other, so that a few
    of them tell nothing), or several new draws of the guide, made on the random stream in effect.

    Parameters
    ----------
    module
        The pair.
    minibatch
        Any observations.
    roles
        Roles of the sites to look at.
    """
    names = [n for n in module.ledger.names(*roles) if not module.ledger[n].is_discrete]
    if not names:
        return []

    posterior = module.posterior
    if isinstance(posterior, StoredDraws):
        stored = {n: posterior.value(n).flatten(0, 1) for n in names if n in posterior.names}
        return [name for name, values in stored.items() if _constant(values)]

    def story(_: dict[str, Tensor]) -> dict[str, Tensor]:
        values = latent_values(guide_trace(module, minibatch, {}))
        return {name: values[name] for name in names if name in values}

    with evaluation_mode(module):
        draws = map_draws(story, {}, _DRAWS, module=module)
    return [name for name, values in draws.items() if _constant(values)]


def _constant(values: Tensor) -> bool:
    return bool((values == values[:1]).all())


def model_parameters(module: PyroBaseModule, minibatch: Minibatch) -> list[str]:
    """Trained parameters that the log density of the model (not the guide's) is a function of.

    They are found by automatic differentiation, so a parameter that the model shares with the
    guide counts, one of the guide alone does not, and neither do buffers and frozen parameters.

    Parameters
    ----------
    module
        The pair.
    minibatch
        Any observations.

    Returns
    -------
    list of str
        Names as in ``state_dict``.
    """
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if not parameters:
        return []
    with evaluation_mode(module):
        with torch.no_grad():
            latents = latent_values(guide_trace(module, minibatch, {}))
        with torch.enable_grad():
            total = _log_joint(module, minibatch, latents)
    if not total.requires_grad:
        return []
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return [name for name, g in zip(parameters, gradients, strict=True) if g is not None]


def _log_joint(module: PyroBaseModule, minibatch: Minibatch, latents: dict[str, Tensor]) -> Tensor:
    latents = {name: value.detach() for name, value in latents.items()}
    if enumerates(module, latents):
        trace = DiscreteTable(module, minibatch, latents).trace
    else:
        trace = model_trace(module, minibatch, latents)
    nodes = [node for node in trace.nodes.values() if is_random(node)]
    return sum((log_density(node).sum() for node in nodes), torch.zeros(()))
