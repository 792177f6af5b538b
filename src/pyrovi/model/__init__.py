"""Models: what a user holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrovi._lazy import lazy_attributes

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass
    from pyrovi.model.cellassign import CellAssign
    from pyrovi.model.custom import PyroModel
    from pyrovi.model.elbo_estimate import ElboEstimate
    from pyrovi.model.graph import ModelGraph
    from pyrovi.model.persistence import load_any
    from pyrovi.model.scvi import SCVI
    from pyrovi.model.truth import truth_of

__all__ = [
    "SCVI",
    "BaseModelClass",
    "CellAssign",
    "ElboEstimate",
    "ModelGraph",
    "PyroModel",
    "load_any",
    "truth_of",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "BaseModelClass": "pyrovi.model.base",
        "CellAssign": "pyrovi.model.cellassign",
        "ElboEstimate": "pyrovi.model.elbo_estimate",
        "ModelGraph": "pyrovi.model.graph",
        "PyroModel": "pyrovi.model.custom",
        "SCVI": "pyrovi.model.scvi",
        "load_any": "pyrovi.model.persistence",
        "truth_of": "pyrovi.model.truth",
    },
)
