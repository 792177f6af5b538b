"""Normal distributions of expression: on the data's own scale and on the log1p scale."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import Normal as _PyroNormal
from torch import Tensor
from torch.distributions import constraints

from pyrovi.distributions._base import (
    CompactDistribution,
    Constraints,
    Parameter,
    ParameterLike,
    nonnegative,
)
from pyrovi.distributions.log_pmf import log_normal_density
from pyrovi.errors import ModelError


class Normal(_PyroNormal):
    """Pyro's normal distribution that carries a normalised expression and samples under vmap.

    ``scale`` is the standard deviation here, so the normalised expression that count
    distributions carry as ``scale`` is called ``normal_mu``.

    Parameters
    ----------
    loc, scale
        Mean and standard deviation.
    validate_args
        Whether to check parameters and values; ``None`` follows Pyro's setting.
    normal_mu
        Normalised expression; only carried along.
    """

    normal_mu: Tensor | None

    def __init__(
        self,
        loc: ParameterLike,
        scale: ParameterLike,
        validate_args: bool | None = None,
        normal_mu: Tensor | None = None,
    ) -> None:
        super().__init__(loc, scale, validate_args=validate_args)
        self.normal_mu = normal_mu

    def expand(self, batch_shape: Any, _instance: Normal | None = None) -> Normal:
        """Return the same distribution with a larger batch shape."""
        new = self._get_checked_instance(Normal, _instance)
        super().expand(batch_shape, new)
        carried = self.normal_mu
        new.normal_mu = carried if carried is None else carried.expand(new.batch_shape)
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values, differentiable in the parameters, of ``sample_shape + batch_shape``."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * noise

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def get_normalized(self, key: str) -> Tensor:
        """Return the mean (``"mu"``) or the normalised expression (``"scale"``).

        Raises
        ------
        ModelError
            If ``key`` is neither, or no normalised expression is carried.
        """
        if key == "mu":
            return self.loc
        if key == "scale" and self.normal_mu is not None:
            return self.normal_mu
        raise ModelError(
            f"Normal carries no normalised quantity {key!r}; it has 'mu', and 'scale' if "
            "constructed with `normal_mu=`."
        )


class Log1pNormal(CompactDistribution):
    r"""Distribution of :math:`x = e^z - 1` with :math:`z \sim \mathrm{Normal}(\mu, \sigma)`.

    Its support is :math:`x > -1`.

    Parameters
    ----------
    mu, sigma
        Mean and standard deviation of :math:`\log(1 + x)`.
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
        "mu": constraints.real,
        "sigma": constraints.positive,
        "scale": nonnegative,
    }
    support = constraints.greater_than(-1.0)
    has_rsample = True

    mu = Parameter()
    sigma = Parameter()
    scale = Parameter()

    def __init__(
        self,
        mu: ParameterLike,
        sigma: ParameterLike,
        scale: ParameterLike | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__({"mu": mu, "sigma": sigma, "scale": scale}, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Mean of the values."""
        return torch.expm1(self.mu + 0.5 * self.sigma.square())

    @property
    def variance(self) -> Tensor:
        """Variance of the values."""
        variance = self.sigma.square()
        return torch.expm1(variance) * torch.exp(2 * self.mu + variance)

    def _normalized(self) -> dict[str, Tensor | None]:
        return {"mu": self.mu, "scale": self.scale}

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values, differentiable in the parameters, of ``sample_shape + batch_shape``."""
        return self._sample(self._extended_shape(sample_shape))

    def _log_prob(self, value: Tensor) -> Tensor:
        z = torch.log1p(value)
        return log_normal_density(z, self._parameters["mu"], self._parameters["sigma"]) - z

    def _sample(self, shape: torch.Size) -> Tensor:
        mu, sigma = self._parameters["mu"], self._parameters["sigma"]
        noise = torch.randn(shape, dtype=mu.dtype, device=mu.device)
        return torch.expm1(mu + sigma * noise)
