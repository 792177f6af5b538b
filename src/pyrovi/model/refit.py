"""Refits: a fresh copy of a model trained on other data, as checks and folds need it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pyrovi._rng import root_seed
from pyrovi.model.copies import fresh_copy

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

Model = TypeVar("Model", bound="BaseModelClass")

_SPLITS = ("train_size", "validation_size")


def effective_method(model: BaseModelClass, train_kwargs: Mapping[str, Any] | None = None) -> str:
    """Name of the method that ``train`` would use: the argument, else what the guide asks for."""
    chosen = (train_kwargs or {}).get("method")
    return str(chosen or getattr(model.module.guide, "method", None) or "svi")


def refit_options(
    model: BaseModelClass, train_kwargs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Arguments of ``train`` for a refit: SVI uses all observations, as the other methods do.

    Parameters
    ----------
    model
        The model.
    train_kwargs
        Arguments of the user. A division of the observations that they ask for is kept.

    Returns
    -------
    dict
        The arguments; with ``train_size=1.0`` if the method is SVI and no division is given. Other
        methods have no such option: they use all observations.
    """
    options = dict(train_kwargs or {})
    split = options.get("datasplitter_kwargs") or {}
    divided = "external_indexing" in split or any(k in options or k in split for k in _SPLITS)
    if effective_method(model, options) == "svi" and not divided:
        options["train_size"] = 1.0
    return options


def refit(
    model: Model, adata: Any, train_kwargs: Mapping[str, Any] | None = None, seed: int | None = None
) -> Model:
    """Train a fresh copy of a model on other data.

    Parameters
    ----------
    model
        The model; it is left alone.
    adata
        Data of the copy, which have to match the registry.
    train_kwargs
        Arguments of :meth:`train`, see :func:`refit_options`.
    seed
        Root seed of the initial parameters and of the training.

    Raises
    ------
    RegistryError
        If the data do not match.
    TrainingError
        If training cannot start or fails.
    """
    copy = fresh_copy(model, adata, seed=seed)
    with root_seed(seed):
        copy.train(**refit_options(model, train_kwargs))
    return copy
