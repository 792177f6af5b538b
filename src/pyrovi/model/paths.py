"""``method="pathfinder"``: draws of several paths, weighted by importance."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._rng import derive_seed, generator
from pyrovi.errors import TrainingError
from pyrovi.model.methods import all_at_once, make_potential, refuse_locals, stored
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.compiled import ValueAndGradient
from pyrovi.posterior.pareto import psis
from pyrovi.posterior.pathfinder import run_path
from pyrovi.posterior.potential import Potential

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

KHAT = 0.7
"""Largest Pareto k-hat of weights that draws can be resampled by."""


def fit_pathfinder(
    model: BaseModelClass,
    *,
    num_samples: int = 1000,
    num_paths: int = 4,
    num_draws_per_path: int = 1000,
    max_iterations: int = 1000,
    indices: Any = None,
) -> tuple[StoredDraws, np.ndarray]:
    """Multi-path Pathfinder: draws from the best normals along the paths of optimisers.

    Each path gives the normal approximation of largest ELBO on its way; the draws of all paths are
    resampled by Pareto-smoothed importance weights (Zhang et al. 2022, algorithm 2). It costs
    hundreds of gradients where MCMC costs tens of thousands.

    Parameters
    ----------
    model
        A model whose continuous latents are all global.
    num_samples
        Number of draws to keep.
    num_paths
        Number of paths, each from a random point of its own.
    num_draws_per_path
        Number of draws of each path to choose from.
    max_iterations
        Largest number of steps of each optimiser.
    indices
        Observations to use; ``None`` for all.

    Returns
    -------
    tuple
        The draws, with ``lp`` and ``khat`` (the same for all), and the positions of the
        observations.

    Raises
    ------
    ModelError
        If there are local latents.
    TrainingError
        If no path has draws of finite density.

    Warns
    -----
    UserWarning
        If k-hat is above 0.7: the draws are those of the approximation, not of the posterior.
    """
    refuse_locals(model, "pathfinder")
    positions, minibatch = all_at_once(model, indices)
    potential = make_potential(model, minibatch, "pathfinder")
    draws, density, khat = pathfinder_draws(
        potential,
        num_samples=num_samples,
        num_paths=num_paths,
        num_draws_per_path=num_draws_per_path,
        max_iterations=max_iterations,
    )
    if not khat <= KHAT:
        warnings.warn(
            f"The Pareto k-hat of Pathfinder's importance weights is {khat:.2f} (reliable below "
            f"{KHAT}): its normal approximations miss a part of the posterior, and so do these "
            "draws. Take them for a first look, or as initial values: method='nuts', "
            "init='pathfinder'. A non-centred parametrisation often helps.",
            stacklevel=4,
        )
    statistics = {"lp": density[None], "khat": np.full((1, num_samples), khat)}
    return stored(model, potential, minibatch, draws[None], positions, statistics), positions


def pathfinder_draws(
    potential: Potential,
    *,
    num_samples: int,
    num_paths: int = 4,
    num_draws_per_path: int = 1000,
    max_iterations: int = 1000,
    function: ValueAndGradient | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Unconstrained draws ``(num_samples, dim)``, their log densities, and k-hat.

    Parameters
    ----------
    potential
        The potential.
    num_samples, num_paths, num_draws_per_path, max_iterations
        As in :func:`fit_pathfinder`.
    function
        The potential with its gradient, if it has been recorded already.
    """
    if min(num_samples, num_paths, num_draws_per_path) < 1:
        raise TrainingError(
            "num_samples, num_paths and num_draws_per_path must be at least 1, got "
            f"{num_samples}, {num_paths} and {num_draws_per_path}."
        )
    function = function or ValueAndGradient(potential)
    paths = []
    for path in range(num_paths):
        point = potential.initial(derive_seed("pathfinder", path))
        initial = potential.flatten(point).cpu().numpy()
        paths.append(
            run_path(
                function,
                initial,
                path=path,
                num_draws=num_draws_per_path,
                max_iterations=max_iterations,
            )
        )
    draws = np.concatenate([path.draws for path in paths])
    weights = np.concatenate([path.log_weights for path in paths])
    if not np.isfinite(weights).any():
        raise TrainingError(
            "No draw of any path has a finite density. Check the model with method='map' or "
            "'nuts', or raise num_paths."
        )
    smoothed, khat = psis(weights)
    probabilities = np.exp(smoothed - np.logaddexp.reduce(smoothed))
    random = generator("pathfinder", "resample")
    chosen = random.choice(len(draws), num_samples, p=probabilities / probabilities.sum())
    density = np.array([-_value(function, draw) for draw in draws[chosen]])
    return draws[chosen], density, float(khat)


def _value(function: ValueAndGradient, position: np.ndarray) -> float:
    import torch

    vector = torch.from_numpy(np.ascontiguousarray(position)).to(function.potential.device)
    return float(function(vector)[0])
