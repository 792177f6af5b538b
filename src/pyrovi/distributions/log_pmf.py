r"""Log mass and log density functions: pure functions of tensors, one per family.

All broadcast their arguments, are differentiable in the parameters, and work under
:func:`torch.func.vmap`. No constant is added to keep logarithms finite: a mean of zero gives
probability one to the count zero, and ``-inf`` to any other.

Special functions of a parameter are evaluated at that parameter's own shape, before broadcasting.
In single precision the absolute error is about 1e-7 times the largest log-gamma involved: below
1e-4 for counts and inverse dispersions up to 100, about 1e-2 at 10\ :sup:`4`, about one at
10\ :sup:`6`. Use double precision (or the Poisson limit) beyond.
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


def _log_nb_coefficient(x: Tensor, theta: Tensor, x_plus_theta: Tensor) -> Tensor:
    return torch.lgamma(x_plus_theta) - torch.lgamma(theta) - torch.lgamma(x + 1)


def _log_nb_kernel(x: Tensor, mu: Tensor, x_plus_theta: Tensor, log_theta: Tensor) -> Tensor:
    # theta log(theta/(theta+mu)) + x log(mu/(theta+mu)). log1p keeps its digits when theta is large
    # (the Poisson limit); through exp(-log_theta) no gradient overflows when theta is tiny.
    log_ratio = torch.log1p(mu * torch.exp(-log_theta))
    return x * (_log_where_counted(x, mu) - log_theta) - x_plus_theta * log_ratio


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
    x_plus_theta = x + theta
    kernel = _log_nb_kernel(x, mu, x_plus_theta, theta.log())
    return _log_nb_coefficient(x, theta, x_plus_theta) + kernel


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
    x_plus_count = x + total_count
    kernel = x * logits - x_plus_count * log1pexp(logits)
    return _log_nb_coefficient(x, total_count, x_plus_count) + kernel


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
        total = x + theta1
        log_theta = theta1.log()
        first = _log_nb_kernel(x, mu1, total, log_theta)
        second = _log_nb_kernel(x, mu2, total, log_theta)
        coefficient = _log_nb_coefficient(x, theta1, total) - log1pexp(mixture_logits)
        return coefficient + torch.logaddexp(mixture_logits + first, second)
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
