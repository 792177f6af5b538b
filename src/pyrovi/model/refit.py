"""Refits: a fresh copy of a model trained on other data, as checks and folds need it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pyrovi._rng import root_seed
from pyrovi.model.copies import fresh_copy

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

Model = TypeVar("Model", bound="BaseModelClass")

_SPLITS = ("train_size", "validation_size", "shuffle_set_split")

_OF_THE_CALL = (
    "indices",
    "ckpt_path",
    "callbacks",
    "logger",
    "enable_checkpointing",
    "enable_progress_bar",
    "default_root_dir",
    "num_workers",
)
"""Options that belong to the data of a call of ``train``, or to how it was watched."""


def effective_method(model: BaseModelClass, train_kwargs: Mapping[str, Any] | None = None) -> str:
    """Name of the method of a refit: the argument, else the one the model was trained by.

    Parameters
    ----------
    model
        The model. If it is not trained, the guide says (``guide="laplace"`` does), or it is SVI.
    train_kwargs
        Arguments of the user.
    """
    if chosen := (train_kwargs or {}).get("method"):
        return str(chosen)
    if model.is_trained and model._training is not None:
        return model._training.method
    return str(getattr(model.module.guide, "method", None) or "svi")


def refit_options(
    model: BaseModelClass, train_kwargs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Arguments of ``train`` for a refit: the inference that the model was trained by, again.

    Parameters
    ----------
    model
        The model.
    train_kwargs
        Arguments of the user, which replace those that the model was trained with. If they name
        another ``method``, they are all there is.

    Returns
    -------
    dict
        The arguments. What belongs to the data or the watching of the one training (``indices``,
        ``callbacks``, ...) is no part of them. SVI uses all observations, as the other methods do
        (``train_size=1.0``), unless the user divides them, or the training was stopped by
        observations that it held out.

    Warns
    -----
    UserWarning
        If the model comes from a file that could not hold some of the options.
    """
    given = dict(train_kwargs or {})
    method = effective_method(model, given)
    recorded = _recorded(model, method)
    stops = method == "svi" and _watches_held_out(recorded)
    if method == "svi" and not stops:
        recorded = {k: v for k, v in recorded.items() if k not in (*_SPLITS, "datasplitter_kwargs")}
    options = {**recorded, **given}
    split = options.get("datasplitter_kwargs") or {}
    divided = "external_indexing" in split or any(k in options or k in split for k in _SPLITS[:2])
    if method == "svi" and not divided and not stops:
        options["train_size"] = 1.0
    return options


def inference_name(model: BaseModelClass, options: Mapping[str, Any]) -> str:
    """Name of the inference of a refit, e.g. ``method="svi", max_epochs=50``."""
    numbers = (bool, int, float, str)
    shown = {k: v for k, v in options.items() if isinstance(v, numbers) and k != "method"}
    if shown.get("train_size") == 1.0:
        del shown["train_size"]
    shown = {"method": effective_method(model, options), **shown}
    return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def _recorded(model: BaseModelClass, method: str) -> dict[str, Any]:
    """What ``train`` was asked for, where it is the same method that is asked for now."""
    record = model._training
    if record is None or not model.is_trained or record.method != method:
        return {}
    if lost := [name for name in record.lost if name not in _OF_THE_CALL]:
        warnings.warn(
            f"The model was trained with {', '.join(lost)}, of which the file it comes from says "
            "no more than the name: refits do without. Pass them as train_kwargs=.",
            stacklevel=4,
        )
    options = {name: v for name, v in record.options.items() if name not in _OF_THE_CALL}
    split = dict(options.pop("datasplitter_kwargs", None) or {})
    split.pop("external_indexing", None)
    if split:
        options["datasplitter_kwargs"] = split
    if (getattr(model.module.guide, "method", None) or "svi") != method:
        options["method"] = method
    # a class whose train() has arguments of its own sets the others itself
    parameters = inspect.signature(model.train).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return options
    return {name: value for name, value in options.items() if name in parameters}


def _watches_held_out(options: Mapping[str, Any]) -> bool:
    plan = options.get("plan_kwargs") or {}
    watches = options.get("early_stopping") is True or options.get("restore_best")
    return bool(watches or plan.get("reduce_lr_on_plateau"))


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
