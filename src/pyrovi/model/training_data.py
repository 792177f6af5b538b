"""What ``model.train`` reads: minibatches of the model's data, in memory or on the device."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

import torch

from pyrovi._settings import settings
from pyrovi.dataloaders.arguments import checked_batch_size
from pyrovi.errors import TrainingError
from pyrovi.model.rows import check_rows

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass
    from pyrovi.train import SVITrainingPlan


def training_batch_size(batch_size: Any) -> int | None:
    """Observations per minibatch that ``train(batch_size=)`` asks for; ``None``: all of them.

    Parameters
    ----------
    batch_size
        ``None``, ``"default"`` or a number.

    Raises
    ------
    DataError
        If it is neither ``None``, ``"default"`` nor a positive whole number.
    """
    if batch_size is None:
        return None
    is_default = isinstance(batch_size, str) and batch_size == "default"
    return settings.batch_size if is_default else checked_batch_size(batch_size)


def check_batches(model: BaseModelClass, n_train: int, size: int | None) -> None:
    """Refuse minibatches of one observation where batch norm would have nothing to normalise by.

    Parameters
    ----------
    model
        The model.
    n_train
        Number of training observations.
    size
        Observations per minibatch.

    Raises
    ------
    TrainingError
        If there is one in each and the model has batch norm.
    """
    if min(n_train, n_train if size is None else size) == 1 and _normalises(model.module):
        raise TrainingError(
            f"Every minibatch would hold one observation (batch_size={size}, {n_train} "
            "training observations), whose mean and variance batch norm cannot use. Use batch_size "
            "of at least 2 and more data, or a module without batch norm (SCVI: "
            "use_batch_norm='none')."
        )


def training_splitter(
    model: BaseModelClass,
    plan_class: type[SVITrainingPlan],
    options: dict[str, Any],
    size: int | None,
    accelerator: str | None,
) -> Any:
    """Splits of the model's data in memory, or on a device.

    Parameters
    ----------
    model
        The model.
    plan_class
        Class of the training plan; pairs of minibatches are only for those that take them.
    options
        Arguments of the splitter.
    size
        Observations per minibatch; ``None``: all of them.
    accelerator
        That of the device that holds the data; ``None``: they stay in memory.

    Raises
    ------
    TrainingError
        If an option belongs elsewhere or has no effect.
    """
    from pyrovi.dataloaders import DataSplitter, SemiSupervisedDataSplitter

    check_rows(model)
    for name in sorted({"batch_size", "accelerator", "on_device"} & options.keys()):
        raise TrainingError(
            f"datasplitter_kwargs has {name}={options[name]!r}, which is an argument of train "
            f"itself: train({name}={options[name]!r})."
        )
    if options.get("external_indexing") is not None:
        options = {k: v for k, v in options.items() if k not in ("train_size", "validation_size")}
    splitter = model.data_splitter_class()
    if accelerator is None:
        data = splitter(model.adata_manager, batch_size=size, **options)
    elif splitter is not DataSplitter:
        raise TrainingError(
            f"A {type(model).__name__} is trained on the loaders of {splitter.__name__}, which "
            "read from memory or disk: leave on_device=True out, and give a batch_size."
        )
    else:
        data = _device_splitter(model, options, size, accelerator)
    if isinstance(data, SemiSupervisedDataSplitter) and not plan_class.takes_pairs:
        if data.n_samples_per_label is not None:
            raise TrainingError(
                f"n_samples_per_label={data.n_samples_per_label!r} is of the classification loss, "
                f"which {plan_class.__name__} does not have; leave it out."
            )
        data.gives_pairs = False
    if size is None:
        return data
    smallest = data.n_train // math.ceil(data.n_train / size)
    if smallest == 1 < data.n_train and size > 1 and _normalises(model.module):
        # Batch normalisation cannot train on one observation. Every epoch leaves out another one.
        data.drop_last = True
    return data


def _device_splitter(
    model: BaseModelClass, options: dict[str, Any], size: int | None, accelerator: str
) -> Any:
    from pyrovi.dataloaders import DeviceBackedDataSplitter

    if options.pop("load_sparse_tensor", False):
        raise TrainingError(
            "load_sparse_tensor=True has no effect with on_device=True or batch_size=None, which "
            "keep the data on the device in dense form; choose one of them."
        )
    known = inspect.signature(DeviceBackedDataSplitter).parameters
    if unknown := [name for name in options if name not in known]:
        raise TrainingError(
            f"datasplitter_kwargs has {', '.join(map(repr, unknown))}, which data on the device "
            "(on_device=True or batch_size=None) have no use for; leave it out."
        )
    options = {"shuffle": size is not None, **options}
    return DeviceBackedDataSplitter(
        model.adata_manager, batch_size=size, accelerator=accelerator, **options
    )


def _normalises(module: torch.nn.Module) -> bool:
    return any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in module.modules())
