"""Models: what a user holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrovi._lazy import lazy_attributes

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass
    from pyrovi.model.persistence import load_any
    from pyrovi.model.scvi import SCVI

__all__ = ["SCVI", "BaseModelClass", "load_any"]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "BaseModelClass": "pyrovi.model.base",
        "SCVI": "pyrovi.model.scvi",
        "load_any": "pyrovi.model.persistence",
    },
)
