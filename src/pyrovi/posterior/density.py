"""Log densities of the sites of a trace, for each observation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.handlers import is_random
from pyrovi.module.plates import OBS_PLATE


def obs_dim(node: Any) -> int | None:
    """Batch dimension of the observation plate at a site; ``None`` outside of it."""
    return next((f.dim for f in node["cond_indep_stack"] if f.name == OBS_PLATE), None)


def local_nodes(trace: poutine.Trace, *, observed: bool) -> Iterator[tuple[str, Any]]:
    """Random sites inside the observation plate."""
    for name, node in trace.nodes.items():
        if is_random(node) and node["is_observed"] == observed and obs_dim(node) is not None:
            yield name, node


def log_density(node: Any, scale: Any = 1.0) -> Tensor:
    """Log density of a site, of its batch shape: masked, but without any scale by default.

    The scale of a plate (``N / n``) or of ``poutine.scale`` weights a term of the objective; it is
    no part of the density of an observation.
    """
    return scale_and_mask(node["fn"].log_prob(node["value"]), scale, node["mask"])


def own_scale(node: Any, minibatch: Minibatch) -> Any:
    """Scale that the story gives a site (``poutine.scale``), without the plate's ``N / n``."""
    if obs_dim(node) is None:
        return node["scale"]
    return node["scale"] * (minibatch.n / minibatch.n_obs)


def per_observation(node: Any, values: Tensor, n: int, nesting: int | None = None) -> Tensor:
    """Sum what a site of the observation plate has per batch element into ``n`` observations.

    Parameters
    ----------
    node
        Trace node of the site.
    values
        Tensor of the site's batch shape, e.g. its log density.
    n
        Number of observations.
    nesting
        Number of rightmost dimensions that belong to plates; those to the left are of enumerated
        sites and are kept. ``None``: all belong to plates.

    Returns
    -------
    Tensor
        Shape ``(*enumerated, n)``.
    """
    dim = obs_dim(node)
    assert dim is not None
    enumerated = values.shape[:-nesting] if nesting is not None else ()
    full = values.expand(torch.broadcast_shapes(values.shape, (n,) + (1,) * (-dim - 1)))
    return full.movedim(dim, -1).reshape(*enumerated, -1, n).sum(-2)


def observation_density(
    trace: poutine.Trace, minibatch: Minibatch, *, observed: bool = False, scaled: bool = False
) -> Tensor:
    """Sum of the log densities of the local (latent or observed) sites, shape ``(n,)``.

    ``scaled`` weights each by the scale that the story gives it, as the objective does.
    """
    total = torch.zeros(minibatch.n, device=minibatch.indices.device)
    for _, node in local_nodes(trace, observed=observed):
        scale = own_scale(node, minibatch) if scaled else 1.0
        total = total + per_observation(node, log_density(node, scale), minibatch.n)
    return total


def global_nodes(trace: poutine.Trace, *, observed: bool) -> Iterator[tuple[str, Any]]:
    """Random sites outside the observation plate."""
    for name, node in trace.nodes.items():
        if is_random(node) and node["is_observed"] == observed and obs_dim(node) is None:
            yield name, node


def global_density(trace: poutine.Trace, *, observed: bool = False) -> Tensor:
    """Sum of the log densities of sites outside the plate, scaled as in the objective; a scalar."""
    total = torch.zeros(())
    for _, node in global_nodes(trace, observed=observed):
        values = log_density(node, node["scale"])
        total = total.to(values.device) + values.sum()
    return total
