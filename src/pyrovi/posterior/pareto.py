"""Pareto-smoothed importance sampling, for many sets of weights at once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyrovi.errors import DataError

Array = NDArray[np.float64]

EQUAL_WEIGHTS = 1e-3
"""Log weights that differ by less (nats) are equal: what is left is the rounding of densities."""

_BLOCK = 2**22
"""Largest number of elements of the array that the Pareto fit of some columns needs."""

_SHORTEST_TAIL = 5

FEWEST_DRAWS = 21
"""Fewest draws that a shape can be fitted to: a fifth of them is the tail."""


def psis(
    log_weights: ArrayLike, *, reff: float = 1.0, normalize: bool = True
) -> tuple[Array, Array]:
    r"""Smooth the largest importance weights by a generalised Pareto distribution.

    The shape :math:`\hat k` of the distribution that fits the tail says how far the weights can be
    trusted: below :func:`khat_threshold` estimates converge at a usable rate, above 1 the mean of
    the weights may not even exist.

    Parameters
    ----------
    log_weights
        Shape ``(S, ...)``: ``S`` draws along the first axis, one set of weights for each element of
        the others. ``-inf`` is a weight of zero.
    reff
        Relative efficiency of the draws (effective number / number); 1 for independent draws.
    normalize
        Return log weights whose exponentials sum to one over the draws.

    Returns
    -------
    tuple
        Smoothed log weights of shape ``(S, ...)`` and :math:`\hat k` of shape ``(...)``, in double
        precision. :math:`\hat k` is infinite if the tail has fewer than five weights (fewer than 21
        draws, or ties), 0 if all weights are equal to within 0.1 %, and NaN, like the weights, if a
        log weight is NaN or ``inf`` or all are ``-inf``.

    Raises
    ------
    DataError
        If there are no draws, or ``reff`` is not positive.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao, Gabry: Pareto smoothed importance sampling. Journal of Machine
    Learning Research 25, 1-58 (2024).

    Zhang, Stephens: A new and efficient estimation method for the generalized Pareto distribution.
    Technometrics 51, 316-325 (2009).
    """
    given = np.asarray(log_weights, dtype=np.float64)
    if given.ndim == 0 or not len(given):
        raise DataError(
            f"log_weights has shape {given.shape}; its first axis has to be the draws, at least "
            "one."
        )
    if not reff > 0:
        raise DataError(f"reff must be positive (1 for independent draws), got {reff}.")
    num_draws = len(given)
    smoothed = given.reshape(num_draws, -1).copy()
    largest = smoothed.max(0)  # NaN if any is NaN
    valid = np.isfinite(largest)
    smoothed[:, ~valid] = np.nan
    smoothed[:, valid] -= largest[valid]

    khat = np.full(smoothed.shape[1], np.inf)
    khat[~valid] = np.nan
    length = math.ceil(min(num_draws / 5, 3 * math.sqrt(num_draws / reff)))
    if length >= _SHORTEST_TAIL and valid.any():
        columns = np.flatnonzero(valid)
        width = max(1, _BLOCK // (length * _grid_size(length)))
        for start in range(0, len(columns), width):
            block = columns[start : start + width]
            part = smoothed[:, block]
            khat[block] = _smooth_tails(part, length)
            smoothed[:, block] = part
    with np.errstate(invalid="ignore"):
        span = largest - given.reshape(num_draws, -1).min(0)
    khat[valid & (span < EQUAL_WEIGHTS)] = 0.0

    if normalize:
        smoothed -= np.log(np.exp(smoothed).sum(0))
    else:
        smoothed[:, valid] += largest[valid]
    return smoothed.reshape(given.shape), khat.reshape(given.shape[1:])


def khat_threshold(num_draws: int) -> float:
    r"""Largest :math:`\hat k` with which ``num_draws`` draws give reliable estimates.

    Parameters
    ----------
    num_draws
        Number of draws ``S``.

    Returns
    -------
    float
        ``min(1 - 1 / log10(S), 0.7)``; ``-inf`` for a single draw.

    References
    ----------
    Vehtari et al. (2024), section 3.2.4.
    """
    return -math.inf if num_draws <= 1 else min(1 - 1 / math.log10(num_draws), 0.7)


def importance_ess(log_weights: ArrayLike) -> Array:
    r"""Effective number of draws of importance weights, :math:`(\sum w)^2 / \sum w^2`.

    Parameters
    ----------
    log_weights
        Shape ``(S, ...)``, the draws along the first axis; normalised or not.

    Returns
    -------
    numpy.ndarray
        Shape ``(...)``, between 1 and ``S``.

    References
    ----------
    Kong, Liu, Wong: Sequential imputations and Bayesian missing data problems. Journal of the
    American Statistical Association 89, 278-288 (1994).
    """
    given = np.asarray(log_weights, dtype=np.float64)
    weights = np.exp(given - given.max(0))
    effective: Array = weights.sum(0) ** 2 / (weights**2).sum(0)
    return effective


def _smooth_tails(log_weights: Array, length: int) -> Array:
    """Smooth columns of log weights (largest 0) in place; returns the shape of each tail."""
    order = np.argsort(log_weights, axis=0)
    tail_order = order[-length:]
    tails = np.take_along_axis(log_weights, tail_order, 0)
    at_cutoff = log_weights[order[-length - 1], np.arange(log_weights.shape[1])]
    cutoff = np.maximum(at_cutoff, np.log(np.finfo(float).tiny))
    # ties with the cutoff belong to the body, so tails may be shorter
    lengths = (tails > cutoff).sum(0)
    khat = np.full(log_weights.shape[1], np.inf)
    for size in np.unique(lengths[lengths >= _SHORTEST_TAIL]):
        columns = np.flatnonzero(lengths == size)
        threshold = np.exp(cutoff[columns])
        excess = np.exp(tails[-size:, columns]) - threshold
        shape, scale = _fit_pareto(excess)
        khat[columns] = shape
        expected = np.log(_pareto_quantiles(shape, scale, int(size)) + threshold)
        fitted = np.isfinite(shape)
        rows = tail_order[-size:, columns[fitted]]
        # no weight may exceed the largest raw one
        log_weights[rows, columns[fitted]] = np.minimum(expected[:, fitted], 0.0)
    return khat


def _grid_size(length: int) -> int:
    return 30 + int(math.sqrt(length))


def _fit_pareto(excess: Array) -> tuple[Array, Array]:
    """Shape and scale of generalised Pareto distributions for sorted columns ``(n, columns)``.

    The empirical-Bayes estimate of Zhang and Stephens (2009), with the weakly informative prior of
    Vehtari et al. (2024) on the shape.
    """
    n = len(excess)
    size = _grid_size(n)
    points = np.arange(1, size + 1) - 0.5
    quarter = excess[int(n / 4 + 0.5) - 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        b = (1 - np.sqrt(size / points))[:, None] / (3 * quarter) + 1 / excess[-1]
        k = np.log1p(-b[:, None] * excess).mean(1)
        profile = n * (np.log(-(b / k)) - k - 1)
        weights = np.exp(profile - profile.max(0))
        weights /= weights.sum(0)
        weights[weights < 10 * np.finfo(float).eps] = 0.0
        weights /= weights.sum(0)
        mean_b = (b * weights).sum(0)
        raw = np.log1p(-mean_b * excess).mean(0)
        scale = -raw / mean_b
    return (n * raw + 5) / (n + 10), scale


def _pareto_quantiles(shape: Array, scale: Array, n: int) -> Array:
    """Quantiles at ``(i + 1/2) / n``, shape ``(n, columns)``."""
    log_survival = np.log1p(-(np.arange(0.5, n) / n))[:, None]
    exponential = np.abs(shape) < np.finfo(float).eps
    safe = np.where(exponential, 1.0, shape)
    quantiles: Array = np.where(exponential, -log_survival, np.expm1(-safe * log_survival) / safe)
    return quantiles * scale
