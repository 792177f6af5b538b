"""Saving and loading: tensors + JSON, never pickle."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pyrovi.errors import SaveLoadError
from pyrovi.model.json_codec import decode, encode

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

Model = TypeVar("Model", bound="BaseModelClass")

FORMAT = 1
"""Version of the layout of a model folder; higher ones are refused."""

JSON_FILE, TENSOR_FILE = "model.json", "model.safetensors"
_DATA_FILES = ("adata.h5ad", "mdata.h5mu")
_INDEX_SETS = ("train_indices", "validation_indices", "test_indices")
_PACKAGES = ("pyrovi", "torch", "pyro-ppl", "anndata", "numpy")


def save(
    model: BaseModelClass,
    dir_path: str | Path,
    overwrite: bool = False,
    save_anndata: bool = False,
) -> None:
    """Save the model to a folder: ``model.safetensors`` and ``model.json``.

    The folder appears complete or not at all: everything is written to a folder beside it first.

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
    target = Path(dir_path)
    _check_target(target, overwrite)
    description = _describe(model)
    tensors = _tensors(model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise SaveLoadError(f"Cannot write to {str(target.parent)!r}: {error}") from error
    try:
        _write(temporary, description, tensors)
        if save_anndata:
            is_mudata = hasattr(model.adata, "mod")
            model.adata.write(temporary / _DATA_FILES[is_mudata])
        _move_into_place(temporary, target)
    except OSError as error:
        raise SaveLoadError(
            f"The model could not be saved to {str(target)!r}: {error}. Nothing was left behind"
            + (", and the model saved there before is untouched." if target.exists() else ".")
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(
    cls: type[Model],
    dir_path: str | Path,
    adata: Any = None,
    *,
    device: str | torch.device = "cpu",
) -> Model:
    """Load a model that :meth:`save` has written.

    Parameters
    ----------
    dir_path
        The folder.
    adata
        Data to go on with: the model's own, or others that match its registry. ``None`` takes the
        data saved with the model, if any; otherwise the model has none, and queries need ``adata=``.
    device
        Where to put the parameters.

    Returns
    -------
    BaseModelClass
        The model, which can be queried and trained further.

    Raises
    ------
    SaveLoadError
        If the folder is no saved model, is damaged or newer, or holds another class.
    """
    return _load(dir_path, adata, device, expected=cls)


def load_any(dir_path: str | Path, adata: Any = None, *, device: str | torch.device = "cpu") -> Any:
    """Load a saved model of any class: pyrovi's own, or one that has been imported.

    Parameters
    ----------
    dir_path, adata, device
        As in :meth:`BaseModelClass.load`.
    """
    return _load(dir_path, adata, device, expected=None)


def read_description(dir_path: str | Path) -> dict[str, Any]:
    """The JSON part of a saved model: class, arguments, registry, versions, history.

    Raises
    ------
    SaveLoadError
        If the folder is no saved model, or is damaged or newer.
    """
    folder = Path(dir_path)
    path = folder / JSON_FILE
    if not path.is_file():
        hint = ""
        if any(folder.glob("*.pt")):
            hint = " It holds a .pt file: a pickle, which pyrovi never opens."
        raise SaveLoadError(f"{str(folder)!r} is not a saved model: it has no {JSON_FILE}.{hint}")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SaveLoadError(f"{str(path)!r} is damaged: {error}") from error
    if not isinstance(description, dict) or description.get("format_name") != "pyrovi-model":
        raise SaveLoadError(f"{str(path)!r} is not the description of a pyrovi model.")
    if description.get("format", 0) > FORMAT:
        raise SaveLoadError(
            f"{str(path)!r} has format {description['format']} (written by pyrovi "
            f"{description.get('versions', {}).get('pyrovi')}); this pyrovi reads up to {FORMAT}. "
            "Update pyrovi."
        )
    return description


# ---------------------------------------------------------------------- writing


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise SaveLoadError(
            f"{str(target)!r} exists. Choose another folder, or pass overwrite=True to replace it."
        )
    known = {JSON_FILE, TENSOR_FILE, *_DATA_FILES}
    if not target.is_dir() or (foreign := {p.name for p in target.iterdir()} - known):
        found = "a file" if not target.is_dir() else ", ".join(sorted(foreign))
        raise SaveLoadError(
            f"{str(target)!r} holds more than a saved model ({found}); it is not overwritten."
        )


def _describe(model: BaseModelClass) -> dict[str, Any]:
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
        else {"n_obs": training.n_obs, "epochs": training.epochs},
        "history": {
            metric: {str(epoch): encode(value, metric) for epoch, value in values.items()}
            for metric, values in model._history.items()
        },
        "versions": {package: version(package) for package in _PACKAGES},
        "saved_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _tensors(model: BaseModelClass) -> dict[str, Tensor]:
    tensors = {
        f"module.{name}": value.detach().cpu().contiguous()
        for name, value in model.module.state_dict().items()
    }
    for name in _INDEX_SETS:
        indices = getattr(model, name)
        if indices is not None:
            tensors[name] = torch.as_tensor(np.asarray(indices, dtype=np.int64))
    return tensors


def _write(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), folder / TENSOR_FILE)
    except SafetensorError as error:  # how it reports a failing write
        raise OSError(str(error)) from error
    with open(folder / JSON_FILE, "w", encoding="utf-8") as file:
        json.dump(description, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def _move_into_place(temporary: Path, target: Path) -> None:
    """Swap folders; whatever was there stays until the new one is in place."""
    temporary.chmod(0o755)
    if not target.exists():
        temporary.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent)) / "model"
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)


