"""Replicated data beside the observed: both come from one run of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule
from pyrovi.posterior.stories import posterior_story, prior_story
from pyrovi.posterior.vectorise import Story


class NoteObserved(Messenger):
    """Note the data of observed sites that are sampled instead of conditioned on.

    It goes around :class:`~pyrovi.module.handlers.Uncondition`.

    Attributes
    ----------
    values
        Site -> the value that the story observes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["infer"] and msg["infer"].get("was_observed"):
            self.values[msg["name"]] = msg["infer"]["observed"]


class Replication:
    """Stories of the prior or posterior predictive distribution that also tell the observed data.

    Parameters
    ----------
    module
        The pair.
    sites
        Sites to return.
    prior
        Draw the latents from the prior.

    Attributes
    ----------
    observed
        Site -> data of the minibatch that was run last.
    """

    def __init__(
        self, module: PyroBaseModule, sites: Sequence[str], *, prior: bool = False
    ) -> None:
        self.module, self.sites, self.prior = module, list(sites), prior
        self.observed: dict[str, Tensor] = {}

    def __call__(self, minibatch: Minibatch) -> Story:
        """Story of one replicated minibatch."""
        if self.prior:
            story = prior_story(self.module, minibatch, self.sites)
        else:
            story = posterior_story(self.module, minibatch, self.sites, predictive=True)

        def noting(values: dict[str, Tensor]) -> dict[str, Tensor]:
            with NoteObserved() as note:
                results = story(values)
            for name, value in note.values.items():
                if torch._C._functorch.is_batchedtensor(value):
                    raise ModelError(
                        f"The data of the observed site {name!r} depend on a latent site: they "
                        "are other data in every draw. Observe the data themselves and put the "
                        "transformation into the distribution (dist.TransformedDistribution)."
                    )
            self.observed = note.values
            return results

        return noting
