"""``method="map"`` and ``method="laplace"``: the posterior mode, and a normal around it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrovi._rng import derive_seed, generator
from pyrovi.errors import InferenceError, TrainingError
from pyrovi.model.methods import (
    all_at_once,
    make_potential,
    refuse_locals,
    stored,
)
from pyrovi.model.paths import KHAT
from pyrovi.module.stored import NormalPosterior, StoredDraws
from pyrovi.posterior.compiled import ValueAndGradient, evaluate
from pyrovi.posterior.curvature import hessian, normal_factor
from pyrovi.posterior.optimum import Optimum, minimise
from pyrovi.posterior.pareto import psis
from pyrovi.posterior.potential import Potential

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

__all__ = ["fit_laplace", "fit_map"]

_WEIGHED_DRAWS = 500


def fit_map(
    model: BaseModelClass,
    *,
    num_starts: int = 4,
    max_iterations: int = 2000,
    indices: Any = None,
) -> tuple[StoredDraws, np.ndarray]:
    """Posterior mode of all latents, globals and locals, by L-BFGS from several random points.

    The mode is that of the density of the latents as the story has them, in their own supports (as
    Stan's optimiser has it), not of the unconstrained variables that it is sought in. Enumerated
    sites are summed out.

    Parameters
    ----------
    model
        The model.
    num_starts
        Number of points to start from; the best end is taken.
    max_iterations
        Largest number of steps from each.
    indices
        Observations to use; ``None`` for all.

    Returns
    -------
    tuple
        The mode as a single stored draw, and the positions of the observations.

    Raises
    ------
    ModelError
        If a site is discrete, or no point of finite density can be found.

    Warns
    -----
    UserWarning
        If no run has converged: a hierarchical scale, for instance, often has its mode at zero,
        where the density is infinite.
    """
    positions, minibatch = all_at_once(model, indices)
    potential = make_potential(model, minibatch, "map", jacobian=False)
    best = best_mode(potential, num_starts, max_iterations)
    if not best.converged:
        warnings.warn(
            f"No run of the optimiser has converged ({best.message}). If a scale goes to zero (or "
            "a correlation to one), the joint density has no mode: see model.sample_posterior(), "
            "which has its last point. Use method='nuts' or 'svi', a prior that keeps the scale "
            "away from zero, or a larger max_iterations.",
            stacklevel=4,
        )
    draws = best.position[None, None]
    statistics = {"lp": np.array([[-best.value]])}
    return stored(model, potential, minibatch, draws, positions, statistics), positions


def fit_laplace(
    model: BaseModelClass,
    *,
    num_starts: int = 4,
    max_iterations: int = 2000,
    indices: Any = None,
) -> tuple[NormalPosterior, np.ndarray]:
    """Laplace's approximation: a normal at the mode of the unconstrained density.

    Its covariance is the inverse of the Hessian of the potential. It is exact if the posterior is
    normal in unconstrained space.

    Parameters
    ----------
    model
        A model whose continuous latents are all global.
    num_starts, max_iterations, indices
        As in :func:`fit_map`.

    Returns
    -------
    tuple
        The normal, and the positions of the observations.

    Raises
    ------
    ModelError
        If there are local latents.
    InferenceError
        If the optimiser does not converge, or the density is not curved in all directions there.

    Warns
    -----
    UserWarning
        If the Pareto k-hat of the normal's importance weights is above 0.7: it misses a part of the
        posterior.
    """
    refuse_locals(model, "laplace")
    positions, minibatch = all_at_once(model, indices)
    potential = make_potential(model, minibatch, "laplace")
    best = best_mode(potential, num_starts, max_iterations)
    mode, factor = refined_mode(potential, best)
    _warn_of_misfit(normal_khat(ValueAndGradient(potential), mode, factor))
    # the precision of what the model computes in, as for stored draws
    like = stored(model, potential, minibatch, mode[None, None], positions)
    dtype = like.value(potential.names[0]).dtype
    sites = {
        name: (model.sites[name].support, potential.unconstrained_shapes[name])
        for name in potential.names
    }
    loc, scale_tril = torch.as_tensor(mode).to(dtype), torch.as_tensor(factor).to(dtype)
    return NormalPosterior(loc, scale_tril, sites), positions


def _warn_of_misfit(khat: float) -> None:
    if khat <= KHAT:
        return
    warnings.warn(
        f"The Pareto k-hat of the importance weights of Laplace's approximation is {khat:.2f} "
        f"(reliable below {KHAT}): the posterior is no normal around its mode in "
        "unconstrained space, so that means and standard deviations may be wrong by much. Use "
        "method='nuts', or guide='mvn' with method='svi'. A non-centred parametrisation often "
        "helps.",
        stacklevel=5,
    )


def normal_khat(function: ValueAndGradient, mean: np.ndarray, factor: np.ndarray) -> float:
    """Pareto k-hat of the importance weights of a normal as an approximation of the posterior.

    Parameters
    ----------
    function
        The potential, with its gradient.
    mean, factor
        Mean ``(dim,)``, and ``(dim, dim)`` factor of the covariance.
    """
    noise = generator("laplace").standard_normal((_WEIGHED_DRAWS, len(mean)))
    weights = 0.5 * np.square(noise).sum(1) - evaluate(function, mean + noise @ factor.T)[0]
    return float(psis(np.where(np.isnan(weights), -np.inf, weights))[1])


def best_mode(potential: Potential, num_starts: int, max_iterations: int) -> Optimum:
    """The best end of several runs of the optimiser.

    Parameters
    ----------
    potential
        The potential.
    num_starts, max_iterations
        As in :func:`fit_map`.
    """
    if num_starts < 1:
        raise TrainingError(f"num_starts must be at least 1, got {num_starts}.")
    function = ValueAndGradient(potential)
    ends = []
    for start in range(num_starts):
        point = potential.initial(derive_seed("mode", start))
        initial = potential.flatten(point).cpu().numpy()
        ends.append(minimise(function, initial, max_iterations=max_iterations))
    converged = [end for end in ends if end.converged]
    return min(converged or ends, key=lambda end: end.value)


def refined_mode(potential: Potential, best: Optimum) -> tuple[np.ndarray, np.ndarray]:
    """Mode by a few steps of Newton's method, and the factor of the covariance there."""
    position = best.position
    for _ in range(5):
        curvature = hessian(potential, position)
        factor = normal_factor(curvature, potential)
        function = ValueAndGradient(potential, compiled=False)
        gradient = function(torch.from_numpy(position).to(potential.device))[1].cpu().numpy()
        step = factor @ (factor.T @ gradient)
        position = position - step
        distance = np.linalg.norm(np.linalg.solve(factor, step))  # in standard deviations
        if distance < 1e-8:
            break
    if distance > 1e-3:  # what is between is rounding, of tensors of single precision in the story
        raise InferenceError(
            f"The optimiser has not come to a mode ({best.message}): Newton's method goes on from "
            "there. Raise max_iterations, or use method='pathfinder' or 'nuts', which need no mode."
        )
    return position, normal_factor(hessian(potential, position), potential)
