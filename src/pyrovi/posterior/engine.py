"""The posterior engine: joint draws of sites, streamed over minibatches, reduced on the fly.

The globals are drawn once and replayed in every minibatch, so any statistic over all observations,
computed draw by draw, is a true posterior draw of that statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pyrovi._rng import stream
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule, evaluation_mode
from pyrovi.module.ledger import Role, Site
from pyrovi.posterior.reduce import Reduction
from pyrovi.posterior.stories import posterior_story, prior_story
from pyrovi.posterior.vectorise import DrawMapper, Story

ELEMENT_BUDGET = 2**23
"""Largest number of elements (draws x observations x variables) of one site held at a time."""

EVALUATION_BUDGET = 2**21
"""The same of any site of the model while it runs: larger chunks of draws are not faster."""

Loader = Callable[[int], Iterable[Minibatch]]
"""Makes a loader of the queried observations with a given batch size."""

Intervention = Callable[[Minibatch], Minibatch]
"""Changes what the model (not the guide) sees."""


def run_query(
    module: PyroBaseModule,
    loader: Loader,
    make_story: Callable[[Minibatch], Story],
    globals_: Mapping[str, Tensor],
    sites: Mapping[str, Site],
    *,
    n_obs: int,
    num_draws: int,
    batch_size: int,
    reduction: Reduction,
    seed: int | None = None,
) -> dict[str, np.ndarray]:
    """Evaluate a story for all draws of all observations, streamed.

    Parameters
    ----------
    module
        The pair; put into evaluation mode for the query.
    loader
        Makes the loader.
    make_story
        Story of a minibatch.
    globals_
        Joint draws of the globals.
    sites
        Sites to return, by name.
    n_obs
        Number of observations that the loader gives.
    num_draws
        Number of draws ``S``.
    batch_size
        Largest number of observations at a time; it is lowered so that memory stays bounded.
    reduction
        What to keep of the draws.
    seed
        Root seed of the local draws.

    Returns
    -------
    dict
        Site -> array of shape ``(*reduced, ...)`` with the observations in the loader's order.
    """
    collected = {name: _Collected(site, n_obs) for name, site in sites.items()}
    for _, values in stream_query(
        module,
        loader,
        make_story,
        globals_,
        sites,
        num_draws=num_draws,
        batch_size=batch_size,
        seed=seed,
    ):
        for name, site in sites.items():
            if site.is_local or collected[name].is_empty:
                collected[name].append(reduction(values[name]))
    return {name: parts.together() for name, parts in collected.items()}


class _Collected:
    """Results of one minibatch after the other, in one array for all observations.

    Were each kept where it was made, it would stand in the way of the draws of the next minibatch:
    allocators put small arrays into the room that large ones have left.

    Parameters
    ----------
    site
        Whose results: those of local sites are put together along the axis of the observations.
    n_obs
        Number of observations.
    """

    def __init__(self, site: Site, n_obs: int) -> None:
        self._axis = site.obs_axis if site.is_local else None
        self._n_obs, self._filled = n_obs, 0
        self._array: np.ndarray | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there are no results yet."""
        return self._array is None

    def append(self, part: np.ndarray) -> None:
        """Take in the results of the next minibatch."""
        if self._axis is None:
            self._array = part
            return
        shape = list(part.shape)
        end, shape[self._axis] = self._filled + part.shape[self._axis], self._n_obs
        if self._array is None:
            self._array = np.empty(shape, part.dtype)
        elif part.dtype != self._array.dtype:
            self._array = self._array.astype(np.result_type(part, self._array))
        place = [slice(None)] * part.ndim
        place[self._axis] = slice(self._filled, end)
        self._array[tuple(place)] = part
        self._filled = end

    def together(self) -> np.ndarray:
        """All results."""
        assert self._array is not None
        assert self._axis is None or self._filled == self._n_obs
        return self._array


