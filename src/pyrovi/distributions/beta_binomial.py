"""Beta-binomial distribution of counts out of a known total."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovi.distributions._base import CompactDistribution, Constraints, ParameterLike
from pyrovi.distributions.log_pmf import log_beta_binomial
from pyrovi.distributions.negative_binomial import check_one_parametrisation


class _OpenUnitInterval(constraints.Constraint):
    """Strictly between zero and one: at either end the beta distribution degenerates."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "OpenInterval(lower_bound=0, upper_bound=1)"


_open_unit_interval = _OpenUnitInterval()


class BetaBinomial(CompactDistribution):
    r"""Beta-binomial distribution, a binomial with a beta distributed success probability.

    .. math::
        p \sim \mathrm{Beta}(\alpha, \beta), \qquad x \sim \mathrm{Binomial}(n, p).

    Give ``alpha`` and ``beta``, or the mean ``mu`` :math:`= \alpha/(\alpha+\beta)` and the
    dispersion ``gamma`` :math:`= 1/(\alpha+\beta+1)`, with which
    :math:`\mathrm{Var}\,x = n\mu(1-\mu)\,(1+(n-1)\gamma)`.

    Parameters
    ----------
    total_count
        Number of trials :math:`n`, a nonnegative integer.
    alpha, beta
        Parameters of the beta distribution, > 0.
    mu, gamma
        Mean success probability and dispersion, both in (0, 1).
    validate_args
        Whether to check parameters and values; ``None`` follows Pyro's setting.

    Raises
    ------
    ModelError
        If the parameters are neither of the two sets, shapes do not broadcast or (validating)
        a parameter is out of range.
    """

    arg_constraints: ClassVar[Constraints] = {
        "total_count": constraints.nonnegative_integer,
        "alpha": constraints.positive,
        "beta": constraints.positive,
        "mu": _open_unit_interval,
        "gamma": _open_unit_interval,
    }

    def __init__(
        self,
        total_count: ParameterLike,
        alpha: ParameterLike | None = None,
        beta: ParameterLike | None = None,
        mu: ParameterLike | None = None,
        gamma: ParameterLike | None = None,
        validate_args: bool | None = None,
    ) -> None:
        parameters = {"alpha": alpha, "beta": beta, "mu": mu, "gamma": gamma}
        check_one_parametrisation(
            type(self).__name__, parameters, [("alpha", "beta"), ("mu", "gamma")]
        )
        super().__init__({"total_count": total_count, **parameters}, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Integers from zero to ``total_count``."""
        return constraints.integer_interval(0, self.total_count)

    def _concentrations(self) -> tuple[Tensor, Tensor]:
        stored = self._parameters
        if "alpha" in stored:
            return stored["alpha"], stored["beta"]
        total = (1 - stored["gamma"]) / stored["gamma"]
        return stored["mu"] * total, (1 - stored["mu"]) * total

    @property
    def total_count(self) -> Tensor:
        """Number of trials."""
        return self._parameters["total_count"].expand(self.batch_shape)

    @property
    def concentration1(self) -> Tensor:
        """First parameter of the beta distribution, ``alpha``."""
        return self._concentrations()[0].expand(self.batch_shape)

    @property
    def concentration0(self) -> Tensor:
        """Second parameter of the beta distribution, ``beta``."""
        return self._concentrations()[1].expand(self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """Mean of the counts."""
        alpha, beta = self._concentrations()
        return self.total_count * (alpha / (alpha + beta))

    @property
    def variance(self) -> Tensor:
        """Variance of the counts."""
        alpha, beta = self._concentrations()
        total = alpha + beta
        binomial = self.total_count * alpha * beta / total.square()
        return binomial * (total + self.total_count) / (total + 1)

    def _log_prob(self, value: Tensor) -> Tensor:
        alpha, beta = self._concentrations()
        return log_beta_binomial(value, self._parameters["total_count"], alpha, beta)

    def _sample(self, shape: torch.Size) -> Tensor:
        alpha, beta = self._concentrations()
        # A beta draw is a ratio of two gamma draws; taken as logarithms it stays exact for
        # concentrations near zero, where both draws underflow (torch.distributions.Beta then
        # returns values around one half).
        probs = torch.sigmoid(_sample_log_gamma(alpha, shape) - _sample_log_gamma(beta, shape))
        # The sum gives both arguments one dtype and layout, also under vmap.
        count = torch.zeros_like(probs) + self._parameters["total_count"]
        return torch.binomial(count, probs)


def _sample_log_gamma(concentration: Tensor, shape: torch.Size) -> Tensor:
    """Draw ``log g`` with ``g ~ Gamma(concentration, 1) = Gamma(concentration + 1, 1) U^(1/c)``."""
    concentration = concentration.expand(shape)
    uniform = torch.rand(shape, dtype=concentration.dtype, device=concentration.device)
    boosted = torch._standard_gamma(concentration + 1)
    return boosted.log() + torch.log1p(-uniform) / concentration
