"""Saving and loading: tensors + JSON, never pickle."""

from __future__ import annotations

import copy
import datetime
import inspect
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pyrovi.data.registry import check_registry
from pyrovi.errors import MissingKeyError, ModelError, RegistryError, SaveLoadError
from pyrovi.model.files import (
    FORMAT,
    check_target,
    read_data,
    read_description,
    read_tensors,
    recover,
    write_data,
    write_files,
    write_folder,
)
from pyrovi.model.json_codec import decode, encode
from pyrovi.model.posteriors import describe_posterior, restore_posterior
from pyrovi.model.restart_files import (
    decode_history,
    describe_restarts,
    encode_history,
    restart_tensors,
    restore_restarts,
)
from pyrovi.model.rows import align_rows, fingerprint, saved_names

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass
    from pyrovi.model.training import TrainingRecord

__all__ = ["load", "load_any", "load_without_data", "read_description", "save"]

Model = TypeVar("Model", bound="BaseModelClass")

_INDEX_SETS = ("train_indices", "validation_indices", "test_indices")
_PACKAGES = ("pyrovi", "torch", "pyro-ppl", "anndata", "numpy")


def save(
    model: BaseModelClass,
    dir_path: str | Path,
    overwrite: bool = False,
    save_anndata: bool = False,
) -> None:
    """Save the model to a folder: ``model.safetensors`` and ``model.json``.

    The folder appears complete or not at all: everything is written to a folder beside it first. A
    process that is killed while it replaces a model leaves the old one or the new one.

    Parameters
    ----------
    dir_path
        The folder.
    overwrite
        Replace a folder that holds a saved model.
    save_anndata
        Write the data, too.

    Raises
    ------
    SaveLoadError
        If the folder exists, or cannot be written (for instance, the disk is full).
    """
    target = Path(os.path.abspath(dir_path))
    recover(target)
    check_target(target, overwrite)
    adata = model.adata if save_anndata else None
    description, tensors = _describe(model), _tensors(model)

    def write(folder: Path) -> None:
        write_files(folder, description, tensors)
        if adata is not None:
            write_data(folder, adata)

    write_folder(target, write)


def load(
    cls: type[Model],
    dir_path: str | Path,
    adata: Any = None,
    *,
    device: str | torch.device = "auto",
    **arguments: Any,
) -> Model:
    """Load a model that :meth:`save` has written.

    Parameters
    ----------
    dir_path
        The folder.
    adata
        Data to go on with: the model's own, or others that match its registry. Where the guide has
        parameters of each observation, these are matched by ``obs_names``; a permutation of the
        model's own data brings the parameters into its order. ``None`` takes the
        data saved with the model, if any; ``False`` takes none. Without data, queries need
        ``adata=``.
    device
        Where to put the parameters.
    arguments
        Arguments of the class in place of the saved ones. Functions (the story of a model made by
        :func:`~pyrovi.from_pyro`) are saved by name only, and a function that this process has not
        given to a model yet has to be passed again: ``load(dir, data, story=my_story)``.

    Returns
    -------
    BaseModelClass
        The model, which can be queried and trained further.

    Raises
    ------
    SaveLoadError
        If the folder is no saved model, is damaged or newer, or holds another class.
    RegistryError
        If the data do not match the model's registry.
    """
    return _load(dir_path, adata, device, cls, arguments)


def load_any(
    dir_path: str | Path,
    adata: Any = None,
    *,
    device: str | torch.device = "auto",
    **arguments: Any,
) -> Any:
    """Load a saved model of any class: pyrovi's own, or one that has been imported.

    Parameters
    ----------
    dir_path, adata, device, arguments
        As in :meth:`BaseModelClass.load`.
    """
    return _load(dir_path, adata, device, None, arguments)


def load_without_data(dir_path: str | Path) -> Any:
    """Load a saved model of any class, without the data that may be saved with it."""
    return _load(dir_path, False, "cpu", None, {})


# ---------------------------------------------------------------------- what is saved


