"""Coordinates: the data's own names for the dimensions of labelled results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi.data import AnnDataManager
from pyrovi.data.registry import registry_var_names
from pyrovi.errors import MissingKeyError
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.labels import Coords

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

_NAME_ENTRIES = ("categorical_mapping", "column_names")


def model_coords(model: BaseModelClass, manager: AnnDataManager, positions: np.ndarray) -> Coords:
    """Coordinate values by dimension name.

    ``"obs"`` is the observations' names, ``"var"`` the variables'. Any other dimension that is
    named like a registry key takes that field's categories or column names, and so does that of the
    columns of a field, and one that the module says is along a field (``dim_fields``); dimensions
    the data do not know have none.

    Parameters
    ----------
    model
        The model.
    manager
        Manager of the queried data.
    positions
        Positions of the queried observations.
    """
    registered = model.registry["field_registries"]
    keys = {dim: key for key, dim in column_dims(model.registry).items()}
    keys |= model.module.dim_fields

    def coords(dim: str) -> np.ndarray | None:
        if dim == OBS_PLATE:
            return np.asarray(manager.obs_names[positions])
        if dim == "var":
            return _variable_names(model.registry)
        key = dim if dim in registered else keys.get(dim)
        if key is None:
            return None
        state: dict[str, Any] = registered[key]["state_registry"]
        names = next((state[entry] for entry in _NAME_ENTRIES if entry in state), None)
        return None if names is None else np.asarray(names)

    return coords


def _variable_names(registry: dict[str, Any]) -> np.ndarray | None:
    try:
        return np.asarray(registry_var_names(registry))
    except MissingKeyError:
        return None


def column_dims(registry: Mapping[str, Any]) -> dict[str, str]:
    """Field -> name of the dimension of its columns: ``"var"`` for layers, else ``<field>_dim_0``.

    A site that observes the field is often named like it, so the dimension cannot be.
    """
    return {
        key: "var" if entry["data_registry"].get("attr_name") in ("X", "layers") else f"{key}_dim_0"
        for key, entry in registry["field_registries"].items()
        if entry["tensor"] is not None and len(entry["tensor"]["shape"]) == 1
    }
