r"""Loops over counts and their parameters, compiled by numba: log masses and their derivatives.

Each loop goes over rows twice while they are in the cache: once over all values as if all counts
were zero, which the compiler vectorises, and once over the counts above zero, in double precision.

With :math:`r = \mu / \theta`, :math:`g = 1 / (1 + r)` and :math:`t = \log(1 + r)`, a count of zero
has :math:`\log p = -\theta t`, and its derivatives are :math:`-g` by :math:`\mu` and
:math:`1 - g - t` by :math:`\theta`.

A loop takes matrices of counts, parameters, values to write and derivatives to write (``None``:
none are wanted), and the first and last row to work on. A matrix of counts or of :math:`\theta`
with fewer rows is repeated.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from pyrovi._loops import compiled

_FEW = 16
"""Counts up to this one take products in place of gamma functions."""

_INVERSE_FACTORIALS = np.array([1 / math.factorial(k) for k in range(_FEW + 1)])

# -------------------------------------------------------------------------- functions of one value


def _log(u):  # type: ignore[no-untyped-def]
    """Logarithm of a positive number, in a form that is vectorised."""


def _exp(x):  # type: ignore[no-untyped-def]
    """Exponential of a number that is not positive, in a form that is vectorised."""


@overload(_log, inline="always")
def _overload_log(u):  # type: ignore[no-untyped-def]
    if u != types.float32:
        return lambda u: math.log(u)

    def single(u):  # type: ignore[no-untyped-def]
        # mantissa m in [sqrt(1/2), sqrt(2)) and exponent; log(m) by the polynomial of Cephes' logf
        bits = np.float32(u).view(np.int32)
        exponent = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
        f = np.int32(bits - (exponent << np.int32(23))).view(np.float32) - np.float32(1)
        p = np.float32(7.0376836292e-2)
        p = p * f + np.float32(-1.1514610310e-1)
        p = p * f + np.float32(1.1676998740e-1)
        p = p * f + np.float32(-1.2420140846e-1)
        p = p * f + np.float32(1.4249322787e-1)
        p = p * f + np.float32(-1.6668057665e-1)
        p = p * f + np.float32(2.0000714765e-1)
        p = p * f + np.float32(-2.4999993993e-1)
        p = p * f + np.float32(3.3333331174e-1)
        square = f * f
        rest = f * square * p - np.float32(0.5) * square
        return f + rest + np.float32(exponent) * np.float32(math.log(2))

    return single


@overload(_exp, inline="always")
def _overload_exp(x):  # type: ignore[no-untyped-def]
    if x != types.float32:
        return lambda x: math.exp(x)

    def single(x):  # type: ignore[no-untyped-def]
        # 2^n times the exponential of a rest in [-log(2)/2, log(2)/2], by Cephes' expf
        x = max(x, np.float32(-87))
        n = np.floor(x * np.float32(1 / math.log(2)) + np.float32(0.5))
        rest = x - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
        p = np.float32(1.9875691500e-4)
        p = p * rest + np.float32(1.3981999507e-3)
        p = p * rest + np.float32(8.3334519073e-3)
        p = p * rest + np.float32(4.1665795894e-2)
        p = p * rest + np.float32(1.6666665459e-1)
        p = p * rest + np.float32(5.0000001201e-1)
        power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
        return (p * rest * rest + rest + np.float32(1)) * power

    return single


@numba.njit(inline="always")
def _digamma(x: float) -> float:
    """Of a positive number: recurrence up to 6, then the asymptotic series."""
    result = 0.0
    while x < 6:
        result -= 1 / x
        x += 1
    s = 1 / (x * x)
    series = s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132))))
    return result + math.log(x) - 0.5 / x - series


@numba.njit(inline="always")
def _above_zero(x: float, mu: float, theta: float, inverse: float) -> tuple[float, float]:
    r"""What a count adds to the log mass of zero, and a part of its derivative by theta.

    These are :math:`\log [\Gamma(x + \theta) / (\Gamma(\theta) x!)] + x \log[\mu / (\mu + \theta)]`
    and :math:`\psi(x + \theta) - \psi(\theta)`; ``inverse`` is :math:`1 / (\mu + \theta)`.
    """
    if not (0 < x < math.inf and 0 < theta < math.inf and 0 <= mu < math.inf):
        return math.nan, math.nan
    p = mu * inverse
    if x <= _FEW and x == math.floor(x):
        product, slope = 1.0, 0.0  # of the factors (theta + k) p, and its derivative by theta
        for k in range(int(x)):
            factor = (theta + k) * p
            slope = slope * factor + product * p
            product *= factor
        if 1e-250 < product < 1e250:
            return math.log(product * _INVERSE_FACTORIALS[int(x)]), slope / product
    value = math.lgamma(x + theta) - math.lgamma(theta) - math.lgamma(x + 1) + x * math.log(p)
    return value, _digamma(x + theta) - _digamma(theta)


@numba.njit(inline="always")
def _zero_terms(mu: Any, theta: Any, known: Any, constants: Any) -> Any:
    """The ratio r, g and t of a count of zero; all NaN where a parameter is none.

    ``known`` says whether further parameters are numbers; ``constants`` are 0, 1, the largest ratio
    and infinity, in the type of the means.
    """
    zero, one, largest, infinity = constants
    valid = known & (mu >= zero) & (mu < infinity) & (theta > zero) & (theta < infinity)
    r = min(mu / theta, largest) + (zero if valid else infinity - infinity)
    u = one + r
    g = one / u
    return r, g, _log(u) + (r - (u - one)) * g


@numba.njit(inline="always")
def _find_counts(counts: Any, found: Any) -> int:
    """Write the positions of counts that are not zero, without a branch; how many there are."""
    n = 0
    for j in range(len(counts)):
        found[n] = j
        n += counts[j] != 0
    return n


# -------------------------------------------------------------------------- loops


@compiled
def poisson(
    x: Any, mu: Any, _theta: None, _zi: None, out: Any, by_mu: Any, _by_theta: None, _by_zi: None,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Poisson distribution with means ``mu``."""
    for i in range(start, stop):
        for j in range(mu.shape[1]):
            c, m = np.float64(x[i % len(x), j]), np.float64(mu[i, j])
            value, slope = -m, np.float64(-1)
            if not (0 <= c < math.inf and 0 <= m < math.inf):
                value = np.float64(np.nan)
            elif c != 0:
                value += c * math.log(m) - (math.lgamma(c + 1) if c != 1 else 0.0)
                slope += c / m
            out[i, j] = value
            if by_mu is not None:
                by_mu[i, j] = slope