def _describe(model: BaseModelClass) -> dict[str, Any]:
    from pyrovi.nn.freezing import describe_freezing

    training = model._training
    return {
        "format_name": "pyrovi-model",
        "format": FORMAT,
        "class": type(model).__name__,
        "module": type(model).__module__,
        "arguments": {
            name: encode(value, f"argument {name!r}")
            for name, value in model._init_arguments.items()
        },
        "registry": model.registry,
        "is_trained": model.is_trained,
        "training": None
        if training is None
        else {
            "n_obs": training.n_obs,
            "epochs": training.epochs,
            "method": training.method,
            **_options_as_json(training),
        },
        "frozen": describe_freezing(model.module),
        **({} if (posterior := describe_posterior(model)) is None else {"posterior": posterior}),
        **({} if model._row_names is None else {"obs_names": list(model._row_names)}),
        **({} if (found := fingerprint(model)) is None else {"obs_fingerprint": found}),
        **describe_restarts(model),
        "history": encode_history(model._history),
        "versions": {package: version(package) for package in _PACKAGES},
        "saved_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _options_as_json(training: TrainingRecord) -> dict[str, Any]:
    """Options of the training, and the names of those that are objects, which no file holds."""
    plain = {name: value for name, value in training.options.items() if _is_plain(value)}
    return {
        "options": {name: encode(value, f"option {name!r}") for name, value in plain.items()},
        "lost": sorted({*training.lost, *training.options} - set(plain)),
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _tensors(model: BaseModelClass) -> dict[str, Tensor]:
    # clones: safetensors refuses tensors that share memory, and nothing may change in the meantime
    tensors = {
        f"module.{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.module.state_dict().items()
    }
    tensors |= restart_tensors(model)
    for name in _INDEX_SETS:
        indices = getattr(model, name)
        if indices is not None:
            tensors[name] = torch.as_tensor(np.asarray(indices, dtype=np.int64))
    return tensors


# ---------------------------------------------------------------------- what is loaded


def _load(
    dir_path: str | Path,
    adata: Any,
    device: Any,
    expected: type[Any] | None,
    arguments: Mapping[str, Any],
) -> Any:
    folder = Path(dir_path)
    description = read_description(folder)
    cls = _model_class(description, expected)
    tensors = read_tensors(folder)
    if adata is None:
        adata = read_data(folder)
    model = _rebuild(cls, description, folder, arguments)
    _restore(model, description, tensors, folder)
    if adata is not None and adata is not False:
        from pyrovi.model.setup import transferred_manager

        model._adata_manager = transferred_manager(cls, adata, description["registry"])
        align_rows(model, description.get("obs_fingerprint"))
    model.to_device(device)
    return model


def _model_class(description: Mapping[str, Any], expected: type[Any] | None) -> type[Any]:
    import pyrovi.model
    from pyrovi.model.base import MODEL_CLASSES

    name, module = description["class"], description["module"]
    own = module.split(".")[0] == "pyrovi"
    if own and name in pyrovi.model.__all__:
        getattr(pyrovi.model, name)  # imports it
    # pyrovi may move a class of its own; anyone else's is known by its full name
    cls = next(
        (
            known
            for (where, known_name), known in MODEL_CLASSES.items()
            if known_name == name and (where == module or (own and where.startswith("pyrovi.")))
        ),
        None,
    )
    if cls is None and not own and expected is not None and expected.__name__ == name:
        # the caller's own class, which has moved since
        cls = None if expected.__module__.startswith("pyrovi.") else expected
    if cls is None:
        raise SaveLoadError(
            f"The folder holds a {module}.{name}, which has not been imported. pyrovi runs no code "
            f"from a file: import the class first (e.g. `from {module} import {name}`), if you "
            "trust it."
        )
    if expected is not None and not issubclass(cls, expected):
        raise SaveLoadError(
            f"The folder holds a {module}.{name}, not a {expected.__module__}."
            f"{expected.__name__}; use {name}.load or pyrovi.load."
        )
    return cls


def _rebuild(
    cls: type[Any], description: Mapping[str, Any], folder: Path, given: Mapping[str, Any]
) -> Any:
    """Make the model again from its registry and arguments, with what is frozen frozen."""
    from pyrovi.nn.freezing import apply_freezing

    registry = copy.deepcopy(description["registry"])
    if unknown := [name for name in given if name not in description["arguments"]]:
        raise SaveLoadError(
            f"load() got {', '.join(map(repr, unknown))}, which {cls.__name__} does not take. "
            f"Expected some of its arguments: {', '.join(description['arguments'])}."
        )
    try:
        check_registry(registry)
        saved = description["arguments"]
        arguments = {n: decode(v) for n, v in saved.items() if n not in given} | dict(given)
        inspect.signature(cls).bind(registry, **arguments)
        model = cls(registry, **arguments)
        apply_freezing(model.module, description.get("frozen", {}))
    except SaveLoadError:
        raise
    except (RegistryError, MissingKeyError, ModelError) as error:
        raise _does_not_fit(cls, folder, str(error)) from error
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        # the file is not to be trusted: whatever a damaged part makes of the class is its fault
        raise _does_not_fit(cls, folder, f"{type(error).__name__}: {error}") from error
    return model


def _does_not_fit(cls: type[Any], folder: Path, problem: str) -> SaveLoadError:
    return SaveLoadError(
        f"The description in {str(folder)!r} does not fit {cls.__name__} as it is now: {problem} "
        "Either it is damaged (take another copy), or the class has changed since (take the "
        "version that saved it)."
    )


def _restore(
    model: BaseModelClass, description: Mapping[str, Any], tensors: dict[str, Tensor], folder: Path
) -> None:
    from pyrovi.model.training import TrainingRecord

    state = {
        name.removeprefix("module."): value
        for name, value in tensors.items()
        if name.startswith("module.")
    }
    try:
        restore_posterior(model, description.get("posterior"), state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _does_not_fit(type(model), folder, f"posterior: {error!r}.") from error
    try:
        _take_precision(model.module, state)
        model.module.load_state_dict(state)
    except RuntimeError as error:
        raise SaveLoadError(
            f"The parameters in {str(folder)!r} do not fit {type(model).__name__} as it is now: "
            f"{error}. Either a file is damaged (take another copy), or the class has changed "
            "since (take the version that saved it)."
        ) from error
    for name in _INDEX_SETS:
        if name in tensors:
            setattr(model, name, tensors[name].numpy())
    model.is_trained = description["is_trained"]
    try:
        model._history = decode_history(description["history"])
        if description["training"] is not None:
            record = description["training"]
            model._training = TrainingRecord(
                n_obs=record["n_obs"],
                epochs=record["epochs"],
                method=record.get("method", "svi"),
                options=decode(record.get("options", {})),
                lost=tuple(record.get("lost", ())),
            )
        model._row_names = saved_names(model, description.get("obs_names"))
        restore_restarts(model, description.get("restarts", []), tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _does_not_fit(
            type(model), folder, f"history, training or names: {error!r}."
        ) from error


def _take_precision(module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the saved types; loading alone would convert the values."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if name in state and value.dtype != state[name].dtype:
            value.data = value.data.to(state[name].dtype)
