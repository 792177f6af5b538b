"""Run a story for many draws at once.

A model is written for one draw. ``torch.func.vmap`` runs it for all draws together, exactly: no
author has to mind extra left dimensions. Stories that ``vmap`` cannot follow (data-dependent
control flow, samplers written as opaque autograd functions) are run draw by draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyro
import torch
from torch import Tensor, nn

from pyrovi.module.handlers import VmapSampling
from pyrovi.posterior.side_effects import ForeignRandomness, ModuleState

Story = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class DrawMapper:
    """Evaluates stories for many draws, and remembers if they cannot be vectorised.

    One mapper serves all minibatches of a query, so a story that has to be looped over is found out
    once and not in every minibatch. The loop is the meaning of a story; vectorising only saves
    time, so an error that lies in the story itself is always the loop's. Stories that draw from
    NumPy's or Python's global generators, or that store values on the module, are looped over too:
    what they did under ``vmap`` is taken back.

    Parameters
    ----------
    module
        The module that the stories run, if any: its attributes are looked after.

    Attributes
    ----------
    vectorise
        Whether to try; false from the first story on that ``vmap`` could not follow.
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        self.module = module
        self.vectorise = True

    @torch.no_grad()
    def __call__(
        self, story: Story, draws: Mapping[str, Tensor], num_draws: int, chunk: int | None = None
    ) -> dict[str, Tensor]:
        """Evaluate a story for every draw.

        Parameters
        ----------
        story
            Function from the values of one draw to named tensors. It may sample, from Pyro
            distributions or with torch. A NumPy generator of its own would repeat itself.
        draws
            Name -> values, the draws along the first axis.
        num_draws
            Number of draws ``S``; needed when ``draws`` is empty.
        chunk
            Largest number of draws to evaluate at once; ``None`` for all.

        Returns
        -------
        dict
            Name -> tensor of shape ``(S, ...)``.
        """
        draws = dict(draws)
        with pyro.validation_enabled(False):
            if num_draws > 1 and self.vectorise:
                state = _random_state()
                before, foreign = ModuleState(self.module), ForeignRandomness()
                try:
                    results = _vectorised(story, draws, num_draws, chunk)
                    if not foreign.advanced() and not before.has_wrappers():
                        return _detached(results)
                except (RuntimeError, ValueError, NotImplementedError, TypeError):
                    pass  # what vmap raises has many types
                # The loop starts from where this started.
                self.vectorise = False
                foreign.restore()
                before.restore()
                _set_random_state(state)
            return _detached(_looped(story, draws, num_draws))


def map_draws(
    story: Story,
    draws: Mapping[str, Tensor],
    num_draws: int,
    chunk: int | None = None,
    module: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Evaluate a single story for every draw; see :class:`DrawMapper`."""
    return DrawMapper(module)(story, draws, num_draws, chunk)


def _vectorised(
    story: Story, draws: dict[str, Tensor], num_draws: int, chunk: int | None
) -> dict[str, Tensor]:
    def one(values: dict[str, Tensor], _: Tensor) -> dict[str, Tensor]:
        with VmapSampling():
            return story(values)

    size = None if chunk is None or chunk >= num_draws else chunk
    vectorised = torch.func.vmap(one, randomness="different", chunk_size=size)
    results: dict[str, Tensor] = vectorised(draws, torch.arange(num_draws))
    # What does not vary comes back as it is, which may be a parameter.
    return {name: value.detach() for name, value in results.items()}


def _looped(story: Story, draws: dict[str, Tensor], num_draws: int) -> dict[str, Tensor]:
    results = [story({n: v[s] for n, v in draws.items()}) for s in range(num_draws)]
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def _detached(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without gradients: a story may return a parameter itself, e.g. the value of a point guide."""
    return {name: value.detach() for name, value in results.items()}


def _random_state() -> tuple[Tensor, list[Tensor]]:
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), on_devices


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    for device, device_state in enumerate(state[1]):
        torch.cuda.set_rng_state(device_state, device)
