"""Model classes and their arguments, as the command line names them."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovi.errors import ModelError

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


def model_class(name: str) -> type[BaseModelClass]:
    """The class of a name: one of pyrovi's, or ``module:Class``.

    Raises
    ------
    ModelError
        If there is none.
    """
    import pyrovi.model
    from pyrovi.model.base import BaseModelClass

    module, colon, attribute = name.rpartition(":")
    if colon:
        found = getattr(import_module(module), attribute, None)
    else:
        found = getattr(pyrovi.model, name) if name in pyrovi.model.__all__ else None
    if not inspect.isclass(found) or not issubclass(found, BaseModelClass):
        raise ModelError(
            f"There is no model class {name!r}. pyrovi has: {', '.join(known_models())}; one of "
            "your own is named as module:Class, e.g. my_models:Factors."
        )
    return found


def known_models(having: str = "") -> list[str]:
    """Names of the model classes that come with pyrovi: all, or those that have a method."""
    import pyrovi.model
    from pyrovi.model.base import BaseModelClass

    public = {name: getattr(pyrovi.model, name) for name in pyrovi.model.__all__}
    return [
        name
        for name, value in public.items()
        if inspect.isclass(value)
        and issubclass(value, BaseModelClass)
        and not inspect.isabstract(value)
        and (not having or hasattr(value, having))
    ]


def import_module(name: str) -> Any:
    """Import a module of the user's, looked for in the working directory as well.

    Raises
    ------
    ModelError
        If there is none.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"There is no module {name!r}: {error}. Run the command in its folder, or install it."
        ) from error


def accepted(function: Any, arguments: Mapping[str, Any], what: str, option: str) -> dict[str, Any]:
    """The arguments that were given, if the function takes them and needs no others.

    Parameters
    ----------
    function
        A method or class.
    arguments
        Name -> value; ``None`` and empty lists are not given.
    what
        How to call the function in the error.
    option
        Option of the command line that gives further arguments.

    Raises
    ------
    ModelError
        If it does not take one, or one that it needs is not given. What the command itself passes,
        ``self`` and the data, comes first and is needed by all of them.
    """
    given = {name: value for name, value in arguments.items() if value not in (None, [])}
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_any and (unknown := [name for name in given if name not in parameters]):
        options = ", ".join(name for name in parameters if name not in ("adata", "registry"))
        raise ModelError(
            f"{what} does not take {', '.join(map(repr, unknown))}; it takes: {options}."
        )
    optional = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    others = list(parameters.values())[1 + ("self" in parameters) :]
    needed = [p.name for p in others if p.default is p.empty and p.kind not in optional]
    if missing := [name for name in needed if name not in given]:
        example = " ".join(f"{option} {name}=..." for name in missing)
        raise ModelError(f"{what} needs {', '.join(map(repr, missing))}; give it: {example}")
    return given


def setup_method(cls: Any, data: Path) -> Any:
    """The method that sets up the data of a file: ``setup_mudata`` for a MuData, if it has one.

    Parameters
    ----------
    cls
        A model class.
    data
        The file.
    """
    is_mudata = data.suffix == ".h5mu" and hasattr(cls, "setup_mudata")
    return cls.setup_mudata if is_mudata else cls.setup_anndata


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """``["n_layers=2", "gene_likelihood=nb"]`` as a dictionary; values are JSON or else strings.

    Raises
    ------
    ModelError
        If an entry has no equals sign.
    """
    parsed: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ModelError(f"An argument is given as name=value, e.g. n_layers=2; got {pair!r}.")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed
