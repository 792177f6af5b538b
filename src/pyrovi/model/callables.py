"""Functions among the arguments of a model: saved by name, found only if the caller knows them.

No file can make pyrovi import or call anything: a function is taken from those that have been given
to a model in this process, or passed to ``load``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn

from pyrovi.errors import SaveLoadError

_KNOWN: dict[str, Callable[..., Any]] = {}


def qualified_name(function: Callable[..., Any]) -> str:
    """``module.name`` of a function or class; of anything else, its class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def remember(function: Callable[..., Any]) -> None:
    """Let a function be found by its name when a model is loaded.

    Functions made within others have no name of their own and are not remembered.
    """
    name = qualified_name(function)
    if hasattr(function, "__qualname__") and "<" not in name:
        _KNOWN[name] = function


def is_function(value: Any) -> bool:
    """Whether a value is a story or a guide: a function, a module, or a class of guides."""
    is_guide = isinstance(value, type) and issubclass(value, nn.Module)
    return is_guide or isinstance(value, (FunctionType, functools.partial, nn.Module))


def recall(name: str) -> Callable[..., Any]:
    """The function of this name.

    Raises
    ------
    SaveLoadError
        If none has been given to a model in this process.
    """
    import pyro.infer.autoguide as autoguides

    module, _, last = name.rpartition(".")
    if module.startswith("pyro.infer.autoguide"):
        guide = getattr(autoguides, last, None)
        if isinstance(guide, type) and issubclass(guide, autoguides.AutoGuide):
            return guide
    if name not in _KNOWN:
        raise SaveLoadError(
            f"The model was made with the function {name!r}, and pyrovi runs no code that a file "
            "names. Define it, and pass it again: pv.load(dir, data, story=my_story) (or guide=)."
        )
    return _KNOWN[name]
