"""Simultaneous bands of the empirical distribution function of values that should be uniform.

Probability integral transforms and the ranks of simulation-based calibration are uniform if a
predictive distribution or a posterior is right. Whether they are is seen, and tested, on their
empirical distribution function: under uniformity the count of values at most ``z`` is binomial at
each ``z``, and a band that holds at all ``z`` together needs a narrower level at each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import gammaln

from pyrovi._rng import generator
from pyrovi.errors import ModelError

FloatArray = NDArray[np.float64]

MAX_POINTS = 100
"""Largest number of points that are chosen by default."""

_EXACT_WORK = 4e6
"""Largest number of transition probabilities for which the level is computed exactly."""

_NUM_SIMULATIONS = 10_000


@dataclass(frozen=True)
class EcdfBands:
    """Band of an empirical distribution function under uniformity.

    Attributes
    ----------
    n
        Number of values.
    probability
        Probability that the function lies in the band at all points together.
    points
        Where the function is looked at, shape ``(K,)``, inside (0, 1).
    lower, upper
        Ends of the band at the points, shape ``(K,)``: fractions of the values. The ends belong to
        the band.
    level
        Probability to lie outside at one point alone (``gamma`` of the reference).
    """

    n: int
    probability: float
    points: FloatArray
    lower: FloatArray
    upper: FloatArray
    level: float

    def contains(self, ecdf: ArrayLike) -> bool:
        """Whether a distribution function, its values at the points, lies in the band throughout.

        Parameters
        ----------
        ecdf
            Fractions of values at most each point, shape ``(K,)``.
        """
        counts = np.rint(np.asarray(ecdf, dtype=np.float64) * self.n)
        low, high = np.rint(self.lower * self.n), np.rint(self.upper * self.n)
        return bool(((counts >= low) & (counts <= high)).all())


@dataclass(frozen=True)
class Uniformity:
    """Whether values are uniform.

    Attributes
    ----------
    bands
        The band, and the points.
    ecdf
        Fraction of the values at most each point, shape ``(K,)``.
    inside
        Whether the function lies in the band at all points.
    p_value
        Probability under uniformity of a function that leaves the bands at least as far.
    """

    bands: EcdfBands
    ecdf: FloatArray
    inside: bool
    p_value: float


def ecdf_bands(
    n: int,
    probability: float = 0.95,
    *,
    points: int | ArrayLike | None = None,
    num_ranks: int | None = None,
) -> EcdfBands:
    """Simultaneous band of the empirical distribution function of ``n`` independent uniform values.

    Parameters
    ----------
    n
        Number of values.
    probability
        Probability that the function lies in the band at all points. Counts are discrete: the band
        is the narrowest of this form that has at least this probability.
    points
        Points inside (0, 1) in increasing order, or into how many parts of equal length they cut
        the interval; ``None`` for as many as there are values, 100 at most.
    num_ranks
        For ranks, which take the values ``0, ..., num_ranks - 1``: the points are multiples of
        ``1 / num_ranks``, at which the distribution function of uniform ranks is the identity too.

    Returns
    -------
    EcdfBands

    Raises
    ------
    ModelError
        If there are no values, or an argument is out of its range.

    Notes
    -----
    The probability is computed exactly, by following the distribution of the count from point to
    point inside the band. Where that would be slow (beyond some thousands of values) the level is
    the quantile of 10,000 simulated data sets; the standard error of the probability is then 0.002
    for a probability of 0.95.

    References
    ----------
    Säilynoja, Bürkner, Vehtari: Graphical test for discrete uniformity and its applications in
    goodness-of-fit evaluation and multiple sample comparison. Statistics and Computing 32, 32
    (2022).
    """
    if n < 1:
        raise ModelError(f"A band needs at least one value, got n = {n}.")
    if not 0 < probability < 1:
        raise ModelError(f"probability must lie between 0 and 1, got {probability}.")
    grid = _points(n, points, num_ranks)
    level = _level(n, probability, tuple(grid))
    lower, upper = _ends(n, grid, level)
    return EcdfBands(n, probability, grid, lower / n, upper / n, level)


def ecdf_values(values: ArrayLike, points: ArrayLike) -> FloatArray:
    """Fraction of the values that are at most each point, shape ``(K,)``.

    Parameters
    ----------
    values
        Values in [0, 1], any shape.
    points
        Points, shape ``(K,)``.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    at_most = np.searchsorted(ordered, np.asarray(points, dtype=np.float64), side="right")
    return np.asarray(at_most / len(ordered), dtype=np.float64)


