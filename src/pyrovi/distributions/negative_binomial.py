"""Poisson and negative binomial distributions of counts."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovi.distributions import compiled_counts
from pyrovi.distributions._base import (
    CompactDistribution,
    Constraints,
    Parameter,
    ParameterLike,
    nonnegative,
)
from pyrovi.distributions.log_pmf import log_nb_logits
from pyrovi.errors import ModelError


class Poisson(CompactDistribution):
    r"""Poisson distribution, :math:`x \sim \mathrm{Poisson}(\lambda)`.

    Parameters
    ----------
    rate
        Mean :math:`\lambda \ge 0`.
    validate_args
        Whether to check parameters and values; ``None`` follows Pyro's setting.
    scale
        Normalised expression (the mean without the library size); only carried along.

    Raises
    ------
    ModelError
        If shapes do not broadcast or (validating) a parameter is out of range.
    """

    arg_constraints: ClassVar[Constraints] = {"rate": nonnegative, "scale": nonnegative}
    support = constraints.nonnegative_integer

    rate = Parameter()
    scale = Parameter()

    def __init__(
        self,
        rate: ParameterLike,
        validate_args: bool | None = None,
        scale: ParameterLike | None = None,
    ) -> None:
        super().__init__({"rate": rate, "scale": scale}, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The rate."""
        return self.rate

    @property
    def variance(self) -> Tensor:
        """The rate."""
        return self.rate

    def _log_prob(self, value: Tensor) -> Tensor:
        return compiled_counts.log_mass(value, self._parameters["rate"])

    def _sample(self, shape: torch.Size) -> Tensor:
        return torch.poisson(self._parameters["rate"].expand(shape))


class NegativeBinomial(CompactDistribution):
    r"""Negative binomial distribution of counts, a Poisson with a gamma distributed rate.

    .. math::
        w \sim \mathrm{Gamma}(\theta, \theta/\mu), \qquad x \sim \mathrm{Poisson}(w),

    so :math:`\mathrm{E}\,x = \mu` and :math:`\mathrm{Var}\,x = \mu + \mu^2/\theta`. Give exactly
    one of: ``mu`` and ``theta``; ``total_count`` and ``logits``; ``total_count`` and ``probs``.
    They are related by ``theta = total_count`` and ``mu = total_count * exp(logits)``.

    Parameters
    ----------
    total_count
        Number of failures, > 0 (need not be an integer).
    probs
        Success probability in [0, 1).
    logits
        Success log-odds.
    mu
        Mean, >= 0.
    theta
        Inverse dispersion, > 0.
    scale
        Normalised expression (the mean without the library size); only carried along.
    validate_args
        Whether to check parameters and values; ``None`` follows Pyro's setting.

    Raises
    ------
    ModelError
        If the parameters are none of the three sets, shapes do not broadcast or (validating)
        a parameter is out of range.
    """

    arg_constraints: ClassVar[Constraints] = {
        "mu": nonnegative,
        "theta": constraints.positive,
        "total_count": constraints.positive,
        "probs": constraints.half_open_interval(0.0, 1.0),
        "logits": constraints.real,
        "scale": nonnegative,
    }
    support = constraints.nonnegative_integer

    scale = Parameter()

    def __init__(
        self,
        total_count: ParameterLike | None = None,
        probs: ParameterLike | None = None,
        logits: ParameterLike | None = None,
        mu: ParameterLike | None = None,
        theta: ParameterLike | None = None,
        scale: ParameterLike | None = None,
        validate_args: bool | None = None,
    ) -> None:
        parameters = self._check_parameters(total_count, probs, logits, mu, theta)
        super().__init__({**parameters, "scale": scale}, validate_args=validate_args)

    @classmethod
    def _check_parameters(
        cls,
        total_count: ParameterLike | None,
        probs: ParameterLike | None,
        logits: ParameterLike | None,
        mu: ParameterLike | None,
        theta: ParameterLike | None,
    ) -> dict[str, ParameterLike | None]:
        parameters = {
            "mu": mu,
            "theta": theta,
            "total_count": total_count,
            "probs": probs,
            "logits": logits,
        }
        check_one_parametrisation(
            cls.__name__,
            parameters,
            [("mu", "theta"), ("total_count", "logits"), ("total_count", "probs")],
        )
        return parameters

    def _theta(self) -> Tensor:
        stored = self._parameters
        return stored["theta"] if "theta" in stored else stored["total_count"]

    def _mu(self) -> Tensor:
        stored = self._parameters
        if "mu" in stored:
            return stored["mu"]
        if "logits" in stored:
            return stored["total_count"] * stored["logits"].exp()
        return stored["total_count"] * stored["probs"] / (1 - stored["probs"])

    def _logits(self) -> Tensor:
        if "logits" in self._parameters:
            return self._parameters["logits"]
        return self._mu().log() - self._theta().log()

    @property
    def mu(self) -> Tensor:
        """Mean of the negative binomial."""
        return self._mu().expand(self.batch_shape)

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion."""
        return self._theta().expand(self.batch_shape)

    @property
    def total_count(self) -> Tensor:
        """Number of failures, which is the inverse dispersion."""
        return self.theta

    @property
    def logits(self) -> Tensor:
        """Success log-odds, ``log(mu / theta)``."""
        return self._logits().expand(self.batch_shape)

    @property
    def probs(self) -> Tensor:
        """Success probability, ``mu / (mu + theta)``."""
        if "probs" in self._parameters:
            return self._parameters["probs"].expand(self.batch_shape)
        return torch.sigmoid(self.logits)

    @property
    def mean(self) -> Tensor:
        """Mean of the counts."""
        return self.mu

    @property
    def variance(self) -> Tensor:
        """Variance of the counts, ``mu + mu**2 / theta``."""
        return self._nb_variance().expand(self.batch_shape)

    def _nb_variance(self) -> Tensor:
        mu = self._mu()
        return mu + mu.square() / self._theta()

    def _normalized(self) -> dict[str, Tensor | None]:
        return {"mu": self.mu, "scale": self.scale}

    def _log_prob(self, value: Tensor) -> Tensor:
        if "logits" in self._parameters:
            stored = self._parameters
            return log_nb_logits(value, stored["total_count"], stored["logits"])
        return compiled_counts.log_mass(value, self._mu(), self._theta())

    def _sample(self, shape: torch.Size) -> Tensor:
        return sample_nb(self._mu(), self._theta(), shape)


def sample_nb(mu: Tensor, theta: Tensor, shape: Any) -> Tensor:
    """Draw negative binomial counts as a gamma mixture of Poisson distributions.

    Parameters
    ----------
    mu, theta
        Mean and inverse dispersion; any shapes that expand to ``shape``.
    shape
        Shape of the result.
    """
    rate = torch._standard_gamma(theta.expand(shape)) * (mu / theta)
    return torch.poisson(rate)


def check_one_parametrisation(
    owner: str,
    parameters: dict[str, ParameterLike | None],
    alternatives: list[tuple[str, ...]],
) -> None:
    """Check that exactly one of several sets of parameters is given.

    Raises
    ------
    ModelError
        If the given names are not one of ``alternatives``; the message lists both.
    """
    given = [key for key, value in parameters.items() if value is not None]
    if not any(set(given) == set(names) for names in alternatives):
        wanted = "; ".join(" and ".join(f"`{name}`" for name in names) for names in alternatives)
        found = ", ".join(f"`{name}`" for name in given) or "none of them"
        raise ModelError(f"{owner}: give exactly one of the sets {wanted}; found {found}.")