@compiled
def negative_binomial(
    x: Any, mu: Any, theta: Any, _zi: None, out: Any, by_mu: Any, by_theta: Any, _by_zi: None,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Negative binomial distribution with means ``mu`` and inverse dispersions ``theta``."""
    number, columns = mu.dtype.type, mu.shape[1]
    constants = number(0), number(1), number(np.finfo(np.float32).max), number(np.inf)
    counted = np.empty(columns + 1, np.int32)
    for i in range(start, stop):
        counts, own = x[i % len(x)], theta[i % len(theta)]
        for j in range(columns):
            r, g, t = _zero_terms(mu[i, j], own[j], True, constants)
            out[i, j] = -own[j] * t
            if by_mu is not None:
                by_mu[i, j] = -g
                by_theta[i, j] = r * g - t
        for j in counted[: _find_counts(counts, counted)]:
            c, m, shape = np.float64(counts[j]), np.float64(mu[i, j]), np.float64(own[j])
            inverse = 1 / (m + shape)
            value, slope = _above_zero(c, m, shape, inverse)
            out[i, j] += number(value)
            if by_mu is not None:
                by_mu[i, j] = (c / m - 1) * shape * inverse
                by_theta[i, j] += number(slope - c * inverse)


@compiled
def inflated_negative_binomial(
    x: Any, mu: Any, theta: Any, zi: Any, out: Any, by_mu: Any, by_theta: Any, by_zi: Any,
    start: int, stop: int,
) -> None:  # fmt: skip
    """The same with extra zeros, whose log-odds are ``zi``."""
    number, columns = mu.dtype.type, mu.shape[1]
    zero, one, nan = number(0), number(1), number(np.nan)
    constants = zero, one, number(np.finfo(np.float32).max), number(np.inf)
    counted = np.empty(columns + 1, np.int32)
    logs, kept, inflation = np.empty((3, columns), mu.dtype)
    for i in range(start, stop):
        counts, own = x[i % len(x)], theta[i % len(theta)]
        for j in range(columns):
            r, g, t = _zero_terms(mu[i, j], own[j], zi[i, j] == zi[i, j], constants)
            broken = zero if t == t else nan
            # p = pi + (1 - pi) exp(b), with log-odds a of pi; e and s are ratios of exponentials
            a, b = zi[i, j], -own[j] * t
            e, s = _exp(-abs(a - b)), _exp(-abs(a))
            whole, share = one / (one + e), one / (one + s)
            pi, log_kept = (one if a > zero else s) * share, _log(share) - max(a, zero)
            logs[j], kept[j], inflation[j] = t, log_kept + broken, pi + broken
            out[i, j] = max(a, b) - _log(whole) + log_kept + broken
            if by_mu is not None:
                other = (e if a > b else one) * whole  # probability that it is not an extra zero
                by_mu[i, j] = -g * other
                by_theta[i, j] = (r * g - t) * other
                by_zi[i, j] = (one if a > b else e) * whole - pi + broken
        for j in counted[: _find_counts(counts, counted)]:
            c, m, shape = np.float64(counts[j]), np.float64(mu[i, j]), np.float64(own[j])
            inverse = 1 / (m + shape)
            value, slope = _above_zero(c, m, shape, inverse)
            t = np.float64(logs[j])
            out[i, j] = value - shape * t + kept[j]
            if by_mu is not None:
                by_mu[i, j] = (c / m - 1) * shape * inverse
                by_theta[i, j] = (m - c) * inverse - t + slope
                by_zi[i, j] = -inflation[j]