def uniformity(
    values: ArrayLike,
    probability: float = 0.95,
    *,
    points: int | ArrayLike | None = None,
    num_ranks: int | None = None,
) -> Uniformity:
    """Test whether values are uniform on [0, 1], or ranks uniform on ``0, ..., num_ranks - 1``.

    Parameters
    ----------
    values
        Independent values in [0, 1]; with ``num_ranks``: ranks.
    probability, points, num_ranks
        As in :func:`ecdf_bands`.

    Returns
    -------
    Uniformity

    Raises
    ------
    ModelError
        If values lie outside their range.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    highest = 1 if num_ranks is None else num_ranks - 1
    if len(values) and not ((values >= 0) & (values <= highest)).all():
        wrong = values[~((values >= 0) & (values <= highest))][0]
        raise ModelError(
            f"Expected values between 0 and {highest}, found {wrong}. Pass probability integral "
            "transforms, or ranks and their number num_ranks."
        )
    bands = ecdf_bands(len(values), probability, points=points, num_ranks=num_ranks)
    if num_ranks is not None:
        values = (values + 0.5) / num_ranks  # inside its step, whatever the rounding
    ecdf = ecdf_values(values, bands.points)
    return Uniformity(bands, ecdf, bands.contains(ecdf), _p_value(ecdf, bands.points, len(values)))


def _points(n: int, points: int | ArrayLike | None, num_ranks: int | None) -> FloatArray:
    if num_ranks is not None:
        if num_ranks < 2:
            raise ModelError(f"Ranks need at least two values, got num_ranks = {num_ranks}.")
        if points is None or isinstance(points, int):
            parts = min(num_ranks, n if points is None else points, MAX_POINTS)
            steps = np.unique(np.rint(np.arange(1, max(parts, 2)) * num_ranks / max(parts, 2)))
            return np.asarray(steps / num_ranks, dtype=np.float64)
    if points is None or isinstance(points, int):
        parts = max(2, min(n, MAX_POINTS) if points is None else points)
        return np.arange(1, parts) / parts
    grid = np.asarray(points, dtype=np.float64).ravel()
    if not len(grid) or (np.diff(grid) <= 0).any() or grid[0] <= 0 or grid[-1] >= 1:
        raise ModelError(
            f"points must lie inside (0, 1) in increasing order, got {grid[:5].tolist()}"
            f"{' ...' if len(grid) > 5 else ''}."
        )
    if num_ranks is not None and not np.allclose(grid * num_ranks, np.rint(grid * num_ranks)):
        raise ModelError(
            f"The points of ranks must be multiples of 1/{num_ranks}; pass their number instead, "
            "or leave points out."
        )
    return grid


def _ends(n: int, points: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    """Smallest and largest count inside the band, at each point."""
    lower = stats.binom.ppf(level / 2, n, points)
    upper = stats.binom.isf(level / 2, n, points)
    return np.asarray(lower), np.asarray(upper)


@lru_cache(maxsize=64)
def _level(n: int, probability: float, points: tuple[float, ...]) -> float:
    grid = np.asarray(points)
    low, high = np.log((1 - probability) / len(grid)), np.log(1 - probability)
    if not _is_exact(n, grid, np.exp(low)):
        return float(np.quantile(_simulated_levels(n, points), 1 - probability))
    # At the lowest level the union of all points is outside with at most this probability.
    for _ in range(30):
        middle = (low + high) / 2
        inside = _probability_inside(n, grid, np.exp(middle)) >= probability
        low, high = (middle, high) if inside else (low, middle)
    return float(np.exp(low))


def _is_exact(n: int, points: FloatArray, level: float) -> bool:
    lower, upper = _ends(n, points, level)
    width = upper - lower + 1
    return bool((width[1:] * width[:-1]).sum() <= _EXACT_WORK)


def _probability_inside(n: int, points: FloatArray, level: float) -> float:
    """Probability that the counts lie in the band at all points.

    Given the count at one point, its increase to the next is binomial.
    """
    lower, upper = (ends.astype(np.int64) for ends in _ends(n, points, level))
    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    counts, mass = np.zeros(1, dtype=np.int64), np.ones(1)
    reached = 0.0
    for point, low, high in zip(points, lower, upper, strict=True):
        step = (point - reached) / (1 - reached)
        after = np.arange(low, high + 1)
        more, left = after[None] - counts[:, None], n - counts[:, None]
        possible = (more >= 0) & (more <= left)
        taken = np.where(possible, more, 0)
        log_mass = (
            log_factorial[left]
            - log_factorial[taken]
            - log_factorial[left - taken]
            + taken * np.log(step)
            + (left - taken) * np.log1p(-step)
        )
        mass = mass @ np.where(possible, np.exp(log_mass), 0.0)
        counts, reached = after, point
    return float(mass.sum())


@lru_cache(maxsize=8)
def _simulated_levels(n: int, points: tuple[float, ...]) -> FloatArray:
    """Level at which simulated uniform data sets would just touch the band, in increasing order."""
    grid = np.asarray(points)
    parts = np.diff([0.0, *points, 1.0])
    # One seed for all: the band is a property of n and the points, not of anybody's analysis.
    rng = generator("ecdf bands", n, len(grid), seed=0)
    levels = [
        _touched_level(rng.multinomial(n, parts, size=1000)[:, :-1].cumsum(1), n, grid)
        for _ in range(_NUM_SIMULATIONS // 1000)
    ]
    return np.sort(np.concatenate(levels))


def _touched_level(counts: NDArray[np.int64], n: int, points: FloatArray) -> FloatArray:
    """Smallest two-sided binomial tail probability over the points (the last axis)."""
    below = stats.binom.cdf(counts, n, points)
    above = stats.binom.sf(counts - 1, n, points)
    return np.asarray(2 * np.minimum(below, above).min(-1))


def _p_value(ecdf: FloatArray, points: FloatArray, n: int) -> float:
    counts = np.rint(ecdf * n).astype(np.int64)
    # not below what SciPy's quantiles can resolve
    level = min(1.0, max(1e-15, float(_touched_level(counts, n, points))))
    if _is_exact(n, points, max(level, 1e-6)):
        # slightly above its own level the observed function is just outside
        return 1 - _probability_inside(n, points, min(1.0, level * (1 + 1e-9)))
    simulated = _simulated_levels(n, tuple(points))
    return float((1 + (simulated <= level).sum()) / (1 + len(simulated)))
