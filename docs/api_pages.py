"""Write one API page for each package of the list below, from its public names.

A package that is listed but not part of the distribution gets no page, and a public name needs no
entry anywhere else than in its package.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

OBJECTS = "objects"
"""Folder, below that of the pages, where autosummary writes one page for each name."""

PACKAGES = {
    "pyrovi": "Top level",
    "pyrovi.fields": "Pieces of data",
    "pyrovi.data": "Data",
    "pyrovi.data.fields": "Fields",
    "pyrovi.dataloaders": "Data loaders",
    "pyrovi.distributions": "Distributions",
    "pyrovi.nn": "Neural networks",
    "pyrovi.module": "Modules",
    "pyrovi.module.guides": "Guides by name",
    "pyrovi.train": "Training",
    "pyrovi.posterior": "Posterior",
    "pyrovi.model": "Models",
    "pyrovi.model.start": "Options of a start from Pathfinder",
    "pyrovi.model.mcmc": "Options of NUTS",
    "pyrovi.model.paths": "Options of Pathfinder",
    "pyrovi.model.modes": "Options of Laplace and MAP",
    "pyrovi.criticism": "Criticism",
    "pyrovi.autotune": "Tuning",
    "pyrovi.hub": "Sharing",
    "pyrovi.errors": "Errors",
}


def write(folder: Path) -> list[Path]:
    """Write the pages and their table of contents into ``folder``; remove what is out of date.

    Returns
    -------
    list of Path
        The pages.
    """
    members: dict[str, list[str]] = {}
    shown: set[type] = set()
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            continue
        module = importlib.import_module(package)
        # A class with two pages would be described twice under its one full name.
        members[package] = [
            n for n in public_names(module) if not _is_in(getattr(module, n), shown)
        ]
        shown |= {v for n in members[package] if isinstance(v := getattr(module, n), type)}
    files = {
        folder / f"{package}.md": _page(package, PACKAGES[package], names)
        for package, names in members.items()
    }
    # Not a page: docs/api/index.md includes it. A glob would sort the packages by name.
    toctree = [f"generated/{package}" for package in members]
    files[folder / "toctree.txt"] = "\n".join(
        ["```{toctree}", ":maxdepth: 1", "", *toctree, "```", ""]
    )

    objects = {
        folder / OBJECTS / f"{package}.{name}.rst"
        for package, names in members.items()
        for name in names
    }
    # Pages of names that are gone would be reported as part of no table of contents.
    for path in set(folder.rglob("*.*")) - set(files) - objects:
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        # An unchanged page keeps its time stamp, so that a second build reads only what changed.
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return [path for path in files if path.suffix == ".md"]


def public_names(module: ModuleType) -> list[str]:
    """Names that a module offers: ``__all__``, or else what it lists or defines; no modules."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name in dir(module)
            if not name.startswith("_") and _is_own(getattr(module, name), module.__name__)
        ]
    return sorted(
        name
        for name in names
        if not name.startswith("_") and not isinstance(getattr(module, name), ModuleType)
    )


def _is_own(value: object, package: str) -> bool:
    """Whether an object comes from a package or from below it: not a name imported from others."""
    origin = getattr(value, "__module__", None) or ""
    return origin == package or origin.startswith(f"{package}.")


def _is_in(value: object, shown: set[type]) -> bool:
    return isinstance(value, type) and value in shown


def _page(name: str, title: str, members: list[str]) -> str:
    lines = [f"# {title}", "", f"`{name}`", "", "```{eval-rst}"]
    lines += [f".. automodule:: {name}", "   :no-members:", ""]
    if members:
        lines += [f".. currentmodule:: {name}", "", ".. autosummary::"]
        lines += [f"   :toctree: {OBJECTS}", "   :nosignatures:", ""]
        lines += [f"   {member}" for member in members]
    return "\n".join([*lines, "```", ""])
