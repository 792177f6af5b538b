"""Example minibatches made from a registry: they need no observations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrovi.dataloaders.dataset import AnnTorchDataset, tensor_dtype
from pyrovi.dataloaders.minibatch import Minibatch

if TYPE_CHECKING:
    from pyrovi.data import AnnDataManager


def example_minibatches(
    registry: Mapping[str, Any], n_obs: int, fixed: Mapping[str, Tensor] | None = None
) -> Callable[[int], Minibatch]:
    """Function that makes an example minibatch of a given number of observations.

    Categorical tensors are 0 and all others 1: values that any likelihood of counts and any
    logarithm of a size factor accepts.

    Parameters
    ----------
    registry
        A registry (see :class:`~pyrovi.data.AnnDataManager`).
    n_obs
        Plate size; also the number of rows of per-observation parameters.
    fixed
        Tensors that are the same in every minibatch (see :func:`fixed_tensors`): they replace the
        made-up ones, so that what the globals make of them is true.
    """
    given = dict(fixed or {})
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
            tensors[key] = torch.full(shape, fill, dtype=getattr(torch, tensor_dtype(spec)))
            if key in given:
                tensors[key] = given[key]
        return Minibatch(tensors, torch.arange(n), n_obs)

    return example


def fixed_tensors(manager: AnnDataManager) -> dict[str, Tensor]:
    """Tensors of the fields that belong to the variables: the same in every minibatch.

    Parameters
    ----------
    manager
        Manager of the data.
    """
    names = [
        key
        for key, field in manager.registry["field_registries"].items()
        if field["tensor"] is not None and field["tensor"]["axis"] == "var"
    ]
    if not names:
        return {}
    return {k: torch.as_tensor(v) for k, v in AnnTorchDataset(manager, names)[[]].items()}
