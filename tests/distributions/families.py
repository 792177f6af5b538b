"""One example of every family, with what SciPy says about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pyrovi import distributions as dist


@dataclass(frozen=True)
class Family:
    """A distribution class, parameters in double precision, and an independent density."""

    name: str
    make: Callable[..., torch.distributions.Distribution]
    parameters: dict[str, Tensor]
    density: Callable[..., np.ndarray]  # of x and the parameters: mass, or atom and density
    discrete: bool = True

    def build(self, **options: object) -> torch.distributions.Distribution:
        return self.make(**self.parameters, **options)

    def values(self) -> Tensor:
        """Values inside the support, zero among them, of shape (6, 1)."""
        x = [0.0, 1.0, 2.0, 3.0, 7.0, 12.0] if self.discrete else [0.0, 0.01, 0.4, 1.0, 3.0, 9.0]
        return torch.tensor(x, dtype=torch.float64)[:, None]


def _t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _nb(x, mu, theta):
    return stats.nbinom.pmf(x, theta, theta / (theta + mu))


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def _zinb(x, mu, theta, zi_logits):
    pi = _sigmoid(zi_logits)
    return pi * (x == 0) + (1 - pi) * _nb(x, mu, theta)


def _mixture(x, mu1, mu2, theta1, mixture_logits, theta2=None):
    pi = _sigmoid(mixture_logits)
    return pi * _nb(x, mu1, theta1) + (1 - pi) * _nb(x, mu2, theta1 if theta2 is None else theta2)


def _atom(x, zi_logits, density):
    pi = _sigmoid(zi_logits)
    return np.where(x == 0, pi, (1 - pi) * density)


def _positive(x):
    return np.where(x == 0, 1.0, x)


MU, THETA = _t(0.3, 2.0, 5.0), _t(0.4, 3.0, 20.0)
LOGITS = _t(-2.0, 0.0, 1.5)

FAMILIES = [
    Family("poisson", dist.Poisson, {"rate": MU}, lambda x, rate: stats.poisson.pmf(x, rate)),
    Family("nb", dist.NegativeBinomial, {"mu": MU, "theta": THETA}, _nb),
    Family(
        "nb_logits",
        dist.NegativeBinomial,
        {"total_count": THETA, "logits": LOGITS - 1},
        lambda x, total_count, logits: stats.nbinom.pmf(x, total_count, _sigmoid(-logits)),
    ),
    Family(
        "nb_probs",
        dist.NegativeBinomial,
        {"total_count": THETA, "probs": _t(0.1, 0.4, 0.2)},
        lambda x, total_count, probs: stats.nbinom.pmf(x, total_count, 1 - probs),
    ),
    Family(
        "zinb",
        dist.ZeroInflatedNegativeBinomial,
        {"mu": MU, "theta": THETA, "zi_logits": LOGITS},
        _zinb,
    ),
    Family(
        "mixture",
        dist.NegativeBinomialMixture,
        {"mu1": MU, "mu2": 2 * MU + 1, "theta1": THETA, "mixture_logits": LOGITS},
        _mixture,
    ),
    Family(
        "mixture_two_thetas",
        dist.NegativeBinomialMixture,
        {
            "mu1": MU,
            "mu2": 2 * MU + 1,
            "theta1": THETA,
            "mixture_logits": LOGITS,
            "theta2": _t(2.0, 1.0, 5.0),
        },
        _mixture,
    ),
    Family(
        "beta_binomial",
        dist.BetaBinomial,
        {
            "total_count": _t(12.0, 30.0, 15.0),
            "alpha": _t(0.5, 2.0, 4.0),
            "beta": _t(1.0, 0.7, 9.0),
        },
        lambda x, total_count, alpha, beta: stats.betabinom.pmf(x, total_count, alpha, beta),
    ),
    Family(
        "zi_lognormal",
        dist.ZeroInflatedLogNormal,
        {"mu": _t(-1.0, 0.0, 0.5), "scale": _t(0.3, 0.5, 0.8), "zi_logits": LOGITS},
        lambda x, mu, scale, zi_logits: _atom(
            x, zi_logits, stats.lognorm.pdf(_positive(x), scale, scale=np.exp(mu))
        ),
        discrete=False,
    ),
    Family(
        "zi_gamma",
        dist.ZeroInflatedGamma,
        {"concentration": THETA, "rate": _t(0.5, 1.0, 7.0), "zi_logits": LOGITS},
        lambda x, concentration, rate, zi_logits: _atom(
            x, zi_logits, stats.gamma.pdf(_positive(x), concentration, scale=1 / rate)
        ),
        discrete=False,
    ),
    Family(
        "log1p_normal",
        dist.Log1pNormal,
        {"mu": _t(0.1, 1.0, 0.5), "sigma": _t(0.3, 0.5, 0.7)},
        lambda x, mu, sigma: stats.norm.pdf(np.log1p(x), mu, sigma) / (1 + x),
        discrete=False,
    ),
    Family(
        "normal",
        dist.Normal,
        {"loc": _t(0.1, 1.0, 0.5), "scale": _t(0.3, 0.5, 3.0)},
        lambda x, loc, scale: stats.norm.pdf(x, loc, scale),
        discrete=False,
    ),
]
