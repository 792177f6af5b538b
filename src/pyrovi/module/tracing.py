"""Running a pair on made-up observations: explained errors, and globals that depend on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from pyrovi.module.handlers import Substitute, is_latent, is_random
from pyrovi.module.hints import hint
from pyrovi.module.ledger import Role
from pyrovi.module.plates import OBS_PLATE
from pyrovi.module.shapes import BROADCAST

if TYPE_CHECKING:
    from pyrovi.module.base import PyroBaseModule


@contextmanager
def on_made_up_observations(tensors: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Say of an error of a model or guide what it was run on, and what usually is behind it.

    Parameters
    ----------
    tensors
        The tensors that model and guide may ask for.

    Raises
    ------
    ModelError
        In place of any error that is not pyrovi's own.
    """
    try:
        yield
    except PyroviError as error:
        message, shapes, _ = str(error).partition("\nTrace Shapes:")
        if shapes:  # Pyro has added its table
            raise type(error)(message) from error
        raise
    except Exception as error:  # a story may raise anything, and all of it needs the same words
        message = str(error).partition("\nTrace Shapes:")[0]
        advice = hint(message, tensors) or (
            "If a statistic of the minibatch is undefined there (the standard deviation or a "
            "Cholesky factor of equal rows, the logarithm of x - 1, more neighbours than rows), "
            "compute it from the registered data beforehand, or guard it, e.g. with "
            ".clamp(min=...)."
        )
        raise ModelError(
            f"The model or guide fails while pyrovi looks at its sites: {type(error).__name__}: "
            f"{message}\n{advice}\nAt construction the pair runs on synthetic minibatches of 2 and "
            "of 3 observations whose values are all ones (codes of categories: zeros). The "
            "original error is above."
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


def refuse_dependent_rows(module: PyroBaseModule, small: Minibatch, large: Minibatch) -> None:
    """Refuse densities of an observation that depend on the other observations of a minibatch.

    The model runs twice with the same latent values; all observations but the first have other
    numbers in the second run. The terms of the first one have to stay.

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
    changed = {
        name: _change_others(tensor)
        if tensor.shape != small[name].shape and tensor.is_floating_point()
        else tensor
        for name, tensor in large.tensors.items()
    }
    with pyro.validation_enabled(False):
        try:
            with _SeedSites(0):
                guide: Any = poutine.trace(module.run_guide).get_trace(large)
            latents = {name: node["value"] for name, node in guide.nodes.items() if is_latent(node)}
            terms = [
                _first_terms(module, batch, latents)
                for batch in (large, large.replace(tensors=changed))
            ]
        except (ValueError, RuntimeError, IndexError):
            return  # a story that refuses the other values does not tell anything
    for name, first in terms[0].items():
        second = terms[1].get(name, first)
        if not torch.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise ModelError(
                f"The log density of {name!r} for one observation depends on the other "
                "observations of the minibatch: it would change with those drawn along with it. "
                f"Often shapes are the cause. {BROADCAST} A statistic over observations (x - "
                "x.mean(0)) has to be computed from the whole data beforehand; observations that "
                "depend on each other (a time series) belong into a story that closes over them: "
                "pv.from_pyro(story, {})."
            )


def _change_others(tensor: Tensor) -> Tensor:
    steps = torch.arange(len(tensor), dtype=tensor.dtype, device=tensor.device)
    return tensor + steps.reshape(-1, *[1] * (tensor.dim() - 1))


def _first_terms(
    module: PyroBaseModule, minibatch: Minibatch, latents: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Log densities of the first observation, by site."""
    with _SeedSites(0), Substitute(latents):
        trace: Any = poutine.trace(module.run_model).get_trace(minibatch)
    terms = {}
    for name, node in trace.nodes.items():
        dims = [f.dim for f in node.get("cond_indep_stack", ()) if f.name == OBS_PLATE]
        if node["type"] == "sample" and dims and is_random(node):
            density = node["fn"].log_prob(node["value"])
            if density.dim() >= -dims[0]:
                terms[name] = density.select(dims[0], 0)
    return terms


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
