"""Linear Gaussian factors of the largest likelihood, from a decomposition of the data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

from pyrovi._rng import generator

Floats = NDArray[np.float64]

_ROUNDS = 20
"""Turns of factor analysis. Ten leave nothing to gain in single precision."""

_SMALLEST_SHARE = 1e-6
"""Least share of a variable's variance that is left to the noise."""


def principal_components(
    centred: Floats, variance: Floats, n_factors: int
) -> tuple[Floats, Floats]:
    r"""The maximum of the likelihood under isotropic noise (Tipping & Bishop 1999, eq. 7 and 8).

    Parameters
    ----------
    centred
        Observations less their mean, shape ``(n, D)``.
    variance
        Variance of each variable, shape ``(D,)``.
    n_factors
        Number of factors :math:`k`.

    Returns
    -------
    tuple
        :math:`W` of shape ``(D, k)`` and :math:`\psi` of shape ``(D,)``.
    """
    eigenvalues, axes = leading_axes(centred, n_factors)
    others = max(variance.sum() - eigenvalues.sum(), _SMALLEST_SHARE * variance.sum())
    sigma2 = others / (len(variance) - n_factors)
    return axes * np.sqrt(np.maximum(eigenvalues - sigma2, 0)), np.full(len(variance), sigma2)


def common_factors(centred: Floats, variance: Floats, n_factors: int) -> tuple[Floats, Floats]:
    r"""The same with noise of each variable's own, by turns (Barber 2012, section 21.2).

    Given :math:`\psi` the best :math:`W` has a closed form, that of the components of
    :math:`\Psi^{-1/2} x`; given :math:`W`, the noise takes what is left of each variance. It starts
    from the correlations, so that units do not matter.
    """
    unit = np.sqrt(variance)
    W, _ = principal_components(centred / unit, np.ones(len(unit)), n_factors)
    W = W * unit[:, None]
    for _ in range(_ROUNDS):
        psi = np.maximum(variance - (W**2).sum(1), _SMALLEST_SHARE * variance)
        sd = np.sqrt(psi)
        eigenvalues, axes = leading_axes(centred / sd, n_factors)
        W = sd[:, None] * axes * np.sqrt(np.maximum(eigenvalues - 1, 0))
    return W, np.maximum(variance - (W**2).sum(1), _SMALLEST_SHARE * variance)


def leading_axes(centred: NDArray[np.floating[Any]], n_factors: int) -> tuple[Floats, Floats]:
    """Largest eigenvalues of the covariance, in falling order, and its axes ``(D, k)``.

    Of fewer than ``k`` observations or variables there are fewer.
    """
    smaller = min(centred.shape)
    if n_factors < smaller - 1:
        first = generator("start").standard_normal(smaller)
        _, lengths, axes = svds(centred, k=n_factors, v0=first)
        lengths, axes = lengths[::-1], axes[::-1]
    else:
        _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    return lengths[:n_factors] ** 2 / len(centred), axes[:n_factors].T
