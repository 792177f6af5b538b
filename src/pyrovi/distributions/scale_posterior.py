"""The exact posterior of a standard deviation with a log-normal prior, given normal effects."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

_NODES = 64
_NEWTON_STEPS = 12
_DROP = 18.0
"""How far, in logarithms, the density has fallen from its mode where the grid ends."""


class ScalePosterior(TorchDistribution):
    r"""Posterior of the standard deviation of normal effects under a log-normal prior.

    .. math::
        p(\sigma \mid u) \propto \mathrm{LogNormal}(\sigma \mid m, \omega)
        \prod_{d=1}^D \mathrm{Normal}(u_d \mid 0, \sigma)

    The density of :math:`t = \log \sigma` is log-concave. It is normalised by the trapezoidal rule
    on a grid around its mode, which for a smooth density that vanishes at both ends is accurate to
    rounding, and drawn from by the inverse of the distribution function on the same grid.

    Draws have no gradient. In a guide that draws :math:`u` first, none is missing: the densities of
    :math:`\sigma` and :math:`u` in the story, over this one, are that of :math:`u` alone, which is
    the same at every :math:`\sigma`.

    Parameters
    ----------
    sum_squares
        :math:`\sum_d u_d^2`.
    count
        :math:`D`.
    loc, spread
        :math:`m` and :math:`\omega`: mean and standard deviation of the logarithm in the prior.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.positive
    has_rsample = True

    def __init__(self, sum_squares: Tensor, count: int, loc: Tensor, spread: Tensor) -> None:
        self.sum_squares, self.loc, self.spread = torch.broadcast_tensors(sum_squares, loc, spread)
        self.count = count
        super().__init__(self.sum_squares.shape, validate_args=False)
        self._first, self._width = self._make_grid()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw; without gradients, see the class."""
        mass = self._on_grid.detach().softmax(0).cumsum(0)
        mass = mass.reshape(_NODES, *(1,) * len(sample_shape), *self.batch_shape)
        shape = (2, *sample_shape, *self.batch_shape)
        chosen, within = torch.rand(shape, dtype=mass.dtype, device=mass.device)
        node = (mass[:-1] < chosen).sum(0)
        return (self._first + (node + within - 0.5) * self._width).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the standard deviation."""
        logarithm = value.log()
        log_mass = self._on_grid.logsumexp(0) + self._width.log()
        return self._log_density(logarithm) - log_mass - logarithm

    def expand(self, batch_shape: Any, _instance: Any = None) -> ScalePosterior:
        """The same, of a larger batch shape."""
        parameters = (x.expand(batch_shape) for x in (self.sum_squares, self.loc, self.spread))
        sum_squares, loc, spread = parameters
        return ScalePosterior(sum_squares, self.count, loc, spread)

    @cached_property
    def _on_grid(self) -> Tensor:
        """Log density at the points of the grid, shape ``(nodes, *batch_shape)``."""
        nodes = torch.arange(_NODES, device=self._first.device, dtype=self._first.dtype)
        nodes = nodes.reshape(-1, *(1,) * self._first.ndim)
        return self._log_density(self._first + nodes * self._width)

    def _log_density(self, t: Tensor) -> Tensor:
        """Of the logarithm, but for a constant that depends on nothing but the count."""
        prior = -0.5 * ((t - self.loc) / self.spread) ** 2 - self.spread.log()
        return prior - self.count * t - 0.5 * self.sum_squares * (-2 * t).exp()

    @torch.no_grad()
    def _make_grid(self) -> tuple[Tensor, Tensor]:
        """First and distance of equidistant points between which all of the mass is."""
        precision = self.spread**-2
        alone = 0.5 * (self.sum_squares.clamp_min(1e-30) / self.count).log()
        mode = torch.minimum(alone, self.loc)  # of a convex slope, left of the root
        for _ in range(_NEWTON_STEPS):
            pull = self.sum_squares * (-2 * mode).exp()
            slope = pull - self.count - precision * (mode - self.loc)
            mode = mode + slope / (precision + 2 * pull)
        # the fall at a distance y to the left is at least A y^2 + y^2 / (2 omega^2), to the right
        # A (y - 1/2) + y^2 / (2 omega^2)
        pull = self.sum_squares * (-2 * mode).exp()
        prior = self.spread * math.sqrt(2 * _DROP)
        left = torch.minimum(prior, (_DROP / pull).sqrt())
        right = torch.minimum(prior, _DROP / pull + 0.5)
        return mode - left, (left + right) / (_NODES - 1)
