"""Which registered tensor an observed site takes its data from, and other data in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovi._rng import stream
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule, evaluation_mode
from pyrovi.module.ledger import Role, SiteLedger
from pyrovi.posterior.stories import guide_trace, latent_values, model_trace


def observed_tensors(module: PyroBaseModule, minibatch: Minibatch) -> dict[str, str]:
    """Observed site -> registry key of the tensor that holds its data.

    Parameters
    ----------
    module
        The pair.
    minibatch
        Real observations.

    Raises
    ------
    ModelError
        If the data of a site are no registered tensor as it is (up to its shape and type), or the
        model has ``pyro.factor`` terms: then nothing can be simulated that takes their place.
    """
    refuse_factors(module.ledger)
    with torch.no_grad(), evaluation_mode(module), stream("observed tensors"):
        latents = latent_values(guide_trace(module, minibatch, {}))
        trace: poutine.Trace = model_trace(module, minibatch, latents)
    nodes: Mapping[str, Any] = trace.nodes
    found: dict[str, str] = {}
    for site in module.ledger.names(Role.OBSERVED):
        free = [key for key in minibatch if key not in found.values()]
        value = nodes[site]["value"]
        keys = [key for key in free if _holds(minibatch[key], value)]
        if not keys:
            raise ModelError(
                f"The data of the observed site {site!r} (shape {tuple(value.shape)}) are no "
                f"registered tensor as it is (registered: {', '.join(minibatch)}), so simulated "
                "data cannot take their place. Observe a registered tensor: register the "
                "transformed values, and write obs=<that tensor>."
            )
        found[site] = _most_likely(site, keys, minibatch, value)
    return found


def refuse_factors(ledger: SiteLedger) -> None:
    """Refuse to simulate from a model with ``pyro.factor`` terms.

    Raises
    ------
    ModelError
        Naming them.
    """
    if factors := ledger.names(Role.FACTOR):
        raise ModelError(
            f"The model has the pyro.factor term(s) {', '.join(factors)}: they weigh draws, and "
            "say nothing of how data come about, so data cannot be simulated. Write them as "
            "observed sites (pyro.sample(..., obs=...)) of a distribution."
        )


def with_data(
    minibatch: Minibatch, values: Mapping[str, Tensor], keys: Mapping[str, str]
) -> Minibatch:
    """A minibatch whose observed tensors are replaced.

    Parameters
    ----------
    minibatch
        The minibatch; it is left as it is.
    values
        Observed site -> value.
    keys
        Observed site -> registry key (see :func:`observed_tensors`).
    """
    replaced = {
        key: values[site].reshape(minibatch[key].shape).to(minibatch[key].dtype)
        for site, key in keys.items()
    }
    return minibatch.replace(tensors={**minibatch.tensors, **replaced})


def _holds(tensor: Tensor, value: Tensor) -> bool:
    if tensor.numel() != value.numel():
        return False
    if tensor.data_ptr() == value.data_ptr():
        return True
    one, two = (t.detach().reshape(-1).double() for t in (tensor, value))
    return bool(torch.equal(one.nan_to_num(), two.nan_to_num()))


def _most_likely(site: str, keys: list[str], minibatch: Minibatch, value: Tensor) -> str:
    """Of tensors that are equal by chance the one that is the same memory, or of the same name."""
    same = [key for key in keys if minibatch[key].data_ptr() == value.data_ptr()]
    candidates = same or keys
    return site if site in candidates else candidates[0]
