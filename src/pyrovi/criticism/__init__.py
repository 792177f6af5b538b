"""Criticism: how well a fitted model describes its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrovi._lazy import lazy_attributes

if TYPE_CHECKING:
    from pyrovi.criticism.bounds import evidence_bounds
    from pyrovi.criticism.document import Document, Image, Section, Table
    from pyrovi.criticism.elbo_plot import plot_elbo
    from pyrovi.criticism.model_report import report
    from pyrovi.criticism.predictive import PredictiveChecks, posterior_predictive_checks
    from pyrovi.criticism.predictive_plots import (
        plot_mean_variance,
        plot_totals,
        plot_zero_fraction,
    )

__all__ = [
    "Document",
    "Image",
    "PredictiveChecks",
    "Section",
    "Table",
    "evidence_bounds",
    "plot_elbo",
    "plot_mean_variance",
    "plot_totals",
    "plot_zero_fraction",
    "posterior_predictive_checks",
    "report",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "Document": "pyrovi.criticism.document",
        "Image": "pyrovi.criticism.document",
        "PredictiveChecks": "pyrovi.criticism.predictive",
        "Section": "pyrovi.criticism.document",
        "Table": "pyrovi.criticism.document",
        "evidence_bounds": "pyrovi.criticism.bounds",
        "plot_elbo": "pyrovi.criticism.elbo_plot",
        "plot_mean_variance": "pyrovi.criticism.predictive_plots",
        "plot_totals": "pyrovi.criticism.predictive_plots",
        "plot_zero_fraction": "pyrovi.criticism.predictive_plots",
        "posterior_predictive_checks": "pyrovi.criticism.predictive",
        "report": "pyrovi.criticism.model_report",
    },
)
