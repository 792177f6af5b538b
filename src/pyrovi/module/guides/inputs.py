"""What the encoder of the amortised guide reads of an observation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.handlers import Substitute, is_factor, is_latent, is_random


@dataclass(frozen=True)
class EncoderInput:
    """A tensor that the encoder reads.

    Parameters
    ----------
    name
        Registry key.
    n_features
        Number of columns; of a categorical covariate, of categories.
    kind
        ``"real"`` is taken as it is, ``"counts"`` as ``log(1 + x)``, ``"categorical"`` as one-hot.
    """

    name: str
    n_features: int
    kind: Literal["real", "counts", "categorical"]


def find_inputs(
    model: Callable[..., Any],
    arguments: Mapping[str, Tensor],
    trace: poutine.Trace,
    minibatch: Minibatch,
    names: Sequence[str] | None,
    n_categories: Mapping[str, int],
) -> list[EncoderInput]:
    """What an encoder reads: the tensors that are asked for, or all that the model takes.

    Tensors that become the values of observed counts (or of another site of positive numbers) are
    read as ``log(1 + x)``. Integers that are observed by no site are read if their number of
    categories is known.

    Parameters
    ----------
    model
        The story.
    arguments
        Its tensors.
    trace
        A trace of it.
    minibatch
        The minibatch that it ran on.
    names
        Registry keys of the inputs; ``None`` for all tensors of the model with a row per
        observation.
    n_categories
        Registry key of a categorical covariate -> number of categories.

    Raises
    ------
    ModelError
        If an input does not exist, has no row per observation, or is an integer tensor without a
        number of categories, or if there is none.
    """
    known = [*n_categories, *(names or ())]
    if unknown := sorted(name for name in set(known) if name not in minibatch):
        raise ModelError(
            f"The encoder is to read {', '.join(map(repr, unknown))}, which is not registered. "
            f"Registered are: {', '.join(minibatch)}."
        )
    inputs = []
    for name in arguments if names is None else names:
        tensor = minibatch[name]
        if tensor.shape[:1] != (minibatch.n,):
            if names is None:
                continue
            raise ModelError(
                f"The encoder cannot read {name!r}: it has no row per observation (shape "
                f"{tuple(tensor.shape)})."
            )
        counts = _becomes_counts(model, arguments, trace, name)
        size = tensor[0].numel()
        if name in n_categories:
            inputs.append(EncoderInput(name, n_categories[name], "categorical"))
        elif counts is not None:
            inputs.append(EncoderInput(name, size, "counts" if counts else "real"))
        elif tensor.is_floating_point():
            inputs.append(EncoderInput(name, size, "real"))
        elif names is not None:
            raise ModelError(
                f"The encoder is to read the integers {name!r}; give the number of their "
                f"categories, n_categories={{{name!r}: ...}}, or register them as numbers."
            )
    if not inputs:
        raise ModelError(
            "There is nothing that the encoder of the guide 'amortized' could read: the model "
            "takes no tensor of numbers with a row per observation. Name its inputs with "
            'encoder_inputs=[...], or use the guide "normal".'
        )
    return inputs


def _becomes_counts(
    model: Callable[..., Any], arguments: Mapping[str, Tensor], trace: poutine.Trace, name: str
) -> bool | None:
    """Whether a tensor is the value of a site of positive numbers; ``None`` if of no site."""
    if name not in arguments:
        return None
    changed = {**arguments, name: arguments[name] + 1}
    nodes: Mapping[str, Any] = trace.nodes
    latents = {n: node["value"] for n, node in nodes.items() if is_latent(node)}
    try:
        with pyro.validation_enabled(False), poutine.block(), Substitute(latents):
            other: Any = poutine.trace(model).get_trace(**changed)
    except (RuntimeError, ValueError, IndexError):
        return None  # codes of categories have no next one here
    observed = [
        node
        for site, node in nodes.items()
        if is_random(node)
        and node["is_observed"]
        and not is_factor(node)
        and not torch.equal(node["value"], other.nodes[site]["value"])
    ]
    if not observed:
        return None
    return all(_is_positive(node["fn"].support) for node in observed)


def _is_positive(support: Any) -> bool:
    """Whether a support is bounded below by 0 or a positive number, and has no bound above."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if isinstance(support, type(constraints.multinomial)):
        return True
    lower = getattr(support, "lower_bound", None)
    unbounded = getattr(support, "upper_bound", None) is None
    return unbounded and lower is not None and bool((torch.as_tensor(lower) >= 0).all())
