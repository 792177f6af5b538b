"""The density of a guide at its own joint draws of the globals."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.ledger import Role
from pyrovi.posterior.density import global_nodes, log_density
from pyrovi.posterior.stories import guide_trace, latent_values
from pyrovi.posterior.vectorise import Story

LOG_Q = "log density of the guide"
"""Name of the density among the values of the globals."""


def guide_density_story(module: PyroBaseModule, example: Minibatch) -> Story:
    """One joint draw of the globals from the guide, and its log density: a scalar, :data:`LOG_Q`.

    The density is that of the sites in their own (constrained) space; auxiliary sites and
    ``pyro.factor`` terms of the guide count. It has to be evaluated where the draw is made: an
    automatic guide computes it from auxiliary sites, which a value given from outside would not
    fit.

    Parameters
    ----------
    module
        The pair; no part of its posterior may be a point.
    example
        Any minibatch: global sites do not depend on it.
    """
    names = module.ledger.names(Role.GLOBAL)

    def story(_: dict[str, Tensor]) -> dict[str, Tensor]:
        guide = guide_trace(module, example, {})
        total = torch.zeros((), dtype=torch.float64, device=example.indices.device)
        for observed in (False, True):
            for _name, node in global_nodes(guide, observed=observed):
                total = total + log_density(node).double().sum()
        latents = latent_values(guide)
        return {**{name: latents[name] for name in names}, LOG_Q: total}

    return story
