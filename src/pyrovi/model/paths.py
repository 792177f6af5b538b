"""``method="pathfinder"``: draws of several paths, weighted by importance."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._rng import derive_seed, generator
from pyrovi.errors import InferenceError, TrainingError
from pyrovi.model.methods import all_at_once, make_potential, refuse_locals, stored
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.compiled import ValueAndGradient
from pyrovi.posterior.pareto import importance_ess, psis
from pyrovi.posterior.pathfinder import run_path
from pyrovi.posterior.potential import Potential

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

__all__ = ["fit_pathfinder"]

KHAT = 0.7
"""Largest Pareto k-hat of weights that draws can be resampled by."""

FEW = 100
"""Effective number of draws that means and intervals need."""


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

    Where k-hat is good, draws are resampled with replacement: their moments are those of the
    weighted draws. Where it is above 0.7, a few draws would fill the result with copies of
    themselves, so they are taken without replacement (as the authors' implementation does): the
    result is between the approximation and the posterior, and keeps its spread.

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
        The draws, with ``lp`` and, the same for all, ``khat``, ``importance_ess`` (the effective
        number of the weighted draws) and ``num_distinct`` (how many of those kept differ); and the
        positions of the observations.

    Raises
    ------
    ModelError
        If there are local latents.
    InferenceError
        If no path has draws of finite density.

    Warns
    -----
    UserWarning
        If k-hat is above 0.7: the draws are those of the approximation, not of the posterior. If
        the effective number of draws is below 100 and below a tenth of those kept.
    """
    refuse_locals(model, "pathfinder")
    positions, minibatch = all_at_once(model, indices)
    potential = make_potential(model, minibatch, "pathfinder")
    result = pathfinder_draws(
        potential,
        num_samples=num_samples,
        num_paths=num_paths,
        num_draws_per_path=num_draws_per_path,
        max_iterations=max_iterations,
    )
    _warn(result, num_samples)
    constant = {
        "khat": result.khat,
        "importance_ess": result.importance_ess,
        "num_distinct": result.num_distinct,
    }
    statistics = {name: np.full((1, num_samples), value) for name, value in constant.items()}
    statistics = {"lp": result.log_density[None], **statistics}
    draws = result.draws[None]
    return stored(model, potential, minibatch, draws, positions, statistics), positions


def _warn(result: PathfinderDraws, num_samples: int) -> None:
    effective = f"effective number {result.importance_ess:.0f}, {result.num_distinct} distinct"
    if not result.khat <= KHAT:
        warnings.warn(
            f"The Pareto k-hat of Pathfinder's importance weights is {result.khat:.2f} (reliable "
            f"below {KHAT}; {effective} of {num_samples} draws): its normal approximations miss a "
            "part of the posterior, and so do these draws. Take them for a first look, or as "
            "initial values: method='nuts', init='pathfinder'. A non-centred parametrisation often "
            "helps.",
            stacklevel=5,
        )
    elif result.importance_ess < min(FEW, num_samples / 10):
        warnings.warn(
            f"Few of Pathfinder's draws carry the weight ({effective} of {num_samples} draws). "
            "Raise num_draws_per_path or num_paths, or use method='nuts'.",
            stacklevel=5,
        )


@dataclass(frozen=True)
class PathfinderDraws:
    """What the paths have come to together.

    Attributes
    ----------
    draws
        Unconstrained draws ``(num_samples, dim)``.
    log_density
        Their log densities, ``(num_samples,)``.
    khat
        Pareto shape of the importance weights of all candidates.
    importance_ess
        Effective number of candidates by their smoothed weights.
    num_distinct
        Number of different candidates among the draws.
    """

    draws: np.ndarray
    log_density: np.ndarray
    khat: float
    importance_ess: float
    num_distinct: int


def pathfinder_draws(
    potential: Potential,
    *,
    num_samples: int,
    num_paths: int = 4,
    num_draws_per_path: int = 1000,
    max_iterations: int = 1000,
    function: ValueAndGradient | None = None,
) -> PathfinderDraws:
    """Draws resampled from the candidates of several paths.

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
        raise InferenceError(
            "No draw of any path has a finite density. Check the model with method='map' or "
            "'nuts', or raise num_paths."
        )
    smoothed, khat = psis(weights)
    probabilities = np.exp(smoothed - np.logaddexp.reduce(smoothed))
    probabilities /= probabilities.sum()
    # copies of a few draws look like a posterior that they are not
    copies = bool(khat <= KHAT or np.count_nonzero(probabilities) < num_samples)
    random = generator("pathfinder", "resample")
    chosen = random.choice(len(draws), num_samples, replace=copies, p=probabilities)
    return PathfinderDraws(
        draws[chosen],
        np.array([-_value(function, draw) for draw in draws[chosen]]),
        float(khat),
        float(importance_ess(smoothed)),
        len(np.unique(chosen)),
    )


def _value(function: ValueAndGradient, position: np.ndarray) -> float:
    import torch

    vector = torch.from_numpy(np.ascontiguousarray(position)).to(function.potential.device)
    return float(function(vector)[0])
