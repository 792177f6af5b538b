"""Access to the registry of a model, under familiar names. Functions of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data import AnnDataManager
from pyrovi.data.registry import AttrDict, registry_data_registry, registry_state
from pyrovi.errors import MissingKeyError
from pyrovi.model.files import read_description

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


def get_from_registry(model: BaseModelClass, adata: Any, registry_key: str) -> Any:
    """Data of a field, in ``adata`` (``None``: the model's own).

    Raises
    ------
    MissingKeyError
        If no field of that key holds data.
    """
    return model.manager_of(adata).get_from_registry(registry_key)


def get_state_registry(model: BaseModelClass, registry_key: str) -> AttrDict:
    """State of a field: categories, column names, sizes.

    Raises
    ------
    MissingKeyError
        If there is no field of that key.
    """
    return registry_state(model.registry, registry_key)


def get_anndata_manager(model: BaseModelClass, adata: Any = None) -> AnnDataManager:
    """Manager of ``adata`` (``None``: of the model's own data), which must match the registry."""
    return model.manager_of(adata)


def get_setup_arg(model: BaseModelClass, setup_arg: str) -> Any:
    """Argument of the setup method.

    Raises
    ------
    MissingKeyError
        If the setup has no such argument.
    """
    arguments = model.registry["setup_args"]
    if setup_arg not in arguments:
        raise MissingKeyError(
            f"The setup has no argument {setup_arg!r}; its arguments are: {', '.join(arguments)}."
        )
    return arguments[setup_arg]


def get_var_names(model: BaseModelClass) -> np.ndarray:
    """Names of the variables, in the order the model knows them."""
    return np.asarray(model.var_names)


def transfer_fields(model: BaseModelClass, adata: Any, **kwargs: bool) -> AnnDataManager:
    """Manager of other data that match the registry.

    Parameters
    ----------
    adata
        The data.
    kwargs
        ``extend_categories``, ``allow_missing_labels``.

    Raises
    ------
    RegistryError
        If they do not match.
    """
    from pyrovi.model.setup import transferred_manager

    return transferred_manager(type(model), adata, model.registry, **kwargs)


def data_registry(model: BaseModelClass) -> AttrDict:
    """Where each field that holds data lives: ``attr_name``, ``attr_key``, ``mod_key``."""
    return registry_data_registry(model.registry)


def covariate_sizes(model: BaseModelClass) -> dict[str, Any]:
    """Numbers of categories of each categorical covariate, and of continuous covariates.

    Named as modules take them: ``n_cats_per_cov`` and ``n_continuous_cov``.
    """
    categorical = get_state_registry(model, REGISTRY_KEYS.CAT_COVS_KEY)
    return {
        "n_cats_per_cov": list(categorical.get("n_cats_per_key", [])),
        "n_continuous_cov": model.summary_stats.get("n_extra_continuous_covs", 0),
    }


def load_registry(dir_path: str | Path) -> dict[str, Any]:
    """Registry of a saved model, without loading the model.

    Raises
    ------
    SaveLoadError
        If the folder is no saved model.
    """
    registry: dict[str, Any] = read_description(Path(dir_path))["registry"]
    return registry
