"""Power-scaling: how a posterior changes if a component of the model counts a little more."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyrovi.posterior.pareto import psis

FloatArray = NDArray[np.float64]

_BLOCK = 2**22
"""Largest number of draws x quantities that are sorted at a time."""


def cjs_distance(draws: ArrayLike, weights: ArrayLike) -> FloatArray:
    r"""Cumulative Jensen-Shannon distance between draws and the same draws weighted.

    With :math:`P` and :math:`Q` the distribution functions without and with the weights and
    :math:`M = (P + Q) / 2`, the square root of

    .. math:: \frac{\int P \log_2 \frac{P}{M} + \int Q \log_2 \frac{Q}{M}}{\int P + \int Q}

    or of the same of the mirrored draws, whichever is larger.

    Parameters
    ----------
    draws
        Shape ``(S, K)``.
    weights
        Shape ``(S,)``, not negative.

    Returns
    -------
    numpy.ndarray
        Shape ``(K,)``, between 0 and 1; NaN where all draws are equal.

    References
    ----------
    Nguyen, Vreeken: Non-parametric Jensen-Shannon divergence. ECML PKDD (2015).
    """
    values, weight = np.asarray(draws, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    width = max(1, _BLOCK // len(values))
    blocks = []
    for start in range(0, values.shape[1], width):
        block = values[:, start : start + width]
        order = np.argsort(block, axis=0, kind="stable")
        ordered = np.take_along_axis(block, order, 0)
        steps, shares = np.diff(ordered, axis=0), (weight / weight.sum())[order]
        forward = _cjs(steps, shares)
        mirrored = _cjs(steps[::-1], shares[::-1])
        blocks.append(np.fmax(forward, mirrored))
    return np.concatenate(blocks) if blocks else np.zeros(0)


def power_scaling_sensitivity(
    draws: ArrayLike, log_component: ArrayLike, delta: float = 0.01
) -> tuple[FloatArray, float]:
    r"""Derivative of the distance by the power that a component is raised to.

    The posterior with the component :math:`c(\theta)` raised to the power :math:`\alpha` is the
    posterior weighed by :math:`c(\theta)^{\alpha - 1}`; the weights are Pareto-smoothed. The result
    is the mean slope of the distance per doubling of :math:`\alpha` between
    :math:`1 - \delta`, 1 and :math:`1 + \delta`.

    Parameters
    ----------
    draws
        Posterior draws, shape ``(S, K)``.
    log_component
        Log density of the component under each draw, shape ``(S,)``.
    delta
        Size of the change of the power.

    Returns
    -------
    tuple
        Sensitivities of shape ``(K,)``, and the larger Pareto shape of the two sets of weights.

    References
    ----------
    Kallioinen, Paananen, Bürkner, Vehtari: Detecting and diagnosing prior and likelihood
    sensitivity with power-scaling. Statistics and Computing 34, 57 (2024).
    """
    component = np.asarray(log_component, dtype=np.float64)
    powers = np.array([1 - delta, 1 + delta])
    log_weights, khat = psis((component - component.mean())[:, None] * (powers - 1))
    slopes = [
        cjs_distance(draws, np.exp(log_weights[:, i])) / abs(np.log2(power))
        for i, power in enumerate(powers)
    ]
    return np.asarray(np.mean(slopes, axis=0)), float(np.max(khat))


def _cjs(steps: FloatArray, shares: FloatArray) -> FloatArray:
    num_draws = len(shares)
    p = (np.arange(1, num_draws) / num_draws)[:, None]
    q = np.cumsum(shares, axis=0)[:-1]
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        of_q = np.where(q > 0, q * np.log2(q / middle), 0.0)
        divergence = (steps * (p * np.log2(p / middle) + of_q)).sum(0)
        bound = (steps * (p + q)).sum(0)
        return np.asarray(np.sqrt(np.maximum(divergence, 0.0) / bound))
