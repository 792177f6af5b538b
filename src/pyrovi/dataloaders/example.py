"""Example minibatches made from a registry alone, without data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pyrovi.dataloaders.minibatch import Minibatch


def example_minibatches(registry: Mapping[str, Any], n_obs: int) -> Callable[[int], Minibatch]:
    """Function that makes an example minibatch of a given number of observations.

    Categorical tensors are 0 and all others 1: values that any likelihood of counts and any
    logarithm of a size factor accepts.

    Parameters
    ----------
    registry
        A registry (see :class:`~pyrovi.data.AnnDataManager`).
    n_obs
        Plate size; also the number of rows of per-observation parameters.
    """
    specs = {
        key: field["tensor"]
        for key, field in registry["field_registries"].items()
        if field["tensor"] is not None and field["tensor"]["axis"] != "uns"
    }

    def example(n: int) -> Minibatch:
        tensors = {}
        for key, spec in specs.items():
            shape = (n, *spec["shape"]) if spec["axis"] == "obs" else tuple(spec["shape"])
            fill = 0 if spec["kind"] == "categorical" else 1
            tensors[key] = torch.full(shape, fill, dtype=getattr(torch, spec["dtype"]))
        return Minibatch(tensors, torch.arange(n), n_obs)

    return example
