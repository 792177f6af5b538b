"""Whatever is public is documented; an override may inherit its docstring."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

import pyrovi

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(pyrovi.__path__, prefix="pyrovi.")
    if not any(part.startswith("_") for part in name.split("."))
]


def public_callables(module_name: str) -> Iterator[tuple[str, object]]:
    """Functions, classes and their methods and properties that a module defines."""
    for name, value in vars(importlib.import_module(module_name)).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module_name:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value
        if inspect.isclass(value):
            for member in vars(value):
                attribute = getattr(value, member)
                if not member.startswith("_") and (
                    inspect.isroutine(attribute) or isinstance(attribute, property)
                ):
                    yield f"{name}.{member}", attribute


@pytest.mark.parametrize("module_name", MODULES)
def test_public_names_have_docstrings(module_name: str) -> None:
    missing = [name for name, value in public_callables(module_name) if not inspect.getdoc(value)]
    assert not missing, f"{module_name}: without a docstring: {', '.join(missing)}"
