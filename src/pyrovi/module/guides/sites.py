"""Latent sites of a story as coordinates on the real line, found from one run of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import identity_transform

from pyrovi.errors import ModelError
from pyrovi.module.handlers import is_latent
from pyrovi.module.plates import OBS_PLATE, ObsPlate, obs_plate

_PRIOR_DRAWS = 15
"""Prior draws whose median is the initial value. Few on purpose: exchangeable components that all
start in the exact middle would stay equal to one another for ever."""


@dataclass(frozen=True)
class LatentSite:
    """A continuous latent site and its map from the real line.

    Parameters
    ----------
    name
        Name of the site.
    event_dim
        Number of rightmost dimensions of a value that make up one event.
    frames
        The plates it stands in (Pyro's frames), outermost first.
    transform
        Bijection from real numbers to the support.
    initial
        Unconstrained value to start from; one row in the place of the observations, if there are.
    real_event_dim
        Number of rightmost dimensions of an unconstrained value that make up one event.
    """

    name: str
    event_dim: int
    frames: tuple[Any, ...]
    transform: Any
    initial: Tensor
    real_event_dim: int

    @property
    def obs_dim(self) -> int | None:
        """Batch dimension of the observation plate, negative; ``None`` outside of it."""
        return next((frame.dim for frame in self.frames if frame.name == OBS_PLATE), None)

    @property
    def obs_axis(self) -> int:
        """Axis of the observations in an unconstrained value, negative."""
        assert self.obs_dim is not None
        return self.obs_dim - self.real_event_dim

    @property
    def size(self) -> int:
        """Number of coordinates: of one observation, if there are observations."""
        return self.initial.numel()

    @property
    def on_real_line(self) -> bool:
        """Whether the support is all of the real line, so that nothing is transformed."""
        transform = self.transform
        while hasattr(transform, "base_transform"):
            transform = transform.base_transform
        return transform == identity_transform

    @property
    def key(self) -> str:
        """The name as a part of the name of an attribute."""
        return self.name.replace(".", "_")

    def rows(self, n: int) -> Tensor:
        """The initial value for each of ``n`` observations."""
        return self.initial.repeat_interleave(n, dim=self.obs_axis)

    def shaped(self, coordinates: Tensor) -> Tensor:
        """Coordinates in the shape of an unconstrained value.

        Parameters
        ----------
        coordinates
            Shape ``(size,)`` of a global site, ``(n, size)`` of a local one.
        """
        if self.obs_dim is None:
            return coordinates.reshape(self.initial.shape)
        axis = self.initial.dim() + self.obs_axis
        rest = (*self.initial.shape[:axis], *self.initial.shape[axis + 1 :])
        return coordinates.reshape(-1, *rest).movedim(0, axis)

    def log_jacobian(self, unconstrained: Tensor, value: Tensor) -> Tensor:
        """Logarithm of the derivative of the transform, of the batch shape of the site."""
        log_jacobian: Tensor = self.transform.log_abs_det_jacobian(unconstrained, value)
        return sum_rightmost(log_jacobian, log_jacobian.dim() - value.dim() + self.event_dim)


class Plates:
    """The plates of one run of a guide, each made once."""

    def __init__(self) -> None:
        self._made: dict[str, pyro.plate] = {}

    @contextmanager
    def __call__(self, frames: Sequence[Any]) -> Iterator[None]:
        """Enter the plates of a site."""
        with ExitStack() as stack:
            for frame in frames:
                stack.enter_context(self._plate(frame))
            yield

    def _plate(self, frame: Any) -> pyro.plate | ObsPlate:
        if frame.name == OBS_PLATE:
            return obs_plate(frame.dim)
        if frame.name not in self._made:
            self._made[frame.name] = pyro.plate(frame.name, frame.size, dim=frame.dim)
        return self._made[frame.name]


class _MiddleOfPrior(Messenger):
    """Give latent sites the median of a few prior draws, taken on the real line."""

    def __init__(self, hidden: Callable[[Any], bool], init: Mapping[str, Any]) -> None:
        super().__init__()
        self.hidden, self.init = hidden, init

    def _pyro_sample(self, msg: Any) -> None:
        if not is_latent(msg) or msg["done"] or self.hidden(msg):
            return
        fn, name = msg["fn"], msg["name"]
        transform = _bijection(name, fn.support)
        if name in self.init:
            value = torch.as_tensor(self.init[name], dtype=torch.get_default_dtype())
            real = _start(name, fn, transform, value)
        else:
            real = _median(fn, transform)
        msg["value"] = transform(real)
        msg["infer"] = {**(msg["infer"] or {}), "_real_value": real}
        msg["done"] = True


def _median(fn: Any, transform: Any) -> Tensor:
    shape = transform.inverse_shape(fn.shape())
    try:
        draws = torch.stack([transform.inv(fn.sample()) for _ in range(_PRIOR_DRAWS)])
    except NotImplementedError:  # an improper prior has no middle
        return torch.zeros(shape)
    middle = draws.median(0).values
    return torch.where(middle.isfinite(), middle, torch.zeros_like(middle))


def _start(name: str, fn: Any, transform: Any, value: Tensor) -> Tensor:
    try:
        full = value.expand(fn.shape())
    except RuntimeError as error:
        raise ModelError(
            f"The initial value of site {name!r} has the shape {tuple(value.shape)}, which does "
            f"not fit the site's {tuple(fn.shape())}."
        ) from error
    if not bool(torch.as_tensor(fn.support.check(full)).all()):
        raise ModelError(
            f"The initial value of site {name!r} is not within its support {fn.support}."
        )
    real: Tensor = transform.inv(full)
    return real


def _bijection(name: str, support: Any) -> Any:
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise ModelError(
            f"Site {name!r} has the support {support}, which no map from real numbers is known "
            "for, so a guide by name cannot draw it. Write the guide of the site by hand, or draw "
            "a variable on the real line and transform it in the model."
        ) from error


def find_sites(
    model: Callable[..., Any],
    arguments: Mapping[str, Tensor],
    hidden: Callable[[Any], bool],
    init: Mapping[str, Any],
) -> tuple[list[LatentSite], poutine.Trace]:
    """Run a model once and describe its continuous latent sites.

    Parameters
    ----------
    model
        The story.
    arguments
        Its tensors.
    hidden
        Whether a latent site (its message) is not the guide's business.
    init
        Site -> value to start from, within the support. The other sites start near the middle of
        their prior, or at 0 on the real line where a prior cannot be sampled.

    Returns
    -------
    tuple
        The sites in the order of the story, and the trace of the model.

    Raises
    ------
    ModelError
        If a support has no map from real numbers or another value for every observation, or if an
        initial value is of no site, or does not fit it.
    """
    with poutine.block(), _MiddleOfPrior(hidden, init):
        trace = poutine.trace(model).get_trace(**arguments)
    nodes: Mapping[str, Any] = trace.nodes
    latent = {n: node for n, node in nodes.items() if is_latent(node) and not hidden(node)}
    if unknown := sorted(set(init) - set(latent)):
        raise ModelError(
            f"init names {', '.join(map(repr, unknown))}, which is no continuous latent site; "
            f"those are: {', '.join(latent) or 'none'}."
        )
    return [_site(name, node) for name, node in latent.items()], trace


def _site(name: str, node: Any) -> LatentSite:
    fn, real = node["fn"], node["infer"]["_real_value"]
    frames = tuple(frame for frame in node["cond_indep_stack"] if frame.vectorized)
    n_batch = node["value"].dim() - fn.event_dim
    real_event_dim = real.dim() - n_batch
    dim = next((frame.dim for frame in frames if frame.name == OBS_PLATE), None)
    support = fn.support
    if dim is not None:
        real = real.narrow(dim - real_event_dim, 0, 1)
        support = _of_one_row(name, support, dim - fn.event_dim, fn)
    return LatentSite(
        name=name,
        event_dim=fn.event_dim,
        frames=tuple(sorted(frames, key=lambda frame: frame.dim)),
        transform=biject_to(support),
        initial=real.detach().clone(memory_format=torch.contiguous_format),
        real_event_dim=real_event_dim,
    )


def _of_one_row(name: str, support: Any, axis: int, fn: Any) -> Any:
    """The support of any observation, from that of all: bounds are expanded by the plate."""
    n = fn.shape()[axis]
    changed = copy(support)
    for attribute, value in vars(support).items():
        if isinstance(value, constraints.Constraint):
            setattr(changed, attribute, _of_one_row(name, value, axis, fn))
        elif isinstance(value, Tensor) and value.dim() >= -axis and value.shape[axis] == n:
            setattr(changed, attribute, value.narrow(axis, 0, 1).detach())
    return changed
