"""The arguments a model was made with, noted so that it can be made again from a file."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from pyrovi.errors import SaveLoadError
from pyrovi.model.json_codec import encode

_DATA = ("adata", "mdata", "registry")


def constructor_arguments(model: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments of a model's ``__init__`` by name, defaults included and the data left out.

    Parameters
    ----------
    model
        The model, not initialised yet.
    args, kwargs
        What its class was called with.

    Raises
    ------
    TypeError
        If they do not fit the signature.
    """
    bound = inspect.signature(type(model).__init__).bind(model, *args, **kwargs)
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, parameter in list(bound.signature.parameters.items())[1:]:
        if name in _DATA:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(bound.arguments[name])
        else:
            arguments[name] = bound.arguments[name]
    _warn_if_not_savable(type(model).__name__, arguments)
    return arguments


def _warn_if_not_savable(model_name: str, arguments: dict[str, Any]) -> None:
    """Say before the training, not after it, that an argument cannot be written to a file."""
    for name, value in arguments.items():
        try:
            encode(value, f"argument {name!r}")
        except SaveLoadError as error:
            warnings.warn(f"This {model_name} cannot be saved: {error}", stacklevel=4)
