"""Normal approximations of a posterior on the real line, found in about a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pyrovi._rng import derive_seed, generator
from pyrovi.errors import TrainingError
from pyrovi.model.modes import best_mode, normal_khat, refined_mode
from pyrovi.model.paths import KHAT
from pyrovi.posterior.batch_and_match import batch_and_match
from pyrovi.posterior.compiled import ValueAndGradient, evaluate
from pyrovi.posterior.curvature import hessian
from pyrovi.posterior.pathfinder import run_path
from pyrovi.posterior.potential import Potential

NUM_DRAWS = 64
"""Draws that an approximation is judged by."""

Normal = tuple[np.ndarray, np.ndarray]
"""Mean and covariance on the real line."""


def normal_approximations(potential: Potential, function: ValueAndGradient) -> Iterator[Normal]:
    """Candidates of very different kinds; none is right for every posterior.

    The best normal on a path of Pathfinder (Zhang et al. 2022), the same after a batch-and-match
    (:func:`~pyrovi.posterior.batch_and_match.batch_and_match`), a normal around the mean of the
    first with the curvature of the posterior there, and Laplace's approximation.

    Parameters
    ----------
    potential, function
        The potential, and its value and gradient.
    """
    point = potential.initial(derive_seed("start"))
    initial = potential.flatten(point).cpu().numpy()
    path = run_path(function, initial, path=0, num_draws=1)
    if _is_covariance(path.covariance):
        yield path.mean, path.covariance
        matched = batch_and_match(function, path.mean, path.covariance)
        if _is_covariance(matched[1]):
            yield matched
    curvature = hessian(potential, path.mean)
    if _is_covariance(curvature):
        yield path.mean, np.linalg.inv(curvature)
    try:
        best = best_mode(potential, num_starts=2, max_iterations=2000)
        mode, factor = refined_mode(potential, best)
    except TrainingError:
        return  # there is no mode, or no curvature at it: one candidate fewer
    yield mode, factor @ factor.T


def _is_covariance(matrix: np.ndarray) -> bool:
    if not np.isfinite(matrix).all():
        return False
    values = np.linalg.eigvalsh(matrix)
    return bool(values[0] > 1e-12 * values[-1])


@dataclass(frozen=True)
class Judgement:
    """What draws of a normal tell of it: its ELBO, up to a constant, and how far it is from exact.

    The roughness is the standard deviation of the path-derivative gradient of the ELBO, by the
    locations in units of the columns of the factor, of the noisiest of them.
    """

    elbo: float
    roughness: float


def judge(
    function: ValueAndGradient, mean: np.ndarray, factor: np.ndarray, noise: np.ndarray
) -> Judgement:
    """Judge a normal approximation.

    Parameters
    ----------
    function
        Negative log density and its gradient.
    mean, factor
        The normal is that of ``mean + factor @ noise``.
    noise
        Standard normal draws, ``(S, D)``.
    """
    values, gradients = evaluate(function, mean + noise @ factor.T)
    elbo = float(np.log(np.diagonal(factor)).sum() - values.mean())
    if not np.isfinite(elbo):
        return Judgement(-np.inf, np.inf)
    roughness = float((noise - gradients @ factor).std(0).max())
    return Judgement(elbo, roughness if np.isfinite(roughness) else np.inf)


def trusted_normal(potential: Potential, function: ValueAndGradient) -> Normal | None:
    r"""The best approximation, if importance weights say that it can be relied upon.

    Parameters
    ----------
    potential, function
        The potential, and its value and gradient.

    Returns
    -------
    tuple or None
        Mean and covariance; ``None`` if Pareto's :math:`\hat k` is above 0.7 (Vehtari et al. 2024).
    """
    noise = generator("normals").standard_normal((NUM_DRAWS, potential.dim))
    found = [
        (judge(function, mean, np.linalg.cholesky(covariance), noise).elbo, mean, covariance)
        for mean, covariance in normal_approximations(potential, function)
    ]
    if not found:
        return None
    elbo, mean, covariance = max(found, key=lambda each: each[0])
    if not np.isfinite(elbo):
        return None
    khat = normal_khat(function, mean, np.linalg.cholesky(covariance))
    return (mean, covariance) if khat <= KHAT else None