def stream_query(
    module: PyroBaseModule,
    loader: Loader,
    make_story: Callable[[Minibatch], Story],
    globals_: Mapping[str, Tensor],
    sites: Mapping[str, Site],
    *,
    num_draws: int,
    batch_size: int,
    seed: int | None = None,
) -> Iterator[tuple[Minibatch, dict[str, Tensor]]]:
    """All draws of one minibatch after the other: what statistics over observations add up.

    Parameters
    ----------
    module, loader, make_story, globals_, sites, num_draws, batch_size, seed
        As in :func:`run_query`, which gives the same draws.

    Yields
    ------
    tuple
        The minibatch, and site -> tensor of shape ``(S, ...)``.

    Raises
    ------
    ModelError
        If a deterministic site without observations has another value in every minibatch.
    """
    batch_size = bounded_batch_size(sites.values(), num_draws, batch_size)
    device, mapper = module.device, DrawMapper(module)
    whole = [n for n, s in sites.items() if s.role is Role.DETERMINISTIC and not s.is_local]
    first: dict[str, Tensor] = {}
    for position, minibatch in enumerate(loader(batch_size)):
        minibatch = minibatch.to(device)
        chunk = draws_at_once(module, minibatch.n)
        with evaluation_mode(module), stream("draws", "local", position, seed=seed):
            values = mapper(make_story(minibatch), globals_, num_draws, chunk)
        for name in whole:
            if name in values:
                _refuse_change(name, first.setdefault(name, values[name]), values[name])
        yield minibatch, values


def _refuse_change(name: str, first: Tensor, value: Tensor) -> None:
    if value is first:
        return
    same = first.shape == value.shape
    if same:
        one, two = first.double(), value.double()
        largest = one.abs().nan_to_num(posinf=0.0).max().item() if one.numel() else 0.0
        # the same numbers, up to the rounding of another order of summation
        same = torch.allclose(one, two, rtol=1e-4, atol=1e-5 * largest, equal_nan=True)
    if not same:
        raise ModelError(
            f"The deterministic site {name!r} has no dimension of the observations, but it is a "
            "function of the minibatch: it has another value in another minibatch, so it is no "
            "quantity of the model. Compute it from the draws of the local sites (sample_posterior "
            "of those, or a function as reduce=), or put a deterministic per observation inside "
            "the observation plate."
        )


def bounded_batch_size(sites: Iterable[Site], num_draws: int, batch_size: int) -> int:
    """Batch size that keeps ``draws x observations x variables`` of a site within the budget."""
    per_draw = num_draws * _largest_per_observation(sites)
    return max(1, min(batch_size, ELEMENT_BUDGET // per_draw))


def draws_at_once(module: PyroBaseModule, n: int) -> int:
    """Number of draws of ``n`` observations to run the model for at once, memory kept bounded."""
    return max(1, EVALUATION_BUDGET // (n * _largest_per_observation(module.ledger.values())))


def _largest_per_observation(sites: Iterable[Site]) -> int:
    local = (site.shape for site in sites if site.is_local and site.role is not Role.FACTOR)
    return max((1, *(math.prod(n for n in shape if isinstance(n, int)) for shape in local)))


def posterior_query(
    module: PyroBaseModule,
    sites: Sequence[str],
    *,
    predictive: bool = False,
    intervention: Intervention | None = None,
) -> Callable[[Minibatch], Story]:
    """Stories of posterior draws (and of the posterior predictive distribution)."""

    def make(minibatch: Minibatch) -> Story:
        changed = None if intervention is None else intervention(minibatch)
        return posterior_story(
            module, minibatch, sites, predictive=predictive, model_minibatch=changed
        )

    return make


def prior_query(module: PyroBaseModule, sites: Sequence[str]) -> Callable[[Minibatch], Story]:
    """Stories of prior (predictive) draws."""
    return lambda minibatch: prior_story(module, minibatch, sites)
