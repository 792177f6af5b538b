r"""Log mass and log density functions: pure functions of tensors, one per family.

All broadcast their arguments, are differentiable in the parameters, and work under
:func:`torch.func.vmap`. No constant is added to keep logarithms finite: a mean of zero gives
probability one to the count zero, and ``-inf`` to any other.

Special functions of a parameter are evaluated at that parameter's own shape, before broadcasting.
Terms that grow with an inverse dispersion cancel before they are rounded. In single precision the
absolute error is about 1e-7 times the largest log-gamma of a count: below 1e-4 for counts up to
100, about 1e-2 at 10\ :sup:`4`, whatever the inverse dispersion. Use double precision beyond.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def log1pexp(x: Tensor) -> Tensor:
    """Return ``log(1 + exp(x))``, exact over the whole range (softplus cuts off at 20)."""
    return torch.logaddexp(x, x.new_zeros(()))


def _log_where_counted(x: Tensor, mean: Tensor) -> Tensor:
    # The logarithm only matters where x > 0. Adding one elsewhere keeps 0 * log(0) at zero in the
    # value and in the gradient (torch.xlogy does so in the value only), cheaper than a selection.
    return (mean + (x == 0)).log()


def log_poisson(x: Tensor, rate: Tensor) -> Tensor:
    r"""Log mass of the Poisson distribution, :math:`x\log\lambda - \lambda - \log\Gamma(x+1)`.

    Parameters
    ----------
    x
        Counts.
    rate
        Mean :math:`\lambda \ge 0`.
    """
    return x * _log_where_counted(x, rate) - rate - torch.lgamma(x + 1)


_LARGE = 16.0
"""Inverse dispersions above this one take a series; its error is below that of double precision."""


def _stirling_rest(z: Tensor) -> Tensor:
    r"""What Stirling's formula leaves of :math:`\log\Gamma(z)`, for large arguments."""
    w = 1 / z.square()
    return (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w * (1 / 1680 - w / 1188)))) / z


