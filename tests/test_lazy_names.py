"""Lazily loaded public names: each exists, and none hides a submodule of its package."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import pyrovi

PACKAGES = [
    "pyrovi",
    *(
        info.name
        for info in pkgutil.walk_packages(pyrovi.__path__, "pyrovi.")
        if info.ispkg and not info.name.startswith("pyrovi.cli")
    ),
]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_name_is_that_of_a_submodule(package: str) -> None:
    """Importing the submodule would put it in the place of the function, for everyone.

    Which of the two ``package.name`` is would depend on what has been imported before.
    """
    module = importlib.import_module(package)
    submodules = {info.name for info in pkgutil.iter_modules(module.__path__)}
    for name in sorted(submodules & set(getattr(module, "__all__", []))):
        value = getattr(module, name)
        found = f"{package}.{name} is {value!r}, and a submodule has the same name"
        assert isinstance(value, ModuleType), found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists(package: str) -> None:
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", []):
        assert getattr(module, name) is not None


def test_names_mean_the_same_after_all_submodules_are_imported() -> None:
    code = (
        "import importlib, pkgutil, types\n"
        f"for package in {PACKAGES}:\n"
        "    here = importlib.import_module(package)\n"
        "    names = getattr(here, '__all__', [])\n"
        "    before = {name: getattr(here, name) for name in names}\n"
        "    for info in pkgutil.iter_modules(here.__path__):\n"
        "        if info.name not in ('__main__', 'cli'):\n"
        "            importlib.import_module(package + '.' + info.name)\n"
        "    for name in names:\n"
        "        assert getattr(here, name) is before[name], (package, name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
