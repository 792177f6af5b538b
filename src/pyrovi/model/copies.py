"""Fresh copies of a model: the same class and arguments, untrained, on the same or other data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pyrovi._rng import root_seed
from pyrovi.data import AnnDataManager
from pyrovi.model.setup import transferred_manager

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

Model = TypeVar("Model", bound="BaseModelClass")


def fresh_copy(model: Model, adata: Any = None, *, seed: int | None = None) -> Model:
    """An untrained model of the same class and arguments.

    Parameters
    ----------
    model
        The model to copy.
    adata
        Data of the copy, which have to match the registry; ``None`` for the model's own.
    seed
        Seed of the initial parameters; ``None`` for ``settings.seed``.

    Raises
    ------
    RegistryError
        If the data do not match.
    """
    if isinstance(adata, AnnDataManager):
        manager = adata
    elif adata is None:
        manager = model.adata_manager
    else:
        manager = transferred_manager(type(model), adata, model.registry)
    with root_seed(seed):
        return type(model)(manager, **model._init_arguments)
