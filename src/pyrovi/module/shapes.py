"""Shapes of sites: values, distributions and plates that do not fit, before they broadcast."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.hmm import HiddenMarkovModel
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger

from pyrovi.errors import ModelError
from pyrovi.module.handlers import is_factor, is_latent, is_random
from pyrovi.module.plates import OBS_PLATE

BROADCAST = (
    "A column of shape (n, 1) that meets a vector of shape (n,), or the observation plate, becomes "
    "(n, n). Give all the same shape: pv.fields.column(...) makes vectors, pv.fields.obs(...) "
    "columns (x[..., 0] is the vector of a column); with columns the distribution needs "
    ".to_event(1)."
)
"""What a newcomer has to know about (n, n)."""


class SameShapes(Messenger):
    """Refuse a latent value of the guide whose shape is not that of the model's distribution.

    Torch would broadcast it, and the model's density would count the same value several times.
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        if not is_latent(msg) or msg["value"] is None:
            return
        found, expected = tuple(msg["value"].shape), tuple(msg["fn"].shape())
        if found != expected:
            raise ModelError(
                f"The guide draws {msg['name']!r} with shape {found}, but in the model it has "
                f"shape {expected}. Give its distribution in the guide the same shape: "
                "`.expand([...])`, `.to_event(...)` and plates as in the model."
            )


def check_shapes(first: Trace, second: Trace) -> None:
    """Refuse sites whose log density would not have one term per member of their plates.

    Parameters
    ----------
    first, second
        Traces of the model for minibatches of different size.

    Raises
    ------
    ModelError
        If an observed value does not fit its distribution, if a plate of the observations is not
        that of pyrovi, or if a distribution has several values where no plate or event declares
        them: above all one for every pair of observations.
    """
    nodes: Any = first.nodes
    frames = [f for node in nodes.values() for f in node.get("cond_indep_stack", ())]
    nesting = -min((f.dim for f in frames if f.dim is not None), default=0)
    for name, node in nodes.items():
        if node["type"] != "sample":
            continue
        other: Any = second.nodes.get(name)
        if other is not None:
            _refuse_own_obs_plate(name, node, other)
        if not is_random(node) or is_factor(node):
            continue
        for run in (node, other):
            if run is not None and run["is_observed"]:
                _check_observed(name, run)
        _refuse_undeclared(name, node, other, nesting)


def _refuse_own_obs_plate(name: str, first: Any, second: Any) -> None:
    sizes = [
        [f.full_size for f in node["cond_indep_stack"] if f.name == OBS_PLATE]
        for node in (first, second)
    ]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"Site {name!r} stands in a plate named {OBS_PLATE!r} of the story's own, whose size "
            f"is that of the minibatch ({sizes[0][0]}, then {sizes[1][0]}): its log density would "
            "not be scaled to the full data. Write `with pv.obs_plate():` in the place of "
            f"`pyro.plate({OBS_PLATE!r}, ...)`; size and indices come from the data."
        )


def _check_observed(name: str, node: Any) -> None:
    fn, value = node["fn"], tuple(node["value"].shape)
    if isinstance(_innermost(fn), HiddenMarkovModel):
        return  # whose event shape does not tell the length of the sequence
    batch, event = tuple(fn.batch_shape), tuple(fn.event_shape)
    n_batch = len(value) - len(event)
    if _broadcasts_to(value[: max(n_batch, 0)], batch) and value[max(n_batch, 0) :] == event:
        return
    kind = type(_innermost(fn)).__name__
    advice = (
        "If every observation has several values, they are one event: "
        f"dist.{kind}(...).to_event(1), with parameters of shape (n, number of values)."
    )
    if 1 in value and len(batch) == 1:
        advice = BROADCAST
    elif n_batch >= 0 and value[n_batch:] != event:
        advice = (
            "Expected events of the same shape: draws from it have to look like the data. Give its "
            "parameters that shape, e.g. with .expand([...])."
        )
    raise ModelError(
        f"The observed value of site {name!r} has shape {value}, which does not fit its "
        f"distribution {kind}, of batch shape {batch} and event shape {event} (for a minibatch of "
        f"made-up observations). {advice}"
    )


def _refuse_undeclared(name: str, node: Any, other: Any, nesting: int) -> None:
    fn = node["fn"]
    batch = tuple(fn.batch_shape)
    declared = {f.dim for f in node["cond_indep_stack"]}
    local = any(f.name == OBS_PLATE for f in node["cond_indep_stack"])
    for axis in range(-len(batch), 0):
        if batch[axis] == 1 or axis in declared or not (local or -axis <= nesting):
            continue
        later = tuple(other["fn"].batch_shape) if other is not None else batch
        if local and len(later) == len(batch) and later[axis] != batch[axis]:
            raise ModelError(
                f"Site {name!r} has batch shape {batch} for {batch[axis]} observations and {later} "
                f"for {later[axis]}: one term for every pair of observations. {BROADCAST}"
            )
        raise ModelError(
            f"Site {name!r} has batch shape {batch}, and nothing declares what the {batch[axis]} "
            f"values of its axis {axis} are. If they make up one value (a vector), add "
            ".to_event(1) to the distribution; if they are independent copies, open a plate around "
            f"the statement: `with pv.plate('...', {batch[axis]}, dim={axis}):`."
        )


def _broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return tuple(torch.broadcast_shapes(shape, target)) == target
    except RuntimeError:
        return False


def _innermost(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn
