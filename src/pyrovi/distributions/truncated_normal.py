"""The normal distribution above a bound."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to, transforms

from pyrovi.distributions._base import (
    CompactDistribution,
    Constraints,
    Parameter,
    ParameterLike,
)
from pyrovi.distributions.log_pmf import log_normal_density


class above(constraints.greater_than):
    """Numbers above a bound, mapped from the real line by softplus instead of exp.

    Densities with tails of a normal distribution above the bound keep them on the real line.
    """


@biject_to.register(above)
@transform_to.register(above)
def _softplus_above(constraint: above) -> transforms.Transform:
    shift = transforms.AffineTransform(constraint.lower_bound, 1.0)
    return transforms.ComposeTransform([transforms.SoftplusTransform(), shift])


class TruncatedNormal(CompactDistribution):
    r"""Normal distribution given that the value exceeds a bound.

    .. math::
        p(x) = \frac{\mathrm{Normal}(x \mid \mu, \sigma)}{\Phi((\mu - \ell) / \sigma)},
        \qquad x > \ell

    Parameters
    ----------
    loc, scale
        Mean :math:`\mu` and standard deviation :math:`\sigma` of the normal distribution, before
        anything is cut off.
    low
        The bound :math:`\ell`, a number.
    validate_args
        Whether to check parameters and values; ``None`` follows Pyro's setting.

    Raises
    ------
    ModelError
        If shapes do not broadcast or (validating) a parameter is out of range.
    """

    arg_constraints: ClassVar[Constraints] = {
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    has_rsample = True

    loc = Parameter()
    scale = Parameter()

    def __init__(
        self,
        loc: ParameterLike,
        scale: ParameterLike,
        low: float,
        validate_args: bool | None = None,
    ) -> None:
        self.low = float(low)
        super().__init__({"loc": loc, "scale": scale}, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The numbers above the bound."""
        return above(self.low)

    def expand(self, batch_shape, _instance=None):  # type: ignore[no-untyped-def]
        """Return the same distribution with a larger batch shape; no parameter is copied."""
        new = super().expand(batch_shape, _instance)
        new.low = self.low
        return new

    @property
    def mean(self) -> Tensor:
        """Mean of the values."""
        return self.loc + self.scale * self._hazard()

    @property
    def variance(self) -> Tensor:
        """Variance of the values."""
        hazard, bound = self._hazard(), (self.low - self.loc) / self.scale
        return self.scale.square() * (1 + hazard * (bound - hazard))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values, differentiable in the parameters, of ``sample_shape + batch_shape``."""
        return self._sample(self._extended_shape(sample_shape))

    def _hazard(self) -> Tensor:
        """Density of the standard normal at the bound, divided by the mass above it."""
        bound = (self.low - self.loc) / self.scale
        zero = torch.zeros_like(bound)
        log_density = log_normal_density(bound, zero, zero + 1)
        return (log_density - _log_ndtr(-bound)).exp()

    def _log_prob(self, value: Tensor) -> Tensor:
        loc, scale = self._parameters["loc"], self._parameters["scale"]
        log_mass = _log_ndtr((loc - self.low) / scale)
        return log_normal_density(value, loc, scale) - log_mass

    def _sample(self, shape: torch.Size) -> Tensor:
        loc, scale = self._parameters["loc"], self._parameters["scale"]
        # in double precision: far in the tail the mass above the bound is tiny
        mass = 0.5 * torch.special.erfc((self.low - loc).double() / (scale * math.sqrt(2.0)))
        uniform = torch.rand(shape, dtype=torch.float64, device=loc.device)
        z = -torch.special.ndtri((uniform * mass).clamp(min=torch.finfo(torch.float64).tiny))
        value = loc + scale * z.to(loc.dtype)
        least = torch.nextafter(loc.new_tensor(self.low), loc.new_tensor(torch.inf))
        return torch.maximum(value, least)


def _log_ndtr(x: Tensor) -> Tensor:
    """Logarithm of the standard normal distribution function, of functions that vmap knows."""
    negative = x.clamp(max=0.0)
    below = torch.special.erfcx(-negative / math.sqrt(2.0)).log() - 0.5 * negative.square()
    above = torch.log1p(-0.5 * torch.special.erfc(x.clamp(min=0.0) / math.sqrt(2.0)))
    return torch.where(x < 0, below - math.log(2.0), above)