# ---------------------------------------------------------------------- reading


def _load(dir_path: str | Path, adata: Any, device: Any, expected: type[Any] | None) -> Any:
    folder = Path(dir_path)
    description = read_description(folder)
    cls = _model_class(description, expected)
    tensors = _read_tensors(folder / TENSOR_FILE)
    if adata is None:
        adata = _read_data(folder)
    arguments = {name: decode(value) for name, value in description["arguments"].items()}
    model = cls(description["registry"], **arguments)
    _restore(model, description, tensors, folder)
    if adata is not None:
        from pyrovi.model.setup import transferred_manager

        model._adata_manager = transferred_manager(cls, adata, description["registry"])
    model.to_device(device)
    return model


def _model_class(description: Mapping[str, Any], expected: type[Any] | None) -> type[Any]:
    import pyrovi.model
    from pyrovi.model.base import MODEL_CLASSES

    name, module = description["class"], description["module"]
    if module.split(".")[0] == "pyrovi" and name in pyrovi.model.__all__:
        getattr(pyrovi.model, name)  # imports it
    cls = MODEL_CLASSES.get(name)
    if cls is None:
        raise SaveLoadError(
            f"The folder holds a {module}.{name}, which has not been imported. pyrovi runs no code "
            f"from a file: import the class first (e.g. `from {module} import {name}`), if you trust "
            "it."
        )
    if expected is not None and not issubclass(cls, expected):
        raise SaveLoadError(
            f"The folder holds a {name}, not a {expected.__name__}; use {name}.load or pyrovi.load."
        )
    return cls


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise SaveLoadError(f"{str(path.parent)!r} is incomplete: it has no {path.name}.")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise SaveLoadError(
            f"{str(path)!r} is damaged or no tensor file: {error}. It was not unpickled."
        ) from error


def _read_data(folder: Path) -> Any:
    if (folder / _DATA_FILES[0]).is_file():
        import anndata

        return anndata.read_h5ad(folder / _DATA_FILES[0])
    if (folder / _DATA_FILES[1]).is_file():
        from pyrovi._lazy import require

        return require("mudata", "mudata").read_h5mu(folder / _DATA_FILES[1])
    return None


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
        model.module.load_state_dict(state)
    except RuntimeError as error:
        raise SaveLoadError(
            f"The parameters in {str(folder)!r} do not fit {type(model).__name__} as it is now: "
            f"{error}"
        ) from error
    for name in _INDEX_SETS:
        if name in tensors:
            setattr(model, name, tensors[name].numpy())
    model.is_trained = description["is_trained"]
    model._history = {
        metric: {int(epoch): decode(value) for epoch, value in values.items()}
        for metric, values in description["history"].items()
    }
    if description["training"] is not None:
        model._training = TrainingRecord(**description["training"])
