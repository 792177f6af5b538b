"""Run a story for many draws at once.

A model is written for one draw. ``torch.func.vmap`` runs it for all draws together, exactly: no
author has to mind extra left dimensions. Stories that ``vmap`` cannot follow (data-dependent control
flow, samplers written as opaque autograd functions) are run draw by draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyro
import torch
from torch import Tensor

from pyrovi.module.handlers import VmapSampling

Story = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@torch.no_grad()
def map_draws(story: Story, draws: Mapping[str, Tensor], num_draws: int) -> dict[str, Tensor]:
    """Evaluate a story for every draw.

    Parameters
    ----------
    story
        Function from the values of one draw to named tensors. It may sample.
    draws
        Name -> values, the draws along the first axis.
    num_draws
        Number of draws ``S``; needed when ``draws`` is empty.

    Returns
    -------
    dict
        Name -> tensor of shape ``(S, ...)``.
    """
    draws = dict(draws)
    with pyro.validation_enabled(False):
        if num_draws > 1:
            state = torch.get_rng_state()
            try:
                return _vectorised(story, draws, num_draws)
            except (RuntimeError, ValueError, NotImplementedError, TypeError):
                # Not vectorisable: the loop below runs the same story, and if the error lies in the
                # story itself it raises it again.
                torch.set_rng_state(state)
        return _looped(story, draws, num_draws)


def _vectorised(story: Story, draws: dict[str, Tensor], num_draws: int) -> dict[str, Tensor]:
    def one(values: dict[str, Tensor], _: Tensor) -> dict[str, Tensor]:
        with VmapSampling():
            return story(values)

    return torch.func.vmap(one, randomness="different")(draws, torch.arange(num_draws))


def _looped(story: Story, draws: dict[str, Tensor], num_draws: int) -> dict[str, Tensor]:
    results = [story({n: v[s] for n, v in draws.items()}) for s in range(num_draws)]
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}
