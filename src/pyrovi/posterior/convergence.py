r"""Convergence of draws: R-hat, effective sample sizes and Monte-Carlo errors, for many quantities.

Every function takes draws of shape ``(chain, draw, ...)`` and returns one value for each element of
the trailing axes. All elements are computed together, which for many thousand of them is some
hundred times faster than one by one; the values are those of ArviZ.

References
----------
Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), *Rank-normalization, folding, and
localization: an improved R-hat for assessing convergence of MCMC*, Bayesian Analysis 16(2).
Betancourt (2016), *Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo*,
arXiv:1604.00695 (E-BFMI).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyrovi.errors import ModelError

Floats = NDArray[np.float64]

MIN_DRAWS = 4
"""Draws per chain below which nothing is estimated (the result is NaN)."""

_CHUNK = 2_000_000
"""Numbers worked on at a time: what keeps the temporary arrays in the tens of megabytes."""


def rhat(draws: ArrayLike) -> Floats:
    """Rank-normalised split R-hat, the larger one of bulk and folded.

    Parameters
    ----------
    draws
        Shape ``(chain, draw, ...)``.

    Returns
    -------
    numpy.ndarray
        Shape ``...``; NaN with fewer than two chains or four draws, or where a draw is NaN. Values
        below 1.01 are good.
    """
    return _each(draws, lambda chunk: np.fmax(_bulk_rhat(chunk), _folded_rhat(chunk)), chains=2)


def rhat_folded(draws: ArrayLike) -> Floats:
    """R-hat of the distance from the median: whether the chains agree on the spread.

    Parameters
    ----------
    draws
        Shape ``(chain, draw, ...)``.
    """
    return _each(draws, _folded_rhat, chains=2)


def ess_bulk(draws: ArrayLike) -> Floats:
    """Effective sample size of the rank-normalised draws: for means and medians.

    Parameters
    ----------
    draws
        Shape ``(chain, draw, ...)``. Some 100 per chain are wanted.
    """
    return _each(draws, lambda chunk: _ess(_rank_normalised(_split(chunk))))


def ess_tail(draws: ArrayLike, probability: float = 0.05) -> Floats:
    """Effective sample size in the tails: the smaller one of those of two quantiles.

    Parameters
    ----------
    draws
        Shape ``(chain, draw, ...)``.
    probability
        The quantiles are this one and one minus this one.
    """
    return _each(draws, lambda chunk: _ess_tail(chunk, np.sort(_flat(chunk), 1), probability))


def ess_mean(draws: ArrayLike) -> Floats:
    """Effective sample size for the mean, without rank normalisation.

    Parameters
    ----------
    draws
        Shape ``(chain, draw, ...)``.
    """
    return _each(draws, lambda chunk: _ess(_split(chunk)))


def mcse_mean(draws: ArrayLike) -> Floats:
    """Monte-Carlo standard error of the mean.

    Parameters
    ----------
    draws
        Shape ``(chain, draw, ...)``.
    """
    return _each(draws, lambda chunk: _flat(chunk).std(1, ddof=1) / np.sqrt(_ess(_split(chunk))))


def mcse_sd(draws: ArrayLike) -> Floats:
    """Monte-Carlo standard error of the standard deviation.

    Parameters
    ----------
    draws
        Shape ``(chain, draw, ...)``.
    """
    return _each(draws, _mcse_sd)


def mcse_quantile(draws: ArrayLike, probability: float) -> Floats:
    """Monte-Carlo standard error of a quantile.

    Parameters
    ----------
    draws
        Shape ``(chain, draw, ...)``.
    probability
        Which quantile, between 0 and 1.
    """
    if not 0 < probability < 1:
        raise ModelError(f"A quantile has a probability between 0 and 1, got {probability}.")
    return _each(draws, lambda chunk: _mcse_quantile(chunk, probability))


def ebfmi(energy: ArrayLike) -> Floats:
    """Estimated Bayesian fraction of missing information of each chain; below 0.3 is poor.

    Parameters
    ----------
    energy
        Energies of Hamiltonian Monte Carlo, shape ``(chain, draw)``.
    """
    energies = np.atleast_2d(np.asarray(energy, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.square(np.diff(energies, axis=1)).mean(1) / energies.var(1, ddof=1)


def convergence_statistics(draws: ArrayLike) -> dict[str, Floats]:
    """All diagnostics of a table at once, which sorts and transforms the draws only once.

    Parameters
    ----------
    draws
        Shape ``(chain, draw, ...)``.

    Returns
    -------
    dict
        ``mcse_mean``, ``mcse_sd``, ``ess_bulk``, ``ess_tail`` and ``r_hat``, each of shape ``...``.
    """
    array = _checked(draws)
    names = ("mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat")
    table = _each(array, _all, outputs=len(names))
    return {name: table[..., i] for i, name in enumerate(names)}


def _all(chunk: Floats) -> Floats:
    split = _split(chunk)
    normalised = _rank_normalised(split)
    ordered = np.sort(_flat(chunk), 1)
    if chunk.shape[1] < 2:
        r_hat = np.full(len(chunk), np.nan)
    else:
        r_hat = np.fmax(_rhat(normalised), _folded_rhat(chunk))
    sd = _flat(chunk).std(1, ddof=1)
    return np.stack(
        [
            sd / np.sqrt(_ess(split)),
            _mcse_sd(chunk),
            _ess(normalised),
            _ess_tail(chunk, ordered, 0.05),
            r_hat,
        ],
        -1,
    )


def _checked(draws: ArrayLike) -> NDArray[Any]:
    array = np.asarray(draws)
    if array.ndim < 2:
        raise ModelError(
            f"Draws have to have the axes (chain, draw, ...), got shape {array.shape}. Draws of "
            "one fit: draws[None]."
        )
    if array.dtype.kind not in "fiub":
        raise ModelError(
            f"Convergence is of real numbers, got draws of type {array.dtype}. Leave this site out."
        )
    return array


def _each(
    draws: ArrayLike,
    compute: Callable[[Floats], Floats],
    *,
    chains: int = 1,
    outputs: int | None = None,
) -> Floats:
    """Apply to chunks ``(element, chain, draw)``; NaN where there is too little or a NaN."""
    array = _checked(draws)
    n_chains, n_draws, *shape = array.shape
    elements = array.reshape(n_chains, n_draws, -1)
    count = elements.shape[2]
    result = np.full((count,) if outputs is None else (count, outputs), np.nan)
    if n_draws >= MIN_DRAWS and n_chains >= chains:
        step = max(1, _CHUNK // (n_chains * n_draws))
        for first in range(0, count, step):
            chunk = np.ascontiguousarray(
                np.moveaxis(elements[..., first : first + step], 2, 0), dtype=np.float64
            )
            valid = ~np.isnan(chunk).any((1, 2))
            if not valid.all():
                chunk = chunk[valid]
            if len(chunk):
                with np.errstate(divide="ignore", invalid="ignore"):
                    result[first : first + step][valid] = compute(chunk)
    return result.reshape(shape if outputs is None else [*shape, outputs])


def _flat(chunk: Floats) -> Floats:
    return chunk.reshape(len(chunk), -1)


def _split(chunk: NDArray[Any]) -> NDArray[Any]:
    """Halves of the chains as chains: what is between them shows a drift within a chain."""
    half = chunk.shape[2] // 2
    return np.concatenate([chunk[:, :, :half], chunk[:, :, -half:]], 1)


def _rank_normalised(chunk: Floats) -> Floats:
    """Normal scores of the ranks among all draws (Blom 1958); ties have the mean of their ranks."""
    from scipy.special import ndtri

    values = _flat(chunk)
    size = values.shape[1]
    order = np.argsort(values, 1)
    ordered = np.take_along_axis(values, order, 1)
    twice_ranks = np.arange(2, 2 * size + 1)
    expected = ndtri((twice_ranks / 2 - 0.375) / (size + 0.25))
    sorted_scores = np.broadcast_to(expected[::2], values.shape)
    changes = ordered[:, 1:] != ordered[:, :-1]
    tied = ~changes.all(1)
    if tied.any():
        sorted_scores = sorted_scores.copy()
        sorted_scores[tied] = expected[_first_plus_last(changes[tied])]
    scores = np.empty_like(values)
    np.put_along_axis(scores, order, sorted_scores, 1)
    return scores.reshape(chunk.shape)


def _first_plus_last(changes: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Sum of the first and the last position of the run of equal values that each belongs to."""
    rows, size = len(changes), changes.shape[1] + 1
    position = np.arange(size)
    edge = np.ones((rows, 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.hstack([edge, changes]), position, 0), 1)
    last = np.where(np.hstack([changes, edge]), position, size)
    return first + np.minimum.accumulate(last[:, ::-1], 1)[:, ::-1]


