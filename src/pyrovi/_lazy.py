"""Import on first use: optional dependencies and lazily loaded public names."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from pyrovi.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Parameters
    ----------
    module
        Dotted module name.
    extra
        The extra of the distribution that installs it.

    Raises
    ------
    MissingExtraError
        If the module is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"This needs the optional package {module.split('.')[0]!r}, which is not installed. "
            f"Install it with: pip install 'pyrovi[{extra}]'"
        ) from error


def lazy_attributes(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package whose public names load on first use.

    Parameters
    ----------
    package
        ``__name__`` of the package.
    names
        Public name -> where it is: a module that defines the same name, ``"module:name"`` for
        another name, or an empty string if the public name is itself a submodule.
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        source = names[name]
        if not source:
            return importlib.import_module(f"{package}.{name}")
        module, _, attribute = source.partition(":")
        return getattr(importlib.import_module(module), attribute or name)

    def __dir__() -> list[str]:
        return sorted(names)

    return __getattr__, __dir__
