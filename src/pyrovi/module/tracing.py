"""Running a pair on made-up observations: explained errors, and globals that depend on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovi._rng import derive_seed
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError, PyroviError
from pyrovi.module.handlers import Substitute, is_latent
from pyrovi.module.ledger import Role
from pyrovi.module.plates import OBS_PLATE

if TYPE_CHECKING:
    from pyrovi.module.base import PyroBaseModule


@contextmanager
def on_made_up_observations() -> Iterator[None]:
    """Say of an error of a model or guide what it was run on.

    Raises
    ------
    ModelError
        In place of any error that is not pyrovi's own.
    """
    try:
        yield
    except PyroviError:
        raise
    except Exception as error:  # a story may raise anything, and all of it needs the same words
        raise ModelError(
            f"The model or guide fails while pyrovi looks at its sites: {type(error).__name__}: "
            f"{error}\nAt construction the pair runs on synthetic minibatches of 2 and of 3 "
            "observations whose values are all ones (codes of categories: zeros). If a statistic "
            "of the minibatch is undefined there (the standard deviation or a Cholesky factor of "
            "equal rows, the logarithm of x - 1, more neighbours than rows), compute it from the "
            "registered data beforehand, or guard it, e.g. with .clamp(min=...). The original "
            "error is above."
        ) from error


def refuse_dependent_globals(module: PyroBaseModule, small: Minibatch, large: Minibatch) -> None:
    """Refuse global latents that depend on the minibatch.

    The pair runs on two minibatches that differ in every number that belongs to an observation, and
    the local latents have other noise, while every global site is drawn from the same random state:
    its draws have to be the same.

    Parameters
    ----------
    module
        A materialised pair.
    small, large
        Example minibatches of different size: what changes shape belongs to the observations.

    Raises
    ------
    ModelError
        Naming the site.
    """
    names = module.ledger.names(Role.GLOBAL)
    if not names:
        return
    other = small.replace(
        tensors={
            name: tensor + 1
            if tensor.shape != large[name].shape and tensor.is_floating_point()
            else tensor
            for name, tensor in small.tensors.items()
        }
    )
    with pyro.validation_enabled(False):
        try:
            draws = [
                _draw(module, batch, names, noise) for noise, batch in enumerate((small, other))
            ]
        except (ValueError, RuntimeError):
            return  # a story that refuses the other values does not tell anything
    for which in ("guide", "model"):
        for name in names:
            if not _same(draws[0][which, name], draws[1][which, name]):
                raise ModelError(
                    f"The global latent {name!r} depends on the observations of the minibatch in "
                    f"the {which}: it would have another distribution in every minibatch. If there "
                    "is one value per observation, move it into the observation plate (`with "
                    "self.obs_plate():`); if it needs a statistic of the data, compute that from "
                    "the registered data beforehand and give it to the module."
                )


def _draw(
    module: PyroBaseModule, minibatch: Minibatch, names: list[str], noise: int
) -> dict[tuple[str, str], Tensor]:
    """Draws of the globals from the guide and, given the guide's latents, from the prior."""
    with _SeedSites(noise):
        guide: Any = poutine.trace(module.run_guide).get_trace(minibatch)
    latents = {name: node["value"] for name, node in guide.nodes.items() if is_latent(node)}
    with _SeedSites(noise), Substitute(latents):
        model: Any = poutine.trace(module.run_model).get_trace(minibatch)
    drawn = {("guide", name): guide.nodes[name]["value"] for name in names}
    for name in names:
        torch.manual_seed(derive_seed("global", name))
        drawn["model", name] = model.nodes[name]["fn"]()
    return drawn


def _same(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.allclose(one, two, rtol=1e-6, atol=0, equal_nan=True)


class _SeedSites(Messenger):
    """Draw every site from a random state of its own; local sites from one that ``noise`` names.

    What a sampler takes from the generator may depend on its parameters: with one stream for all
    sites, data would seem to reach globals that merely are drawn later.
    """

    def __init__(self, noise: int) -> None:
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: Any) -> None:
        if is_latent(msg):
            local = any(frame.name == OBS_PLATE for frame in msg["cond_indep_stack"])
            torch.manual_seed(derive_seed("site", msg["name"], self.noise if local else 0))
