"""Batch and match: a normal approximation whose scores agree with those of the posterior."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyrovi._rng import generator
from pyrovi.posterior.compiled import ValueAndGradient, evaluate

Floats = NDArray[np.float64]


def batch_and_match(
    function: ValueAndGradient,
    mean: Floats,
    covariance: Floats,
    *,
    num_iterations: int = 60,
    num_draws: int = 16,
) -> tuple[Floats, Floats]:
    r"""Improve a normal approximation by the scores of the posterior at draws of it.

    Each iteration takes the normal that best matches the scores at the draws, penalised by its
    divergence from the last one, in closed form. A normal posterior is found exactly; from far
    away it takes some ten iterations, however badly scaled or correlated the coordinates are.

    Parameters
    ----------
    function
        Negative log density, and its gradient.
    mean, covariance
        Where to start, shapes ``(D,)`` and ``(D, D)``.
    num_iterations
        Number of iterations; the weight of the last normal grows over them.
    num_draws
        Evaluations of the gradient per iteration.

    Returns
    -------
    tuple
        Mean and covariance. Those of the last iteration where everything was finite.

    References
    ----------
    Cai, Modi, Pillaud-Vivien, Margossian, Gower, Blei & Saul 2024, Batch and match: black-box
    variational inference with a score-based divergence. Equations 8 to 10.
    """
    rng, dim = generator("batch and match"), len(mean)
    for iteration in range(num_iterations):
        noise = rng.standard_normal((num_draws, dim))
        draws = mean + noise @ np.linalg.cholesky(covariance).T
        scores = -evaluate(function, draws)[1]
        usable = np.isfinite(scores).all(1)
        if usable.sum() < 2:
            break
        try:
            moved = _matched(mean, covariance, draws[usable], scores[usable], iteration)
            np.linalg.cholesky(moved[1])
        except np.linalg.LinAlgError:
            break
        if not (np.isfinite(moved[0]).all() and np.isfinite(moved[1]).all()):
            break
        mean, covariance = moved
    return mean, covariance


def _matched(
    mean: Floats, covariance: Floats, draws: Floats, scores: Floats, iteration: int
) -> tuple[Floats, Floats]:
    weight = len(draws) * len(mean) / (iteration + 1)
    share = weight / (1 + weight)
    centre, score = draws.mean(0), scores.mean(0)
    spread = np.cov(draws.T, bias=True).reshape(covariance.shape)
    curvature = np.cov(scores.T, bias=True).reshape(covariance.shape)
    U = weight * curvature + share * np.outer(score, score)
    V = covariance + weight * spread + share * np.outer(mean - centre, mean - centre)
    # the positive definite root S of S U S + S = V
    factor = np.linalg.cholesky(V)
    values, vectors = np.linalg.eigh(factor.T @ U @ factor)
    roots = 2 / (1 + np.sqrt(1 + 4 * np.clip(values, 0, None)))
    half = factor @ vectors * np.sqrt(roots)
    updated = half @ half.T
    return (1 - share) * mean + share * (updated @ score + centre), updated
