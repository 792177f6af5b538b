"""Checks of single sites by comparing what they are in several runs of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovi.errors import ModelError
from pyrovi.module.handlers import is_deterministic, is_latent
from pyrovi.module.plates import OBS_PLATE


class PriorDraw(Messenger):
    """Draw latent sites from the prior, and take those of improper ones from another trace."""

    def __init__(self, fallback: Trace) -> None:
        super().__init__()
        self.fallback = fallback

    def _pyro_sample(self, msg: Any) -> None:
        if is_latent(msg) and is_improper(msg["fn"]):
            msg["value"] = self.fallback.nodes[msg["name"]]["value"]
            msg["done"] = True


class SameValues(Messenger):
    """Give latent sites outside the observation plate the values that they have in a trace."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def _pyro_sample(self, msg: Any) -> None:
        node: Any = self.trace.nodes.get(msg["name"])
        if node is None or not is_latent(msg) or _in_obs_plate(msg):
            return
        if msg["fn"].shape() == node["value"].shape:  # else it should stand in the plate
            msg["value"] = node["value"]
            msg["done"] = True


def _in_obs_plate(node: Any) -> bool:
    return any(frame.name == OBS_PLATE for frame in node["cond_indep_stack"])


def _base(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def is_improper(fn: Any) -> bool:
    """Whether a distribution is flat without a norm, so that nothing can be drawn from it."""
    return isinstance(_base(fn), dist.ImproperUniform)


def is_categorical(node: Any) -> bool:
    """Whether the values of a site are codes of categories without an order."""
    return "category_dim" in (node["infer"] or {}) or isinstance(
        _base(node["fn"]), dist.Categorical
    )


def support_varies(fns: Sequence[Any]) -> bool:
    """Whether the supports of some distributions differ, or depend on trained parameters.

    Parameters
    ----------
    fns
        The distributions that one site had in several runs.
    """
    supports = [getattr(fn, "support", None) for fn in fns]
    return any(_is_trained(s) for s in supports) or any(
        not _same(supports[0], other) for other in supports[1:]
    )


def _same(first: Any, second: Any) -> bool:
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first)
    if isinstance(first, torch.distributions.constraints.Constraint):
        return _same(vars(first), vars(second))
    if isinstance(first, torch.distributions.Transform):
        return True  # of a transformed distribution: its parameters move no bounds by themselves
    return bool(first == second)


def _is_trained(part: Any) -> bool:
    if isinstance(part, Tensor):
        return part.requires_grad
    if isinstance(part, (list, tuple)):
        return any(map(_is_trained, part))
    if isinstance(part, torch.distributions.constraints.Constraint):
        return any(map(_is_trained, vars(part).values()))
    return False


def check_outside_plate(name: str, first: Any, second: Any, obs_axis: int | None) -> None:
    """Refuse a site outside the observation plate that belongs inside.

    Parameters
    ----------
    name
        Name of the site.
    first, second
        Nodes of the site for minibatches of different size, with equal data in every row and the
        same global latent values.
    obs_axis
        Axis of its value whose length is that of the minibatch, if any.

    Raises
    ------
    ModelError
        If the site has one value per observation, or a log density that changes with their number.
    """
    shape = tuple(first["value"].shape)
    if obs_axis is not None and is_deterministic(first):
        raise ModelError(
            f"The deterministic site {name!r} has one value per observation of the minibatch "
            f"(shape {shape}) but is not inside the observation plate, so its values could not be "
            "put together with those of other minibatches. Put the statement inside "
            "`with pv.obs_plate():`."
        )
    if obs_axis is not None:
        raise ModelError(
            f"Site {name!r} has one value per observation of the minibatch (shape {shape}) but is "
            "not inside the observation plate, so its log density would not be scaled to the full "
            "data. Put the statement inside `with pv.obs_plate():`. If the "
            "observations depend on each other (a time series), they are no rows that can be taken "
            "apart: pass no data, pv.from_pyro(story, {}), and close over the tensors."
        )
    if not first["is_observed"] or is_deterministic(first):
        return
    check_finite(name, first)
    totals = [node["fn"].log_prob(node["value"]).sum() for node in (first, second)]
    if not torch.allclose(totals[0], totals[1], rtol=1e-5, atol=1e-6, equal_nan=True):
        raise ModelError(
            f"The log density of {name!r} depends on the observations of the minibatch "
            f"({totals[0]:.6g} and {totals[1]:.6g} for different numbers of them) but it stands "
            "outside the observation plate, so it would not be scaled to the full data. Put one "
            "term per observation inside `with pv.obs_plate():`, e.g. "
            "pyro.factor(name, log_prob) without the sum. If they depend on each other (a time "
            "series), pass no data, pv.from_pyro(story, {}), and close over the tensors."
        )


def check_same_sites(first: Trace, others: Sequence[Trace]) -> None:
    """Refuse models whose sites change from run to run.

    Parameters
    ----------
    first, others
        Traces of one model, with other latent values.

    Raises
    ------
    ModelError
        Naming the sites that only some runs have.
    """
    sites: list[set[str]] = [
        {name for name, node in trace.nodes.items() if node["type"] == "sample"}
        for trace in (first, *others)
    ]
    changing = sorted(sites[0].union(*sites) - sites[0].intersection(*sites))
    if changing:
        raise ModelError(
            f"The site(s) {', '.join(map(repr, changing))} appear only in some runs of the model: "
            "an `if` or a loop depends on a drawn value. Expected the same statements in every "
            "run: write the choice with torch.where, or as a discrete site that is summed out."
        )


def check_enumerable(name: str, node: Any) -> None:
    """Refuse to sum out what has infinitely many values.

    Parameters
    ----------
    name
        Name of the site.
    node
        A latent site that asks to be enumerated.

    Raises
    ------
    ModelError
        If its distribution cannot list its values.
    """
    fn = node["fn"]
    if not fn.has_enumerate_support:
        raise ModelError(
            f"Site {name!r} asks to be summed out (infer={{'enumerate': ...}}), but its "
            f"distribution {type(_base(fn)).__name__} has no finite list of values. Sum it out by "
            "hand (a Poisson with a Gamma rate is a NegativeBinomial), truncate it to a "
            "Categorical, or put a continuous variable in its place."
        )


def check_finite(name: str, node: Any) -> None:
    """Refuse observed values that are missing, of a site that the story has closed over.

    Parameters
    ----------
    name
        Name of the site.
    node
        Observed site outside the observation plate.

    Raises
    ------
    ModelError
        Telling where the first one is.
    """
    value = node["value"]
    if node["mask"] is not None or isinstance(node["fn"], dist.MaskedDistribution):
        return
    wrong = value.isnan()
    if wrong.any():
        raise ModelError(
            f"The observed value of site {name!r} has {int(wrong.sum())} missing values (NaN), the "
            f"first at {tuple(wrong.nonzero()[0].tolist())}. Expected finite numbers: leave these "
            "observations out, impute them, or mask them: NaN replaced by a possible value, and "
            "dist.mask(seen) with another field that says which are seen (docs: A model of your "
            "own, missing outcomes)."
        )
