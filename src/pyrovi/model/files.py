"""The files of a saved model: a folder that is whole or not there, read without trust."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anndata
from torch import Tensor

from pyrovi._lazy import require
from pyrovi.errors import SaveLoadError

FORMAT = 1
"""Version of the layout of a model folder; higher ones are refused."""

JSON_FILE, TENSOR_FILE = "model.json", "model.safetensors"
DATA_FILES = ("adata.h5ad", "mdata.h5mu")
_PARTS: dict[str, type | tuple[type, ...]] = {
    "class": str,
    "module": str,
    "arguments": dict,
    "registry": dict,
    "is_trained": bool,
    "training": (dict, type(None)),
    "history": dict,
    "versions": dict,
}


# ---------------------------------------------------------------------- writing


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse to save to a path that holds anything that would be lost.

    Raises
    ------
    SaveLoadError
        If the path exists without ``overwrite``, or is no folder with a saved model alone.
    """
    if not target.exists():
        _check_writable(target)
        return
    if not overwrite:
        raise SaveLoadError(
            f"{str(target)!r} exists. Choose another folder, or pass overwrite=True to replace it."
        )
    known = {JSON_FILE, TENSOR_FILE, *DATA_FILES}
    if not target.is_dir() or (foreign := {p.name for p in target.iterdir()} - known):
        found = "a file" if not target.is_dir() else ", ".join(sorted(foreign))
        raise SaveLoadError(
            f"{str(target)!r} holds more than a saved model ({found}); it is not overwritten. "
            "Choose another folder."
        )


def _check_writable(target: Path) -> None:
    """Try to make a folder where the target would be, so that nobody trains in vain."""
    existing = next(folder for folder in target.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=existing):
            return
    except OSError as error:
        raise SaveLoadError(
            f"Cannot write to {str(existing)!r}: {error}. Choose another folder."
        ) from error


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside ``target`` and move it into place when it is whole.

    Parameters
    ----------
    target
        The folder; what it held before stays until the new one is in place.
    write
        Writes the files into the folder it is given.

    Raises
    ------
    SaveLoadError
        If writing fails; nothing is left behind then.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise SaveLoadError(
            f"Cannot write to {str(target.parent)!r}: {error}. Choose another folder."
        ) from error
    try:
        write(temporary)
        _sync(temporary)
        _move_into_place(temporary, target)
    except OSError as error:
        raise SaveLoadError(
            f"The model could not be saved to {str(target)!r}: {error}. Nothing was left behind"
            + (", and the model saved there before is untouched. " if target.exists() else ". ")
            + "Free some space, or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_files(
    folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write the description and the tensors into a folder.

    Raises
    ------
    OSError
        If the disk is full, for instance.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), folder / TENSOR_FILE)
    except SafetensorError as error:  # how it reports a failing write
        raise OSError(str(error)) from error
    with open(folder / JSON_FILE, "w", encoding="utf-8") as file:
        json.dump(description, file, indent=1, allow_nan=False)
    # safetensors writes for the owner alone; both files get the permissions of any new file
    (folder / TENSOR_FILE).chmod((folder / JSON_FILE).stat().st_mode)


def write_data(folder: Path, adata: Any) -> None:
    """Write the data of a model beside it.

    Raises
    ------
    OSError
        If writing fails, however the library underneath calls it.
    """
    # Functions, not methods: the method would bind data on disk to the new file.
    try:
        if hasattr(adata, "mod"):
            require("mudata", "mudata").write_h5mu(folder / DATA_FILES[True], adata)
        else:
            anndata.io.write_h5ad(folder / DATA_FILES[False], adata)
    except RuntimeError as error:  # HDF5 reports a full disk like this when it closes a file
        raise OSError(str(error)) from error


