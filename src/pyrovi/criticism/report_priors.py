"""Priors in words: distributions with the parameters that are constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrovi._rng import stream
from pyrovi.model.draws import example_on_device
from pyrovi.module.base import evaluation_mode
from pyrovi.posterior.stories import guide_trace, latent_values, model_trace

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

_SHOWN = 4
_WRAPPERS = ("Independent", "MaskedDistribution", "ExpandedDistribution")


def constant_priors(model: BaseModelClass, names: Sequence[str]) -> dict[str, str]:
    """Site -> distribution with its parameters, e.g. ``Normal(0, 5)``.

    Parameters
    ----------
    model
        The model.
    names
        Global sites whose prior depends on no other latent site.

    Returns
    -------
    dict
        Without sites whose parameters are trained, or many different numbers.
    """
    module, example = model.module, example_on_device(model, None)
    with torch.enable_grad(), evaluation_mode(module), stream("prior parameters"):
        latents = latent_values(guide_trace(module, example, {}))
        nodes: Any = model_trace(module, example, latents).nodes
    found = {name: _in_words(nodes[name]["fn"]) for name in names}
    return {name: words for name, words in found.items() if words is not None}


def _in_words(fn: Any) -> str | None:
    while type(fn).__name__ in _WRAPPERS:
        fn = fn.base_dist
    parts = [_number(value) for value in _parameters(fn)]
    if not parts or None in parts:
        return None
    return f"{type(fn).__name__}({', '.join(map(str, parts))})"


def _parameters(fn: Any) -> list[Any]:
    """Values of the parameters; of those that say the same (logits, probs), the one given."""
    names = list(fn.arg_constraints)
    given = [name for name in names if name in vars(fn)]
    alternatives = {"logits", "scale_tril", "precision_matrix"} & set(names)
    return [getattr(fn, name) for name in (given if alternatives else names)]


def _number(value: Any) -> str | None:
    if not isinstance(value, Tensor):
        return f"{value:g}" if isinstance(value, int | float) else None
    if value.requires_grad or not value.numel():
        return None
    flat = value.detach().flatten()
    if bool((flat == flat[0]).all()):
        return f"{float(flat[0]):.4g}"
    if len(flat) > _SHOWN:
        return None
    return f"[{', '.join(f'{float(x):.4g}' for x in flat)}]"
