"""Importance weights of the local latents: for many draws of the globals, many of the locals."""

from __future__ import annotations

from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.base import PyroBaseModule, evaluation_mode
from pyrovi.posterior.bounds import importance_story
from pyrovi.posterior.engine import draws_at_once
from pyrovi.posterior.fitted_proposal import FittedProposal
from pyrovi.posterior.vectorise import DrawMapper, Story

WEIGHT_BUDGET = 2**24
"""Largest number of importance weights (global draws x local draws x observations) at a time."""

_CACHED = 4
"""Chunks of draws are smaller than memory asks for, by so much: they pass through the cache."""


class LocalWeights:
    r"""Log importance weights of the local latents given draws of the globals.

    .. math:: \log p(x_n, z_{snk} \mid g_s) - \log q(z_{snk} \mid x_n, g_s)

    Draws of the locals are nested in those of the globals: what depends on the globals (or on the
    observations) alone is computed once for all of its local draws.

    Parameters
    ----------
    module
        The fitted pair.
    num_samples
        Number of draws ``S`` of the globals.
    num_inner
        Number of draws ``K`` of the locals for each of them.
    """

    def __init__(self, module: PyroBaseModule, num_samples: int, num_inner: int) -> None:
        self.module, self.num_samples, self.num_inner = module, num_samples, num_inner
        self._outer, self._inner = DrawMapper(module), DrawMapper(module)

    def batch_size(self, wanted: int) -> int:
        """Batch size that keeps the weights of a minibatch within memory."""
        return max(1, min(wanted, WEIGHT_BUDGET // (self.num_samples * self.num_inner)))

    def __call__(self, minibatch: Minibatch, globals_: dict[str, Tensor]) -> Tensor:
        """Weights of a minibatch, shape ``(S, K, n)``.

        Parameters
        ----------
        minibatch
            The observations, on the module's device.
        globals_
            Joint draws of the globals: site -> tensor of shape ``(S, ...)``.
        """
        with evaluation_mode(self.module):
            return self._nested(importance_story(self.module, minibatch), minibatch, globals_)

    def fitted(self, minibatch: Minibatch, globals_: dict[str, Tensor]) -> Tensor:
        """The same with proposals fitted to each observation, in place of the guide's."""
        with evaluation_mode(self.module):
            proposal = FittedProposal(self.module, minibatch, globals_)
            chunk = max(1, self._at_once(minibatch) // proposal.num_draws)
            normals = DrawMapper(self.module)(proposal.given, globals_, self.num_samples, chunk)
            return self._nested(proposal.weight, minibatch, {**globals_, **normals})

    def _nested(self, one_weight: Story, minibatch: Minibatch, given: dict[str, Tensor]) -> Tensor:
        at_once = self._at_once(minibatch)
        inner_chunk = min(self.num_inner, at_once)
        outer_chunk = max(1, at_once // self.num_inner)

        def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return self._inner(lambda _: one_weight(values), {}, self.num_inner, inner_chunk)

        return self._outer(story, given, self.num_samples, outer_chunk)["log_weight"]

    def _at_once(self, minibatch: Minibatch) -> int:
        return max(1, draws_at_once(self.module, minibatch.n) // _CACHED)