def _sync(folder: Path) -> None:
    """Have everything on the disk before anything is replaced by it."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _move_into_place(temporary: Path, target: Path) -> None:
    """Swap folders; a process that dies in between leaves the old one for :func:`recover`."""
    temporary.chmod(0o755)
    previous = _previous(target)
    if previous.exists():
        shutil.rmtree(previous)  # of a process that died after it had moved the new one
    if target.exists():
        target.rename(previous)
    try:
        temporary.rename(target)
    except OSError:
        if previous.exists():
            previous.rename(target)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def recover(target: Path) -> None:
    """Put the earlier model back if a process died between the two steps of replacing it."""
    if target.name and not target.exists() and (_previous(target) / JSON_FILE).is_file():
        _previous(target).rename(target)


# ---------------------------------------------------------------------- reading


def read_description(dir_path: str | Path) -> dict[str, Any]:
    """The JSON part of a saved model: class, arguments, registry, versions, history.

    Raises
    ------
    SaveLoadError
        If the folder is no saved model, or is damaged or newer.
    """
    folder = Path(dir_path)
    recover(folder)
    path = folder / JSON_FILE
    if not path.is_file():
        hint = ""
        if any(folder.glob("*.pt")):
            hint = " It holds a .pt file: a pickle, which pyrovi never opens."
        raise SaveLoadError(
            f"{str(folder)!r} is not a saved model: it has no {JSON_FILE}.{hint} Expected a folder "
            "that model.save(dir) has written."
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise SaveLoadError(
            f"{str(path)!r} is damaged: {error}. Take another copy, or save the model again."
        ) from error
    if not isinstance(description, dict) or description.get("format_name") != "pyrovi-model":
        raise SaveLoadError(
            f"{str(path)!r} is not the description of a pyrovi model: its format_name is not "
            "'pyrovi-model'. Expected a folder that model.save(dir) has written."
        )
    _check_format(description, path)
    for name, kind in _PARTS.items():
        if name not in description:
            raise SaveLoadError(
                f"{str(path)!r} is damaged: it lacks {name!r}. Take another copy, or save the "
                "model again."
            )
        if not isinstance(description[name], kind):
            raise SaveLoadError(
                f"{str(path)!r} is damaged: {name!r} is {str(description[name])[:80]!r}, a "
                f"{type(description[name]).__name__}. Take another copy, or save the model again."
            )
    return description


def _check_format(description: Mapping[str, Any], path: Path) -> None:
    found = description.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise SaveLoadError(
            f"{str(path)!r} is damaged: its format is {found!r}, expected a number from 1 to "
            f"{FORMAT}. Take another copy, or save the model again."
        )
    if found > FORMAT:
        versions = description.get("versions")
        writer = versions.get("pyrovi") if isinstance(versions, dict) else None
        raise SaveLoadError(
            f"{str(path)!r} has format {found} (written by pyrovi {writer}); this pyrovi reads up "
            f"to {FORMAT}. Update pyrovi."
        )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved model.

    Raises
    ------
    SaveLoadError
        If the file is missing or damaged, or something else (it is never unpickled).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / TENSOR_FILE
    if not path.is_file():
        raise SaveLoadError(
            f"{str(folder)!r} is incomplete: it has no {path.name}. Take another copy, or save the "
            "model again."
        )
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise SaveLoadError(
            f"{str(path)!r} is damaged or no tensor file: {error}. It was not unpickled. Take "
            "another copy, or save the model again."
        ) from error


def read_data(folder: Path) -> Any:
    """The data saved with a model; ``None`` if there are none.

    Raises
    ------
    SaveLoadError
        If the file is damaged.
    """
    files = [folder / name for name in DATA_FILES]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return None
    if path == files[0]:
        from anndata import read_h5ad as read
    else:
        from pyrovi._lazy import require

        read = require("mudata", "mudata").read_h5mu
    try:
        return read(path)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise SaveLoadError(
            f"{str(path)!r} is damaged: {error}. Load the model with other data (adata=), or "
            "without any (adata=False)."
        ) from error