def _log_rising(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    r"""Two parts of :math:`\log [\Gamma(x+\theta) / \Gamma(\theta)] = r + x (\log\theta - s)`.

    :math:`s` is 0 where :math:`\theta` is large, and :math:`r` small; else :math:`\log\theta`.
    """
    is_large = theta > _LARGE
    large = theta.clamp(min=_LARGE)  # no branch that is not taken may have an infinite gradient
    series = (x + large - 0.5) * torch.log1p(x / large) - x
    series = series + (_stirling_rest(x + large) - _stirling_rest(large))
    small = theta.clamp(max=_LARGE)
    gammas = torch.lgamma(x + small) - torch.lgamma(small)
    return torch.where(is_large, series, gammas), torch.where(is_large, 1.0, theta).log()


def _log_nb_kernel(x: Tensor, mu: Tensor, theta: Tensor, log_theta: Tensor, s: Tensor) -> Tensor:
    # x (log(mu) - s) - (x + theta) log(1 + mu/theta). log1p keeps its digits when theta is large
    # (the Poisson limit); through exp(-log_theta) no gradient overflows when theta is tiny.
    log_ratio = torch.log1p(mu * torch.exp(-log_theta))
    return x * (_log_where_counted(x, mu) - s) - (x + theta) * log_ratio


def log_nb_positive(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    r"""Log mass of the negative binomial with mean :math:`\mu` and inverse dispersion.

    .. math::
        \log\Gamma(x+\theta) - \log\Gamma(\theta) - \log\Gamma(x+1)
        + \theta \log\frac{\theta}{\theta+\mu} + x \log\frac{\mu}{\theta+\mu}

    Parameters
    ----------
    x
        Counts.
    mu
        Mean :math:`\mu \ge 0`.
    theta
        Inverse dispersion :math:`\theta > 0`; the variance is :math:`\mu + \mu^2/\theta`.
    """
    rising, s = _log_rising(x, theta)
    return rising - torch.lgamma(x + 1) + _log_nb_kernel(x, mu, theta, theta.log(), s)


def log_nb_logits(x: Tensor, total_count: Tensor, logits: Tensor) -> Tensor:
    r"""Log mass of the negative binomial with success log-odds, mean :math:`r e^{\text{logits}}`.

    Parameters
    ----------
    x
        Counts.
    total_count
        Number of failures :math:`r > 0`.
    logits
        Log-odds of success.
    """
    rising, s = _log_rising(x, total_count)
    kernel = x * (logits + (total_count.log() - s)) - (x + total_count) * log1pexp(logits)
    return rising - torch.lgamma(x + 1) + kernel


def add_zero_inflation(x: Tensor, log_mass: Tensor, zi_logits: Tensor) -> Tensor:
    r"""Mix a count distribution with an extra zero of probability ``sigmoid(zi_logits)``.

    Parameters
    ----------
    x
        Counts.
    log_mass
        Log mass of ``x`` under the distribution that is inflated.
    zi_logits
        Log-odds of the extra zero.
    """
    inflated = torch.where(x == 0, torch.logaddexp(zi_logits, log_mass), log_mass)
    return inflated - log1pexp(zi_logits)


def log_zinb_positive(x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor) -> Tensor:
    """Log mass of the zero-inflated negative binomial (:func:`log_nb_positive` and an extra zero).

    Parameters
    ----------
    x, mu, theta
        As in :func:`log_nb_positive`; ``mu`` is the mean without inflation.
    zi_logits
        Log-odds of the extra zero.
    """
    return add_zero_inflation(x, log_nb_positive(x, mu, theta), zi_logits)


def log_mixture_nb(
    x: Tensor,
    mu1: Tensor,
    mu2: Tensor,
    theta1: Tensor,
    theta2: Tensor | None,
    mixture_logits: Tensor,
) -> Tensor:
    """Log mass of a mixture of two negative binomials.

    Parameters
    ----------
    x
        Counts.
    mu1, mu2
        Means of the components.
    theta1, theta2
        Inverse dispersions; ``theta2=None`` means that the components share ``theta1`` (then the
        log-gamma terms are computed once).
    mixture_logits
        Log-odds of the *first* component.
    """
    if theta2 is None:
        log_theta = theta1.log()
        rising, s = _log_rising(x, theta1)
        first = _log_nb_kernel(x, mu1, theta1, log_theta, s)
        second = _log_nb_kernel(x, mu2, theta1, log_theta, s)
        shared = rising - torch.lgamma(x + 1) - log1pexp(mixture_logits)
        return shared + torch.logaddexp(mixture_logits + first, second)
    first = log_nb_positive(x, mu1, theta1)
    second = log_nb_positive(x, mu2, theta2)
    return torch.logaddexp(mixture_logits + first, second) - log1pexp(mixture_logits)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def log_beta_binomial(
    x: Tensor, total_count: Tensor, concentration1: Tensor, concentration0: Tensor
) -> Tensor:
    r"""Log mass of the beta-binomial, :math:`\log\binom{n}{x} + \log B(x+a, n-x+b) - \log B(a, b)`.

    Parameters
    ----------
    x
        Counts between zero and ``total_count``.
    total_count
        Number of trials :math:`n`.
    concentration1, concentration0
        Parameters :math:`a, b > 0` of the beta distribution of the success probability.
    """
    rest = total_count - x
    log_binomial = torch.lgamma(total_count + 1) - torch.lgamma(x + 1) - torch.lgamma(rest + 1)
    log_beta_posterior = (
        torch.lgamma(x + concentration1)
        + torch.lgamma(rest + concentration0)
        - torch.lgamma(total_count + (concentration1 + concentration0))
    )
    return log_binomial + log_beta_posterior - _log_beta(concentration1, concentration0)


def log_normal_density(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Log density of the normal distribution at ``z``.

    Parameters
    ----------
    z
        Values.
    loc, scale
        Mean and standard deviation.
    """
    return -0.5 * ((z - loc) / scale).square() - (scale.log() + _HALF_LOG_2PI)


def log_gamma_density(x: Tensor, concentration: Tensor, rate: Tensor) -> Tensor:
    """Log density of the gamma distribution at ``x > 0``.

    Parameters
    ----------
    x
        Positive values.
    concentration, rate
        Shape and rate; the mean is ``concentration / rate``.
    """
    normaliser = torch.lgamma(concentration) - concentration * rate.log()
    return (concentration - 1) * x.log() - rate * x - normaliser
