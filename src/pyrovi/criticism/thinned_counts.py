"""Counts in two parts, and the distribution of the second part given the first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask, sum_rightmost
from scipy import sparse
from torch import Tensor

from pyrovi._rng import generator
from pyrovi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyrovi.distributions.log_pmf import add_zero_inflation, log_nb_positive, log_poisson
from pyrovi.errors import DataError, ModelError
from pyrovi.posterior.density import per_observation


def thin_counts(counts: Any, fraction: float, *, seed: int | None = None) -> tuple[Any, Any]:
    """Divide every count binomially into two parts.

    Parameters
    ----------
    counts
        Dense or sparse matrix of counts; left alone.
    fraction
        Expected share of the first part.
    seed
        Root seed.

    Returns
    -------
    tuple
        Two matrices of the same kind and type, whose sum is ``counts``.

    Raises
    ------
    DataError
        If a value is no count, or the fraction is not between 0 and 1.
    """
    check_fraction(fraction)
    if sparse.issparse(counts):
        kept, held = counts.copy(), counts.copy()
        kept.data = _binomial(counts.data, fraction, seed)
        held.data = counts.data - kept.data
        for part in (kept, held):
            part.eliminate_zeros()
        return kept, held
    values = np.asarray(counts)
    first = _binomial(values, fraction, seed)
    return first, values - first


def held_out_log_prob(node: Any, held: Tensor, ratio: float, n: int) -> Tensor:
    """Log probability of the second part under a model of the first, for each observation.

    Parameters
    ----------
    node
        Trace node of the observed site, whose value is the first part.
    held
        The second part, of the same shape.
    ratio
        Expected second part divided by the expected first, given the rate.
    n
        Number of observations.

    Returns
    -------
    Tensor
        Shape ``(n,)``.

    Raises
    ------
    ModelError
        If the distribution is none of those of which the split is known.
    """
    fn, kept = node["fn"], node["value"]
    base = fn
    while isinstance(base, dist.Independent):
        base = base.base_dist
    each = _conditional(node["name"], base, kept, held.reshape(kept.shape), ratio)
    summed = sum_rightmost(each, fn.event_dim - base.event_dim)
    return per_observation(node, scale_and_mask(summed, 1.0, node["mask"]), n)


def _conditional(name: str, fn: Any, kept: Tensor, held: Tensor, ratio: float) -> Tensor:
    if isinstance(fn, (Poisson, torch.distributions.Poisson)):
        return log_poisson(held, ratio * fn.rate)
    mean_and_dispersion = _negative_binomial(fn)
    if mean_and_dispersion is None:
        raise ModelError(
            f"The likelihood of {name!r} is {type(fn).__name__}; what one part of such a value is "
            "given the other is not known. Thinning works for Poisson, NegativeBinomial, "
            "GammaPoisson and ZeroInflatedNegativeBinomial; for others use held_out or "
            "cross_validate."
        )
    mu, theta = mean_and_dispersion
    # the gamma distributed rate has been updated by the first part
    updated = theta + kept
    given = log_nb_positive(held, ratio * mu * (updated / (theta + mu)), updated)
    if not isinstance(fn, ZeroInflatedNegativeBinomial):
        return given
    log_zero = -theta * torch.log1p(mu / theta)
    inflated = add_zero_inflation(held, given, fn.zi_logits - log_zero)
    return torch.where(kept == 0, inflated, given)


def _negative_binomial(fn: Any) -> tuple[Tensor, Tensor] | None:
    """Mean without inflation, and inverse dispersion."""
    if isinstance(fn, NegativeBinomial):
        return fn.mu, fn.theta
    if isinstance(fn, torch.distributions.NegativeBinomial):
        return fn.mean, fn.total_count
    if isinstance(fn, dist.GammaPoisson):
        return fn.mean, fn.concentration
    return None


def _binomial(values: np.ndarray, fraction: float, seed: int | None) -> np.ndarray:
    whole = values.astype(np.int64)
    if (whole != values).any() or (whole < 0).any():
        raise DataError(
            "Only counts can be thinned: expected non-negative integers, found "
            f"{values[(whole != values) | (whole < 0)].flat[0]}."
        )
    drawn = generator("thinning", seed=seed).binomial(whole, fraction)
    first: np.ndarray = drawn.astype(values.dtype)
    return first


def check_fraction(fraction: float) -> None:
    """Refuse shares that leave one of the parts empty."""
    if not 0 < fraction < 1:
        raise DataError(f"fraction must be between 0 and 1 (exclusive), got {fraction}.")
