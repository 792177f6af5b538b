"""Draws of the global sites, which belong to no observation: chunk by chunk, memory bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pyrovi._rng import stream
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.base import PyroBaseModule, evaluation_mode
from pyrovi.module.ledger import Role
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.reduce import Reduction, RunningReduction
from pyrovi.posterior.stories import guide_trace, latent_values, prior_story
from pyrovi.posterior.vectorise import DrawMapper, Story

CHUNK_BUDGET = 2**22
"""Largest number of elements (draws x values of all global sites) that are drawn at once."""


def global_story(
    module: PyroBaseModule, example: Minibatch, names: Sequence[str], *, prior: bool = False
) -> Story:
    """One joint draw of global sites from the guide, or from the prior."""
    if prior:
        return prior_story(module, example, names)

    def story(_: dict[str, Tensor]) -> dict[str, Tensor]:
        latents = latent_values(guide_trace(module, example, {}))
        return {name: latents[name] for name in names}

    return story


def global_chunks(
    module: PyroBaseModule,
    story: Story,
    num_draws: int,
    *,
    prior: bool = False,
    seed: int | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Evaluate a story of the globals, a bounded number of draws at a time.

    All stories that begin with the guide (or the prior) see the same draws.

    Parameters
    ----------
    module
        The fitted pair.
    story
        Story that draws the globals itself.
    num_draws
        Number of draws ``S``.
    prior
        Whether the draws are the prior's.
    seed
        Root seed.

    Yields
    ------
    dict
        Name -> tensor of shape ``(s, ...)`` of the next ``s`` draws.
    """
    ledger = module.ledger
    sizes = [math.prod(map(int, ledger[name].shape)) for name in ledger.names(Role.GLOBAL)]
    at_once = max(1, CHUNK_BUDGET // max(1, sum(sizes)))
    mapper = DrawMapper(module)
    for position, start in enumerate(range(0, num_draws, at_once)):
        purpose = ("draws", "prior" if prior else "global", position)
        with evaluation_mode(module), stream(*purpose, seed=seed):
            values = mapper(story, {}, min(at_once, num_draws - start))
        yield values


def draw_globals(
    module: PyroBaseModule,
    example: Minibatch,
    num_draws: int,
    seed: int | None = None,
    *,
    sites: Sequence[str] | None = None,
    prior: bool = False,
) -> dict[str, Tensor]:
    """Joint draws of the global sites from the guide (or the prior).

    Parameters
    ----------
    module
        The fitted pair.
    example
        An example minibatch of fixed size, which makes the draws independent of any batch size.
        What is not per observation in it has to be the data's own.
    num_draws
        Number of draws ``S``.
    seed
        Root seed.
    sites
        The global sites to keep; ``None`` for all.
    prior
        Draw from the prior.

    Returns
    -------
    dict
        Site -> tensor of shape ``(S, ...)``; of stored draws, too, which ones they are.

    Raises
    ------
    ModelError
        If fewer draws are stored (see :class:`~pyrovi.module.stored.StoredDraws`).
    """
    names = module.ledger.names(Role.GLOBAL) if sites is None else list(sites)
    if isinstance(module.posterior, StoredDraws) and not prior:
        stored = module.posterior.globals_of(module.posterior.choose(num_draws))
        return stored if sites is None else {name: stored[name] for name in names}
    drawn: dict[str, Tensor] = {}
    if not names:
        return drawn
    story = global_story(module, example, names, prior=prior)
    start = 0
    for values in global_chunks(module, story, num_draws, prior=prior, seed=seed):
        stop = start + len(values[names[0]])
        if stop - start == num_draws:
            return values
        for name, value in values.items():
            if name not in drawn:  # in place: concatenating would need the memory twice
                drawn[name] = value.new_empty((num_draws, *value.shape[1:]))
            drawn[name][start:stop] = value
        start = stop
    return drawn


def reduce_globals(
    module: PyroBaseModule,
    example: Minibatch,
    sites: Sequence[str],
    num_draws: int,
    reduction: Reduction,
    *,
    prior: bool = False,
    seed: int | None = None,
) -> dict[str, np.ndarray]:
    """Reduced draws of global sites; means and standard deviations without keeping the draws.

    Parameters
    ----------
    module, example, sites, num_draws, prior, seed
        As in :func:`draw_globals`, which gives the same draws.
    reduction
        What to keep of the draws.

    Returns
    -------
    dict
        Site -> array.
    """
    looked_up = isinstance(module.posterior, StoredDraws) and not prior
    if looked_up or not reduction.is_running:
        draws = draw_globals(module, example, num_draws, seed, sites=sites, prior=prior)
        return {name: reduction(draws.pop(name)) for name in sites}
    running: dict[str, RunningReduction] = {name: reduction.running() for name in sites}
    story = global_story(module, example, sites, prior=prior)
    dtypes: dict[str, torch.dtype] = {}
    for values in global_chunks(module, story, num_draws, prior=prior, seed=seed):
        for name, value in values.items():
            dtypes[name] = value.dtype if value.is_floating_point() else torch.float64
            running[name].update(value)
    return {name: running[name].result(dtypes[name]) for name in sites}
