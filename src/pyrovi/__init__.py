"""pyrovi: Pyro-first probabilistic programming for annotated data matrices."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from pyrovi._constants import REGISTRY_KEYS
from pyrovi._lazy import lazy_attributes
from pyrovi._settings import settings

if TYPE_CHECKING:
    from pyrovi import (
        criticism,
        data,
        dataloaders,
        distributions,
        errors,
        fields,
        model,
        module,
        nn,
        posterior,
        train,
    )
    from pyrovi.model.custom import from_pyro
    from pyrovi.model.persistence import load_any as load
    from pyrovi.module.plates import obs_plate, plate

__version__ = version("pyrovi")

__all__ = [
    "REGISTRY_KEYS",
    "criticism",
    "data",
    "dataloaders",
    "distributions",
    "errors",
    "fields",
    "from_pyro",
    "load",
    "model",
    "module",
    "nn",
    "obs_plate",
    "plate",
    "posterior",
    "settings",
    "train",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        **dict.fromkeys(
            (
                "criticism",
                "data",
                "dataloaders",
                "distributions",
                "errors",
                "fields",
                "model",
                "module",
                "nn",
                "posterior",
                "train",
            ),
            "",
        ),
        "from_pyro": "pyrovi.model.custom",
        "load": "pyrovi.model.persistence:load_any",
        "obs_plate": "pyrovi.module.plates",
        "plate": "pyrovi.module.plates",
    },
)
