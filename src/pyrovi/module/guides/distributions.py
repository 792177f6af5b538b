"""Drawing sites of a guide: from coordinates on the real line into their supports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovi.module.guides.sites import LatentSite, Plates


class PathDerivative(dist.TorchDistribution):
    """A distribution whose density has no gradient by its parameters, only by the value.

    The gradient of an ELBO stays unbiased, since the score has mean 0, and loses its noise where
    the guide becomes the posterior: that of the density then cancels that of the model.

    Parameters
    ----------
    make
        Function from parameters to the distribution.
    parameters
        Its arguments.

    References
    ----------
    Roeder, Wu & Duvenaud 2017, Sticking the landing.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, make: Callable[..., Any], *parameters: Tensor) -> None:
        self._drawn = make(*parameters)
        self._fixed = make(*(parameter.detach() for parameter in parameters))
        super().__init__(self._drawn.batch_shape, self._drawn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Support of the distribution."""
        return self._drawn.support

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw, with gradients by the parameters."""
        return _reflected(self._drawn.rsample(sample_shape), self._drawn.mean)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, with gradients by the value alone."""
        density: Tensor = self._fixed.log_prob(value)
        return density


class PathNormal(dist.Normal):
    """Normal distribution with path-derivative gradients, as :class:`PathDerivative`.

    Besides less noise: the gradient of log(scale) by the density itself is skewed, and an optimiser
    that divides by the size of the gradient would settle at scales too large.
    """

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw, with gradients by the parameters."""
        return _reflected(super().rsample(sample_shape), self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, with gradients by the value alone."""
        fixed = dist.Normal(self.loc.detach(), self.scale.detach(), validate_args=False)
        density: Tensor = fixed.log_prob(value)
        return density


_MIRRORED: ContextVar[bool] = ContextVar("pyrovi_mirrored", default=False)


@contextmanager
def mirrored(reflect: bool = True) -> Iterator[None]:
    """Reflect the draws of normal guides about their means.

    A draw and its mirror image, taken from the same random state, are an antithetic pair: of the
    gradient of a location they average out all that is odd in the noise, which for a normal
    posterior is everything.
    """
    token = _MIRRORED.set(reflect)
    try:
        yield
    finally:
        _MIRRORED.reset(token)


def _reflected(value: Tensor, mean: Tensor) -> Tensor:
    return 2 * mean - value if _MIRRORED.get() else value


def draw_normal(site: LatentSite, loc: Tensor, scale: Tensor) -> None:
    """Draw a site whose coordinates are independent normal variables.

    The caller has entered the plates of the site. The site has a proper density at any value, and
    no auxiliary site.

    Parameters
    ----------
    site
        The site.
    loc, scale
        Means and standard deviations, of the shape of an unconstrained value.
    """
    base = PathNormal(loc, scale).to_event(site.real_event_dim)
    if site.on_real_line:
        pyro.sample(site.name, base)
        return
    # with a cache: the inverse of a value of its own is exact, also at the end of the support
    transform = site.transform.with_cache(1)
    pyro.sample(site.name, dist.TransformedDistribution(base, [transform]))


def draw_joint(name: str, sites: Sequence[LatentSite], plates: Plates, fn: Any) -> None:
    """Draw the coordinates of several sites jointly.

    Parameters
    ----------
    name
        Name of the auxiliary site of the coordinates.
    sites
        The sites, all global or all of one observation plate.
    plates
        The plates of this run.
    fn
        Distribution of the coordinates, of event shape ``(sum of sizes,)``; of local sites, the
        batch shape is that of the observation plate.
    """
    outer = [frame for frame in sites[0].frames if frame.dim == sites[0].obs_dim]
    with plates(outer):
        coordinates = pyro.sample(name, fn, infer={"is_auxiliary": True})
    if sites[0].obs_dim is not None:
        coordinates = coordinates.reshape(-1, coordinates.shape[-1])
    parts = coordinates.split([site.size for site in sites], dim=-1)
    for site, part in zip(sites, parts, strict=True):
        draw_point(site, plates, site.shaped(part), density_on_real_line=True)


def draw_point(
    site: LatentSite, plates: Plates, unconstrained: Tensor, *, density_on_real_line: bool
) -> None:
    """Give a site a value.

    Parameters
    ----------
    site
        The site.
    plates
        The plates of this run.
    unconstrained
        The value on the real line.
    density_on_real_line
        Let the density of the site be what turns densities on the real line into densities on
        the support: minus the logarithm of the derivative of the transform.
    """
    value = site.transform(unconstrained)
    density: Tensor | float = 0.0
    if density_on_real_line:
        density = -site.log_jacobian(unconstrained, value)
    with plates(site.frames):
        pyro.sample(site.name, dist.Delta(value, density, event_dim=site.event_dim))


def full_rank_normal(
    loc: Tensor,
    scale: Tensor,
    lower: Tensor,
    *,
    origin: Tensor | None = None,
    base: Tensor | None = None,
) -> dist.TorchDistribution:
    """Normal distribution with all covariances.

    Parameters
    ----------
    loc, scale
        Mean, and the diagonal of the Cholesky factor of the covariance; shape ``(..., D)``.
    lower
        Matrices whose entries below the diagonal are those of the factor over ``scale`` of their
        row, shape ``(..., D, D)``.
    origin, base
        The distribution is that of ``origin + base @ v`` for ``v`` of these parameters, ``base``
        lower triangular, ``(..., D)`` and ``(..., D, D)``.
    """
    identity = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
    factor = scale[..., None] * (lower.tril(-1) + identity)
    if origin is None or base is None:
        return PathDerivative(_normal, loc, factor)
    mean = origin + (base @ loc[..., None])[..., 0]
    return PathDerivative(_normal, mean, base @ factor)


def _normal(loc: Tensor, scale_tril: Tensor) -> Any:
    return dist.MultivariateNormal(loc, scale_tril=scale_tril)
