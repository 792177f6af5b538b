"""Distributions with extra zeros: negative binomial, log-normal and gamma."""

from __future__ import annotations

from typing import ClassVar

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
from pyrovi.distributions.log_pmf import (
    add_zero_inflation,
    log1pexp,
    log_gamma_density,
    log_normal_density,
)
from pyrovi.distributions.negative_binomial import NegativeBinomial


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    r"""Negative binomial with extra zeros.

    With probability :math:`\pi = \mathrm{sigmoid}(\mathrm{zi\_logits})` the count is zero,
    otherwise it is drawn from :class:`NegativeBinomial`. ``mean`` and ``variance`` are those of
    the counts, ``mu`` is the mean without inflation.

    Parameters
    ----------
    total_count, probs, logits, mu, theta, scale, validate_args
        As in :class:`NegativeBinomial`.
    zi_logits
        Log-odds of the extra zero; required.

    Raises
    ------
    ModelError
        As :class:`NegativeBinomial`.
    """

    arg_constraints: ClassVar[Constraints] = {
        **NegativeBinomial.arg_constraints,
        "zi_logits": constraints.real,
    }
    support = constraints.nonnegative_integer

    zi_logits = Parameter()

    def __init__(
        self,
        total_count: ParameterLike | None = None,
        probs: ParameterLike | None = None,
        logits: ParameterLike | None = None,
        mu: ParameterLike | None = None,
        theta: ParameterLike | None = None,
        *,
        zi_logits: ParameterLike,
        scale: ParameterLike | None = None,
        validate_args: bool | None = None,
    ) -> None:
        parameters = self._check_parameters(total_count, probs, logits, mu, theta)
        CompactDistribution.__init__(
            self,
            {**parameters, "zi_logits": zi_logits, "scale": scale},
            validate_args=validate_args,
        )

    @property
    def zi_probs(self) -> Tensor:
        """Probability of the extra zero."""
        return torch.sigmoid(self.zi_logits)

    @property
    def mean(self) -> Tensor:
        """Mean of the counts, ``(1 - zi_probs) * mu``."""
        return torch.sigmoid(-self.zi_logits) * self.mu

    @property
    def variance(self) -> Tensor:
        """Variance of the counts."""
        return _inflated_variance(self.zi_logits, self.mu, self._nb_variance())

    def _log_prob(self, value: Tensor) -> Tensor:
        zi_logits = self._parameters["zi_logits"]
        if "logits" in self._parameters:
            return add_zero_inflation(value, super()._log_prob(value), zi_logits)
        return compiled_counts.log_mass(value, self._mu(), self._theta(), zi_logits)

    def _sample(self, shape: torch.Size) -> Tensor:
        return _inflate(super()._sample(shape), self._parameters["zi_logits"])


