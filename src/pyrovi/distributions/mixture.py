"""Mixture of two negative binomial distributions."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovi.distributions._base import (
    CompactDistribution,
    Constraints,
    Parameter,
    ParameterLike,
    nonnegative,
)
from pyrovi.distributions.log_pmf import log_mixture_nb
from pyrovi.distributions.negative_binomial import sample_nb


class NegativeBinomialMixture(CompactDistribution):
    r"""Mixture of two negative binomials, such as protein background and foreground.

    .. math::
        x \sim \pi\, \mathrm{NB}(\mu_1, \theta_1) + (1-\pi)\, \mathrm{NB}(\mu_2, \theta_2),
        \qquad \pi = \mathrm{sigmoid}(\mathrm{mixture\_logits}).

    Parameters
    ----------
    mu1, mu2
        Means of the components, >= 0.
    theta1
        Inverse dispersion of the first component, > 0.
    mixture_logits
        Log-odds of the *first* component.
    theta2
        Inverse dispersion of the second component; ``None`` shares ``theta1``.
    validate_args
        Whether to check parameters and values; ``None`` follows Pyro's setting.

    Raises
    ------
    ModelError
        If shapes do not broadcast or (validating) a parameter is out of range.
    """

    arg_constraints: ClassVar[Constraints] = {
        "mu1": nonnegative,
        "mu2": nonnegative,
        "theta1": constraints.positive,
        "mixture_logits": constraints.real,
        "theta2": constraints.positive,
    }
    support = constraints.nonnegative_integer

    mu1 = Parameter()
    mu2 = Parameter()
    theta1 = Parameter()
    mixture_logits = Parameter()

    def __init__(
        self,
        mu1: ParameterLike,
        mu2: ParameterLike,
        theta1: ParameterLike,
        mixture_logits: ParameterLike,
        theta2: ParameterLike | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(
            {
                "mu1": mu1,
                "mu2": mu2,
                "theta1": theta1,
                "mixture_logits": mixture_logits,
                "theta2": theta2,
            },
            validate_args=validate_args,
        )

    @property
    def theta2(self) -> Tensor:
        """Inverse dispersion of the second component."""
        return self._theta2().expand(self.batch_shape)

    def _theta2(self) -> Tensor:
        return self._parameters.get("theta2", self._parameters["theta1"])

    @property
    def mixture_probs(self) -> Tensor:
        """Probability of the first component."""
        return torch.sigmoid(self.mixture_logits)

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture."""
        first = self.mixture_probs
        return first * self.mu1 + (1 - first) * self.mu2

    @property
    def variance(self) -> Tensor:
        """Variance of the mixture: within components plus between their means."""
        first = self.mixture_probs
        within1 = self.mu1 + self.mu1.square() / self.theta1
        within2 = self.mu2 + self.mu2.square() / self.theta2
        between = first * (1 - first) * (self.mu1 - self.mu2).square()
        return first * within1 + (1 - first) * within2 + between

    def _log_prob(self, value: Tensor) -> Tensor:
        stored = self._parameters
        return log_mixture_nb(
            value,
            stored["mu1"],
            stored["mu2"],
            stored["theta1"],
            stored.get("theta2"),
            stored["mixture_logits"],
        )

    def _sample(self, shape: torch.Size) -> Tensor:
        stored = self._parameters
        first = torch.bernoulli(torch.sigmoid(stored["mixture_logits"]).expand(shape)) == 1
        mu = torch.where(first, stored["mu1"], stored["mu2"])
        theta = torch.where(first, stored["theta1"], self._theta2())
        return sample_nb(mu, theta, shape)
