"""Discrete latent sites: which of them a guide by name leaves to exact summation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovi.errors import ModelError
from pyrovi.module.handlers import Substitute, is_enumerated, is_latent, is_random
from pyrovi.module.plates import OBS_PLATE


class Enumerate(Messenger):
    """Mark latent sites as ones to sum out, as ``infer={"enumerate": "parallel"}`` does."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and is_latent(msg):
            msg["infer"] = {**(msg["infer"] or {}), "enumerate": "parallel"}


def is_discrete(fn: Any) -> bool:
    """Whether a distribution is one of discrete values."""
    return bool(fn.support.is_discrete)


def is_left_out(msg: Any) -> bool:
    """Whether a latent site is discrete or summed out: no guide by name draws it."""
    return is_latent(msg) and (is_enumerated(msg) or is_discrete(msg["fn"]))


def to_be_summed(msg: Any) -> bool:
    """Whether a latent site is discrete and not marked to be summed out yet.

    Raises
    ------
    ModelError
        If it is, and its values cannot be enumerated.
    """
    if is_enumerated(msg) or not is_discrete(msg["fn"]):
        return False
    if not msg["fn"].has_enumerate_support:
        raise ModelError(
            f"The discrete latent {msg['name']!r} ({type(msg['fn']).__name__}) cannot be summed "
            "out: it has infinitely many values, or several discrete values in one event "
            "(`.to_event()`: put them into a plate). Sum it out by hand (a Poisson with a Gamma "
            "rate is a NegativeBinomial), truncate it to a Categorical, or put a continuous "
            "variable in its place."
        )
    return True


def without_discrete(model: Callable[..., Any], found: list[str]) -> Callable[..., Any]:
    """A model whose discrete latent sites are hidden from the automatic guide that looks at it.

    Parameters
    ----------
    model
        The story.
    found
        Names of the sites that have to be marked to be summed out; filled whenever the model runs.
    """

    def hide(msg: Any) -> bool:
        if not is_left_out(msg):
            return False
        if to_be_summed(msg):
            if all(frame.name != OBS_PLATE for frame in msg["cond_indep_stack"]):
                raise _shared_by_observations(msg["name"])
            if msg["name"] not in found:
                found.append(msg["name"])
        return True

    blocked: Callable[..., Any] = poutine.block(model, hide_fn=hide)
    return blocked


def sites_to_sum(
    model: Callable[..., Any], arguments: Mapping[str, Tensor], trace: poutine.Trace
) -> tuple[str, ...]:
    """Names of the discrete latent sites of a model that are not marked to be summed out.

    Parameters
    ----------
    model
        The story.
    arguments
        Its tensors.
    trace
        A trace of it.

    Raises
    ------
    ModelError
        If such a site has values that cannot be enumerated, or stands outside the observation
        plate while the observations depend on it.
    """
    nodes: Mapping[str, Any] = trace.nodes
    names = [n for n, node in nodes.items() if is_latent(node) and to_be_summed(node)]
    shared = [n for n in names if not _in_obs_plate(nodes[n])]
    if shared:
        _refuse_dependent_observations(model, arguments, names, shared, nodes)
    return tuple(names)


def _refuse_dependent_observations(
    model: Callable[..., Any],
    arguments: Mapping[str, Tensor],
    names: Collection[str],
    shared: Collection[str],
    nodes: Mapping[str, Any],
) -> None:
    frames = [frame for node in nodes.values() for frame in node.get("cond_indep_stack") or ()]
    nesting = max((-frame.dim for frame in frames if frame.dim is not None), default=0)
    enumerated = poutine.enum(Enumerate(names)(model), first_available_dim=-1 - nesting)
    given = {
        name: node["value"]
        for name, node in nodes.items()
        if is_latent(node) and not is_left_out(node)
    }
    with poutine.block(), Substitute(given):
        summed: Mapping[str, Any] = poutine.trace(enumerated).get_trace(**arguments).nodes
    for name in shared:
        dim = summed[name]["infer"]["_enumerate_dim"]
        for node in summed.values():
            if not is_random(node) or not _in_obs_plate(node):
                continue
            terms = node["fn"].log_prob(node["value"])
            if terms.dim() >= -dim and terms.shape[dim] > 1:
                raise _shared_by_observations(name)


def _in_obs_plate(node: Any) -> bool:
    return any(frame.name == OBS_PLATE for frame in node["cond_indep_stack"])


def _shared_by_observations(name: str) -> ModelError:
    return ModelError(
        f"The discrete latent {name!r} stands outside the observation plate and the observations "
        "depend on it: its posterior takes all of them at once, so a sum in every minibatch would "
        "be wrong. If there is one value per observation, move it into the observation plate. If "
        "not, put a continuous variable in its place (a weight on the simplex, a relaxed "
        'distribution), or mark it with infer={"enumerate": "parallel"} and train on all '
        "observations in one minibatch."
    )