class ZeroInflatedLogNormal(CompactDistribution):
    r"""Log-normal distribution with an atom at zero, for continuous data with zeros.

    The value is 0 with probability :math:`\pi = \mathrm{sigmoid}(\mathrm{zi\_logits})`, otherwise
    :math:`\log x \sim \mathrm{Normal}(\mu, \mathrm{scale})`. :meth:`log_prob` is the log
    probability of the atom at zero, and a log density elsewhere.

    Parameters
    ----------
    mu, scale
        Mean and standard deviation of the logarithm of a value that is not zero.
    zi_logits
        Log-odds of zero.
    normal_mu
        Normalised expression; only carried along (``scale`` is the standard deviation here).
    validate_args
        Whether to check parameters and values; ``None`` follows Pyro's setting.

    Raises
    ------
    ModelError
        If shapes do not broadcast or (validating) a parameter is out of range.
    """

    arg_constraints: ClassVar[Constraints] = {
        "mu": constraints.real,
        "scale": constraints.positive,
        "zi_logits": constraints.real,
        "normal_mu": constraints.real,
    }
    support = constraints.nonnegative

    mu = Parameter()
    scale = Parameter()
    zi_logits = Parameter()
    normal_mu = Parameter()

    def __init__(
        self,
        mu: ParameterLike,
        scale: ParameterLike,
        zi_logits: ParameterLike,
        normal_mu: ParameterLike | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(
            {"mu": mu, "scale": scale, "zi_logits": zi_logits, "normal_mu": normal_mu},
            validate_args=validate_args,
        )

    @property
    def zi_probs(self) -> Tensor:
        """Probability of zero."""
        return torch.sigmoid(self.zi_logits)

    @property
    def mean(self) -> Tensor:
        """Mean of the values, zeros included."""
        return torch.sigmoid(-self.zi_logits) * self._positive_mean()

    @property
    def variance(self) -> Tensor:
        """Variance of the values, zeros included."""
        mean = self._positive_mean()
        variance = torch.expm1(self.scale.square()) * mean.square()
        return _inflated_variance(self.zi_logits, mean, variance)

    def _positive_mean(self) -> Tensor:
        return torch.exp(self.mu + 0.5 * self.scale.square())

    def _normalized(self) -> dict[str, Tensor | None]:
        return {"mu": self.mu, "scale": self.normal_mu}

    def _log_prob(self, value: Tensor) -> Tensor:
        stored = self._parameters
        log_x = value.masked_fill(value == 0, 1.0).log()
        density = log_normal_density(log_x, stored["mu"], stored["scale"]) - log_x
        return _atom_or_density(value, density, stored["zi_logits"])

    def _sample(self, shape: torch.Size) -> Tensor:
        stored = self._parameters
        noise = torch.randn(shape, dtype=stored["mu"].dtype, device=stored["mu"].device)
        positive = torch.exp(stored["mu"] + stored["scale"] * noise)
        return _inflate(_above_zero(positive), stored["zi_logits"])


class ZeroInflatedGamma(CompactDistribution):
    r"""Gamma distribution with an atom at zero, for continuous data with zeros.

    The value is 0 with probability :math:`\pi = \mathrm{sigmoid}(\mathrm{zi\_logits})`, otherwise
    :math:`x \sim \mathrm{Gamma}(\mathrm{concentration}, \mathrm{rate})`. :meth:`log_prob` is the
    log probability of the atom at zero, and a log density elsewhere.

    Parameters
    ----------
    concentration, rate
        Shape and rate of the gamma distribution.
    zi_logits
        Log-odds of zero.
    scale
        Normalised expression; only carried along.
    validate_args
        Whether to check parameters and values; ``None`` follows Pyro's setting.

    Raises
    ------
    ModelError
        If shapes do not broadcast or (validating) a parameter is out of range.
    """

    arg_constraints: ClassVar[Constraints] = {
        "concentration": constraints.positive,
        "rate": constraints.positive,
        "zi_logits": constraints.real,
        "scale": nonnegative,
    }
    support = constraints.nonnegative

    concentration = Parameter()
    rate = Parameter()
    zi_logits = Parameter()
    scale = Parameter()

    def __init__(
        self,
        concentration: ParameterLike,
        rate: ParameterLike,
        zi_logits: ParameterLike,
        scale: ParameterLike | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(
            {
                "concentration": concentration,
                "rate": rate,
                "zi_logits": zi_logits,
                "scale": scale,
            },
            validate_args=validate_args,
        )

    @property
    def zi_probs(self) -> Tensor:
        """Probability of zero."""
        return torch.sigmoid(self.zi_logits)

    @property
    def mean(self) -> Tensor:
        """Mean of the values, zeros included."""
        return torch.sigmoid(-self.zi_logits) * self._positive_mean()

    @property
    def variance(self) -> Tensor:
        """Variance of the values, zeros included."""
        mean = self._positive_mean()
        return _inflated_variance(self.zi_logits, mean, mean / self.rate)

    def _positive_mean(self) -> Tensor:
        return self.concentration / self.rate

    def _normalized(self) -> dict[str, Tensor | None]:
        return {"mu": self._positive_mean(), "scale": self.scale}

    def _log_prob(self, value: Tensor) -> Tensor:
        stored = self._parameters
        positive = value.masked_fill(value == 0, 1.0)
        density = log_gamma_density(positive, stored["concentration"], stored["rate"])
        return _atom_or_density(value, density, stored["zi_logits"])

    def _sample(self, shape: torch.Size) -> Tensor:
        stored = self._parameters
        gamma = torch._standard_gamma(stored["concentration"].expand(shape)) / stored["rate"]
        return _inflate(_above_zero(gamma), stored["zi_logits"])


def _atom_or_density(value: Tensor, log_density: Tensor, zi_logits: Tensor) -> Tensor:
    return torch.where(value == 0, zi_logits, log_density) - log1pexp(zi_logits)


def _above_zero(draw: Tensor) -> Tensor:
    # A draw of the density so small that it underflows must not turn into the atom.
    return draw.clamp(min=torch.finfo(draw.dtype).tiny)


def _inflate(draw: Tensor, zi_logits: Tensor) -> Tensor:
    kept = torch.bernoulli(torch.sigmoid(-zi_logits).expand(draw.shape))
    # where, not a product: an overflown draw times zero would be nan
    return torch.where(kept == 0, torch.zeros_like(draw), draw)


def _inflated_variance(zi_logits: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    kept = torch.sigmoid(-zi_logits)
    return kept * (variance + torch.sigmoid(zi_logits) * mean.square())
