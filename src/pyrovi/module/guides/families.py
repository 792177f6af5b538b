"""Families of distributions for the global sites, on the real line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import (
    AffineAutoregressive,
    AffineTransform,
    LowerCholeskyAffine,
    Permute,
)
from pyro.distributions.transforms.spline import ConditionedSpline
from pyro.nn import AutoRegressiveNN, PyroModule
from torch import Tensor, nn

from pyrovi.errors import ModelError
from pyrovi.module.guides.distributions import (
    PathDerivative,
    draw_joint,
    draw_normal,
    draw_point,
    full_rank_normal,
)
from pyrovi.module.guides.sites import LatentSite, Plates

JOINT_SITE = "_globals_on_real_line"
"""Name of the auxiliary site that holds the coordinates of all global sites."""

_BINS, _BOUND = 8, 4.0  # of the splines, which are the identity outside of (-bound, bound)

_FACTOR_ANALYSIS_STEPS = 100

MAX_JOINT_SIZE = 4096
"""Largest number of coordinates of families whose parameters grow with its square."""


class MeanField(PyroModule):
    """Independent normal coordinates.

    Parameters
    ----------
    sites
        The sites.
    init_scale
        Standard deviation of every coordinate to start from.
    """

    def __init__(self, sites: Sequence[LatentSite], init_scale: float) -> None:
        super().__init__()
        self.sites = tuple(sites)
        for site in sites:
            setattr(self, f"{site.key}_loc", nn.Parameter(site.initial.clone()))
            log_scale = torch.full_like(site.initial, math.log(init_scale))
            setattr(self, f"{site.key}_log_scale", nn.Parameter(log_scale))

    @torch.no_grad()
    def start_at(self, mean: Tensor, covariance: Tensor) -> None:
        """Take the independent coordinates that are nearest to a normal distribution.

        Parameters
        ----------
        mean, covariance
            Of the coordinates of all sites in their order, ``(size,)`` and ``(size, size)``. The
            optimal scales are those of each coordinate given the others.
        """
        scale = torch.linalg.inv(covariance).diagonal().rsqrt()
        sizes = [site.initial.numel() for site in self.sites]
        for site, loc, s in zip(self.sites, mean.split(sizes), scale.split(sizes), strict=True):
            getattr(self, f"{site.key}_loc").copy_(loc.reshape(site.initial.shape))
            getattr(self, f"{site.key}_log_scale").copy_(s.log().reshape(site.initial.shape))

    def forward(self, plates: Plates) -> None:
        """Draw the sites."""
        for site in self.sites:
            with plates(site.frames):
                scale = getattr(self, f"{site.key}_log_scale").exp()
                draw_normal(site, getattr(self, f"{site.key}_loc"), scale)


class Point(PyroModule):
    r"""One value of every site, which is trained to be the one of highest posterior density.

    Parameters
    ----------
    sites
        The sites.
    on_real_line
        Which density: that of the sites themselves, :math:`p(\theta \mid x)`, or that of their
        unconstrained coordinates :math:`u`, :math:`p(\theta(u) \mid x)\,|d\theta/du|`.
    """

    def __init__(self, sites: Sequence[LatentSite], on_real_line: bool) -> None:
        super().__init__()
        self.sites, self.on_real_line = tuple(sites), on_real_line
        for site in sites:
            setattr(self, f"{site.key}_loc", nn.Parameter(site.initial.clone()))

    @torch.no_grad()
    def start_at(self, mode: Tensor) -> None:
        """Take a point: the coordinates of all sites in their order, ``(size,)``."""
        sizes = [site.initial.numel() for site in self.sites]
        for site, loc in zip(self.sites, mode.split(sizes), strict=True):
            getattr(self, f"{site.key}_loc").copy_(loc.reshape(site.initial.shape))

    def forward(self, plates: Plates) -> None:
        """Give the sites their values."""
        for site in self.sites:
            loc = getattr(self, f"{site.key}_loc")
            draw_point(site, plates, loc, density_on_real_line=self.on_real_line)


class _Joint(PyroModule):
    """All coordinates together, at ``loc`` and on the scale ``exp(log_scale)``."""

    def __init__(self, sites: Sequence[LatentSite], init_scale: float) -> None:
        super().__init__()
        self.sites = tuple(sites)
        start = torch.cat([site.initial.reshape(-1) for site in sites])
        self.size = len(start)
        self.loc = nn.Parameter(start)
        self.log_scale = nn.Parameter(torch.full_like(start, math.log(init_scale)))

    @torch.no_grad()
    def start_at(self, mean: Tensor, covariance: Tensor) -> None:
        """Take location and scales of a normal distribution.

        Parameters
        ----------
        mean, covariance
            Of the coordinates of all sites in their order, ``(size,)`` and ``(size, size)``.
        """
        self.loc.copy_(mean)
        self.log_scale.copy_(covariance.diagonal().log() / 2)

    def refuse_many(self, name: str) -> None:
        if self.size > MAX_JOINT_SIZE:
            largest = max(self.sites, key=lambda site: site.size)
            raise ModelError(
                f"The guide {name!r} has parameters for every pair of its coordinates, and the "
                f"global sites have {self.size} (of {largest.name!r} alone {largest.size}); at "
                f'most {MAX_JOINT_SIZE} are allowed. Use "lowrank" or "normal".'
            )

    def distribution(self) -> dist.Distribution:
        raise NotImplementedError

    def forward(self, plates: Plates) -> None:
        """Draw the sites."""
        draw_joint(JOINT_SITE, self.sites, plates, self.distribution())


class _Whitened(_Joint):
    r"""Coordinates :math:`u = u_0 + B v` for fixed :math:`u_0, B` and trained :math:`v`.

    Zero and the identity at first; :meth:`start_at` makes them those of a normal approximation.
    However strongly the posterior correlates its coordinates, what is trained is then near a
    standard normal distribution, and one learning rate fits all of it.

    Parameters
    ----------
    sites
        The sites.
    init_scale
        Standard deviation of every coordinate to start from.
    """

    origin: Tensor
    base: Tensor

    def __init__(self, sites: Sequence[LatentSite], init_scale: float) -> None:
        super().__init__(sites, init_scale)
        self.register_buffer("origin", torch.zeros_like(self.loc))
        self.register_buffer("base", torch.eye(self.size).to(self.loc))

    @torch.no_grad()
    def start_at(self, mean: Tensor, covariance: Tensor) -> None:
        """Take a normal distribution; see :meth:`_Joint.start_at`."""
        self.origin.copy_(mean)
        self.base.copy_(torch.linalg.cholesky(covariance))
        self.loc.zero_()
        self.log_scale.zero_()


class FullRank(_Whitened):
    r"""A normal distribution with all covariances.

    Of the whitened coordinates, :math:`v = m + \mathrm{diag}(s)\,L\,\epsilon` with :math:`L` lower
    triangular and ones on its diagonal.

    Parameters
    ----------
    sites
        The sites.
    init_scale
        Standard deviation of every coordinate to start from.
    """

    def __init__(self, sites: Sequence[LatentSite], init_scale: float) -> None:
        super().__init__(sites, init_scale)
        self.refuse_many("mvn")
        self.lower = nn.Parameter(self.loc.new_zeros(self.size, self.size))
        # An optimiser moves every entry by about its learning rate. A row has up to `size` of them:
        # in these units it changes as much as one location does, and L stays well conditioned.
        self._unit = self.size**-0.5

    @torch.no_grad()
    def start_at(self, mean: Tensor, covariance: Tensor) -> None:
        """Take a normal distribution; see :meth:`_Joint.start_at`."""
        super().start_at(mean, covariance)
        self.lower.zero_()

    def distribution(self) -> dist.Distribution:
        """Distribution of the coordinates."""
        lower = self.lower * self._unit
        return full_rank_normal(
            self.loc, self.log_scale.exp(), lower, origin=self.origin, base=self.base
        )


class LowRank(_Joint):
    r"""A normal distribution with covariance :math:`S (I + F F^\top) S`, :math:`S` diagonal.

    Parameters
    ----------
    sites
        The sites.
    init_scale
        Standard deviation of every coordinate to start from.
    rank
        Number of columns of :math:`F`; ``None`` for the square root of the number of coordinates.

    Raises
    ------
    ModelError
        If the rank is not positive.
    """

    def __init__(
        self, sites: Sequence[LatentSite], init_scale: float, rank: int | None = None
    ) -> None:
        super().__init__(sites, init_scale)
        rank = round(math.sqrt(self.size)) if rank is None else rank
        if rank < 1:
            raise ModelError(f"rank of the guide 'lowrank' must be at least 1, found {rank}.")
        # half of the variance each for the factors and for what they leave
        self.factors = nn.Parameter(torch.randn(self.size, rank).to(self.loc) / math.sqrt(rank))
        with torch.no_grad():
            self.log_scale.sub_(math.log(2) / 2)

    @torch.no_grad()
    def start_at(self, mean: Tensor, covariance: Tensor) -> None:
        """Take the nearest member of the family: a factor analysis of the covariance."""
        super().start_at(mean, covariance)
        sd = covariance.diagonal().sqrt()
        correlation = covariance / torch.outer(sd, sd)
        uniqueness = torch.full_like(sd, 0.5)
        for _ in range(_FACTOR_ANALYSIS_STEPS):
            scale = uniqueness.sqrt()
            values, vectors = torch.linalg.eigh(correlation / torch.outer(scale, scale))
            rank = self.factors.shape[1]
            lengths = (values[-rank:] - 1).clamp_min(1e-6).sqrt()
            factors = vectors[:, -rank:] * lengths
            explained = uniqueness * factors.square().sum(1)
            uniqueness = (1 - explained).clamp_min(1e-6)
        self.factors.copy_(factors)
        self.log_scale.copy_(sd.log() + scale.log())

    def distribution(self) -> dist.Distribution:
        """Distribution of the coordinates."""
        scale = self.log_scale.exp()
        factors = scale[:, None] * self.factors
        return PathDerivative(dist.LowRankMultivariateNormal, self.loc, factors, scale**2)


class Flow(_Whitened):
    r"""A normalising flow: two inverse autoregressive layers, splines, location and scale.

    The layers have linear skip connections, so every normal distribution is a member of the family;
    the splines bend each margin. It starts from independent normal coordinates.

    Parameters
    ----------
    sites
        The sites.
    init_scale
        Standard deviation of every coordinate to start from.

    References
    ----------
    Kingma et al. 2016, Improved variational inference with inverse autoregressive flow.
    Durkan et al. 2019, Neural spline flows.
    """

    def __init__(self, sites: Sequence[LatentSite], init_scale: float) -> None:
        super().__init__(sites, init_scale)
        self.refuse_many("flow")
        networks = [_autoregressive(self.size) for _ in range(2 if self.size > 1 else 0)]
        self.networks = nn.ModuleList(networks).to(self.loc.dtype)
        # the identity to start from: equal bins, slopes of 1 between them
        self.widths = nn.Parameter(self.loc.new_zeros(self.size, _BINS))
        self.heights = nn.Parameter(self.loc.new_zeros(self.size, _BINS))
        slopes = self.loc.new_full((self.size, _BINS - 1), math.log(math.expm1(1)))
        self.slopes = nn.Parameter(slopes)

    def distribution(self) -> dist.Distribution:
        """Distribution of the coordinates."""
        # Transforms keep what they computed last, which the density of a draw needs: new ones for
        # every draw, so that the module keeps nothing.
        reverse = torch.arange(self.size - 1, -1, -1, device=self.loc.device)
        transforms: list[Any] = []
        for network in self.networks:
            transforms += [AffineAutoregressive(network), Permute(reverse, cache_size=1)]
        transforms.append(ConditionedSpline(self._bends, bound=_BOUND, order="quadratic"))
        scale = self.log_scale.exp()
        transforms.append(AffineTransform(self.loc, scale, event_dim=1, cache_size=1))
        transforms.append(LowerCholeskyAffine(self.origin, self.base, cache_size=1))
        base = dist.Normal(torch.zeros_like(scale), torch.ones_like(scale)).to_event(1)
        return dist.TransformedDistribution(base, transforms)

    def _bends(self) -> tuple[Tensor, Tensor, Tensor, None]:
        slopes = nn.functional.softplus(self.slopes)
        return self.widths.softmax(-1), self.heights.softmax(-1), slopes, None


def _autoregressive(size: int) -> nn.Module:
    order: Any = torch.arange(size)
    network: Any = AutoRegressiveNN(
        size, [max(2 * size, 16)], permutation=order, skip_connections=True
    )
    with torch.no_grad():  # the identity to start from
        for layer in (network.layers[-1], network.skip_layer):
            for parameter in layer.parameters():
                parameter.zero_()
    made: nn.Module = network
    return made