def _rhat(chunk: Floats) -> Floats:
    draws = chunk.shape[2]
    between = draws * chunk.mean(2).var(1, ddof=1)
    within = chunk.var(2, ddof=1).mean(1)
    return np.sqrt((between / within + draws - 1) / draws)


def _bulk_rhat(chunk: Floats) -> Floats:
    return _rhat(_rank_normalised(_split(chunk)))


def _folded_rhat(chunk: Floats) -> Floats:
    split = _split(chunk)
    median = np.median(_flat(split), axis=1)
    return _rhat(_rank_normalised(np.abs(split - median[:, None, None])))


def _ess(chunk: NDArray[Any]) -> Floats:
    """Effective sample size by Geyer's initial monotone sequence of the averaged chains."""
    from scipy.fft import irfft, next_fast_len, rfft

    values = chunk.astype(np.float64, copy=False)
    _, chains, draws = values.shape
    size = chains * draws
    means = values.mean(2)
    length = next_fast_len(2 * draws, real=True)
    spectrum = rfft(values - means[:, :, None], n=length, axis=2)
    power = (np.square(spectrum.real) + np.square(spectrum.imag)).mean(1)
    # the transform is linear: that of the mean over the chains is needed only
    covariance = irfft(power, n=length, axis=1)[:, :draws] / draws
    within = covariance[:, :1] * draws / (draws - 1)
    total = covariance[:, :1]
    if chains > 1:
        total = total + means.var(1, ddof=1)[:, None]
    correlation = 1 - (within - covariance) / total
    correlation[:, 0] = 1
    pairs = correlation[:, 0 : 2 * (draws // 2) : 2] + correlation[:, 1::2][:, : draws // 2]
    last = max((draws - 3) // 2, 0)
    stops = ~(pairs[:, : last + 1] > 0)
    stops[:, -1] = True
    stop = stops.argmax(1)
    rows = np.arange(len(values))
    kept = np.arange(last + 1) < stop[:, None]
    monotone = np.minimum.accumulate(pairs[:, : last + 1], 1)
    even = correlation[rows, 2 * stop]
    even = np.where((even > 0) | (pairs[rows, stop] >= 0), even, 0)
    time = -1 + 2 * np.where(kept, monotone, 0).sum(1) + even
    time = np.fmax(time, 1 / np.log10(size))
    result = np.where(np.isnan(correlation[:, 1]), np.nan, size / time)
    constant = np.ptp(_flat(values), 1) < np.finfo(np.float64).resolution
    return np.where(constant, float(size), result)


def _quantiles(ordered: Floats, probability: float) -> Floats:
    position = probability * (ordered.shape[1] - 1)
    below = int(position)
    above = min(below + 1, ordered.shape[1] - 1)
    return ordered[:, below] + (position - below) * (ordered[:, above] - ordered[:, below])


def _ess_quantile(chunk: Floats, ordered: Floats, probability: float) -> Floats:
    quantile = _quantiles(ordered, probability)
    return _ess(_split(chunk <= quantile[:, None, None]))


def _ess_tail(chunk: Floats, ordered: Floats, probability: float) -> Floats:
    low = _ess_quantile(chunk, ordered, probability)
    return np.minimum(low, _ess_quantile(chunk, ordered, 1 - probability))


def _mcse_sd(chunk: Floats) -> Floats:
    squares = np.square(chunk - chunk.mean((1, 2), keepdims=True))
    variance = squares.mean((1, 2))
    of_variance = (np.square(squares).mean((1, 2)) - variance**2) / _ess(_split(squares))
    return np.sqrt(of_variance / variance / 4)


def _mcse_quantile(chunk: Floats, probability: float) -> Floats:
    from scipy.special import betaincinv

    ordered = np.sort(_flat(chunk), 1)
    size = ordered.shape[1]
    ess = _ess_quantile(chunk, ordered, probability)
    # one standard deviation to either side, by the order statistics of an effective sample
    low, high = (
        betaincinv(ess * probability + 1, ess * (1 - probability) + 1, p) * size - 1
        for p in (0.1586553, 0.8413447)
    )
    below = np.floor(np.fmax(low, 0)).astype(int)
    above = np.ceil(np.fmin(high, size - 1)).astype(int)
    rows = np.arange(len(ordered))
    return (ordered[rows, above] - ordered[rows, below]) / 2
