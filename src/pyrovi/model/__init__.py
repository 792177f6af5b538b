"""Models: what a user holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrovi._lazy import lazy_attributes

if TYPE_CHECKING:
    from pyrovi.model.amortizedlda import AmortizedLDA
    from pyrovi.model.base import BaseModelClass
    from pyrovi.model.cellassign import CellAssign
    from pyrovi.model.custom import PyroModel
    from pyrovi.model.elbo_estimate import ElboEstimate
    from pyrovi.model.factor_analysis import PPCA, FactorAnalysis
    from pyrovi.model.graph import ModelGraph
    from pyrovi.model.hierarchical_glm import HierarchicalGLM
    from pyrovi.model.linearscvi import LinearSCVI
    from pyrovi.model.persistence import load_any
    from pyrovi.model.scanvi import SCANVI
    from pyrovi.model.scvi import SCVI
    from pyrovi.model.totalvi import TOTALVI
    from pyrovi.model.truth import truth_of

__all__ = [
    "PPCA",
    "SCANVI",
    "SCVI",
    "TOTALVI",
    "AmortizedLDA",
    "BaseModelClass",
    "CellAssign",
    "ElboEstimate",
    "FactorAnalysis",
    "HierarchicalGLM",
    "LinearSCVI",
    "ModelGraph",
    "PyroModel",
    "load_any",
    "truth_of",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "AmortizedLDA": "pyrovi.model.amortizedlda",
        "BaseModelClass": "pyrovi.model.base",
        "CellAssign": "pyrovi.model.cellassign",
        "ElboEstimate": "pyrovi.model.elbo_estimate",
        "FactorAnalysis": "pyrovi.model.factor_analysis",
        "HierarchicalGLM": "pyrovi.model.hierarchical_glm",
        "LinearSCVI": "pyrovi.model.linearscvi",
        "ModelGraph": "pyrovi.model.graph",
        "PPCA": "pyrovi.model.factor_analysis",
        "PyroModel": "pyrovi.model.custom",
        "SCANVI": "pyrovi.model.scanvi",
        "SCVI": "pyrovi.model.scvi",
        "TOTALVI": "pyrovi.model.totalvi",
        "load_any": "pyrovi.model.persistence",
        "truth_of": "pyrovi.model.truth",
    },
)
