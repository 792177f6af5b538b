"""Start of SVI near the posterior: locations and scales of a guide from a normal approximation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrovi._rng import generator
from pyrovi.errors import TrainingError
from pyrovi.model.methods import all_at_once
from pyrovi.model.modes import best_mode
from pyrovi.model.normals import NUM_DRAWS, judge, normal_approximations
from pyrovi.module.guides import StoryGuide
from pyrovi.module.guides.families import Point
from pyrovi.posterior.compiled import ValueAndGradient
from pyrovi.posterior.potential import Potential

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

__all__ = ["start_near_posterior"]

MAX_DIM = 500
"""Largest number of coordinates: the covariance has the square of that."""

MAX_ELEMENTS = 2**24
"""Largest number of values of a minibatch of all observations."""


def can_start_near(model: BaseModelClass) -> bool:
    """Whether the guide has locations and scales of global sites alone, and the data are small."""
    guide = model.module.guide
    if not isinstance(guide, StoryGuide) or guide.locals is not None or guide.globals is None:
        return False
    if not hasattr(guide.globals, "start_at") or _dim(guide) > MAX_DIM:
        return False
    return int(model.adata_manager.n_obs) * values_per_observation(model) <= MAX_ELEMENTS


def values_per_observation(model: BaseModelClass) -> int:
    """Numbers in the tensors that a minibatch has of each observation."""
    entries = model.registry["field_registries"].values()
    return sum(int(np.prod(e["tensor"]["shape"])) for e in entries if e["tensor"] is not None)


def start_near_posterior(model: BaseModelClass, indices: Any = None) -> float:
    """Put the guide where SVI has little left to do, if that is better than where it is.

    Candidates are the guide's own initial values and some :func:`normal_approximations`. The one
    with the largest ELBO, as the guide's family can hold it, is taken. A guide of points takes the
    mode.

    Parameters
    ----------
    model
        A model for which :func:`can_start_near` holds.
    indices
        Observations to use.

    Returns
    -------
    float
        Standard deviation of the gradient of the ELBO from single draws, by the locations in units
        of their scales, of the noisiest coordinate: 0 where the guide has become the posterior.
        Infinite if the guide stays where it is, or has other parameters to learn.
    """
    guide = model.module.guide
    _, minibatch = all_at_once(model, indices)
    if isinstance(guide.globals, Point):
        _take_mode(guide, Potential(model.module, minibatch, jacobian=guide.globals.on_real_line))
        return np.inf
    potential = Potential(model.module, minibatch)
    order = _order(potential, guide)
    function = ValueAndGradient(potential)
    noise = generator("start").standard_normal((NUM_DRAWS, potential.dim))
    best, elbo, roughness = None, _own_elbo(function, guide, order, noise), np.inf
    for mean, covariance in normal_approximations(potential, function):
        if guide.family == "normal":
            covariance = np.diag(1 / np.diagonal(np.linalg.inv(covariance)))
        found = judge(function, mean, np.linalg.cholesky(covariance), noise)
        if found.elbo > elbo:
            best, elbo, roughness = (mean, covariance), found.elbo, found.roughness
    if best is not None:
        like = next(guide.parameters())
        start = torch.as_tensor(best[0][order]).to(like)
        guide.globals.start_at(start, torch.as_tensor(best[1][np.ix_(order, order)]).to(like))
    return roughness if guide.family in ("normal", "mvn") else np.inf


def _take_mode(guide: Any, potential: Potential) -> None:
    best = best_mode(potential, num_starts=2, max_iterations=2000)
    like = next(guide.parameters())
    order = _order(potential, guide)
    guide.globals.start_at(torch.as_tensor(best.position[order]).to(like))


def _dim(guide: Any) -> int:
    return sum(site.initial.numel() for site in guide.globals.sites)


def _order(potential: Potential, guide: Any) -> np.ndarray:
    """Position in the potential's vector of each coordinate of the guide, in the guide's order."""
    positions = potential.unflatten(torch.arange(potential.dim, dtype=torch.float64))
    names = [site.name for site in guide.globals.sites]
    return torch.cat([positions[name].reshape(-1) for name in names]).long().numpy()


def _own_elbo(
    function: ValueAndGradient, guide: Any, order: np.ndarray, noise: np.ndarray
) -> float:
    """ELBO of the guide's initial values."""
    initial = torch.cat([site.initial.reshape(-1) for site in guide.globals.sites])
    mean = np.empty(len(order))
    mean[order] = initial.detach().cpu().double().numpy()
    return judge(function, mean, guide.init_scale * np.eye(len(order)), noise).elbo


STARTS = {"pathfinder": start_near_posterior}
"""Ways to start that every model has; a class adds its own in ``starts``."""


def check_start(start: str | None, model: BaseModelClass) -> None:
    """Refuse a way to start that is unknown, or that the model has no use for.

    Raises
    ------
    TrainingError
        Saying what could be used.
    """
    if start is not None and start not in model.starts:
        known = " or ".join(map(repr, [None, *model.starts]))
        raise TrainingError(f"start must be {known}, got {start!r}.")
    if start == "pathfinder" and not can_start_near(model):
        raise TrainingError(
            "start='pathfinder' places locations and scales of a guide by name whose sites are all "
            f"global, with at most {MAX_DIM} coordinates, by all observations at once. Leave it "
            "out."
        )
