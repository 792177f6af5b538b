"""Criticism: how well a fitted model describes its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrovi._lazy import lazy_attributes

if TYPE_CHECKING:
    from pyrovi.criticism.bounds import evidence_bounds
    from pyrovi.criticism.calibration import SBC, Calibration, LooPit, encoder_sbc, loo_pit, sbc
    from pyrovi.criticism.comparison import compare
    from pyrovi.criticism.count_thinning import thinned_density, thinning
    from pyrovi.criticism.decisions import decide
    from pyrovi.criticism.diagnose_rows import Check
    from pyrovi.criticism.diagnosis import Diagnosis, diagnose
    from pyrovi.criticism.document import (
        Callout,
        Code,
        Diagram,
        Document,
        Folded,
        Image,
        Section,
        Table,
    )
    from pyrovi.criticism.elbo_plot import plot_elbo
    from pyrovi.criticism.elpd import Elpd
    from pyrovi.criticism.held_out_density import cross_validate, held_out, make_folds
    from pyrovi.criticism.leave_one_out import LOO, loo
    from pyrovi.criticism.model_report import report
    from pyrovi.criticism.parameter_recovery import Recovery, recovery
    from pyrovi.criticism.pit import PredictivePIT, predictive_pit
    from pyrovi.criticism.pit_plot import plot_pit
    from pyrovi.criticism.predictive import PredictiveChecks, posterior_predictive_checks
    from pyrovi.criticism.predictive_plots import (
        plot_mean_variance,
        plot_totals,
        plot_zero_fraction,
    )
    from pyrovi.criticism.prior_sensitivity import Sensitivity, sensitivity
    from pyrovi.criticism.quantiles import Quantiles
    from pyrovi.criticism.recovery_plot import plot_recovery
    from pyrovi.criticism.stacking import stacking_weights
    from pyrovi.criticism.statistic_plots import plot_dropout, plot_rootogram, plot_statistic
    from pyrovi.criticism.statistics import CheckedData, Dropout, Frequencies, Statistic, Summary
    from pyrovi.criticism.thinned_counts import thin_counts

__all__ = [
    "LOO",
    "SBC",
    "Calibration",
    "Callout",
    "Check",
    "CheckedData",
    "Code",
    "Diagnosis",
    "Diagram",
    "Document",
    "Dropout",
    "Elpd",
    "Folded",
    "Frequencies",
    "Image",
    "LooPit",
    "PredictiveChecks",
    "PredictivePIT",
    "Quantiles",
    "Recovery",
    "Section",
    "Sensitivity",
    "Statistic",
    "Summary",
    "Table",
    "compare",
    "cross_validate",
    "decide",
    "diagnose",
    "encoder_sbc",
    "evidence_bounds",
    "held_out",
    "loo",
    "loo_pit",
    "make_folds",
    "plot_dropout",
    "plot_elbo",
    "plot_mean_variance",
    "plot_pit",
    "plot_recovery",
    "plot_rootogram",
    "plot_statistic",
    "plot_totals",
    "plot_zero_fraction",
    "posterior_predictive_checks",
    "predictive_pit",
    "recovery",
    "report",
    "sbc",
    "sensitivity",
    "stacking_weights",
    "thin_counts",
    "thinned_density",
    "thinning",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "Calibration": "pyrovi.criticism.calibration",
        "Callout": "pyrovi.criticism.document",
        "Check": "pyrovi.criticism.diagnose_rows",
        "CheckedData": "pyrovi.criticism.statistics",
        "Code": "pyrovi.criticism.document",
        "Diagnosis": "pyrovi.criticism.diagnosis",
        "Diagram": "pyrovi.criticism.document",
        "Document": "pyrovi.criticism.document",
        "Dropout": "pyrovi.criticism.statistics",
        "Elpd": "pyrovi.criticism.elpd",
        "Folded": "pyrovi.criticism.document",
        "Frequencies": "pyrovi.criticism.statistics",
        "Image": "pyrovi.criticism.document",
        "LOO": "pyrovi.criticism.leave_one_out",
        "LooPit": "pyrovi.criticism.calibration",
        "PredictiveChecks": "pyrovi.criticism.predictive",
        "PredictivePIT": "pyrovi.criticism.pit",
        "Quantiles": "pyrovi.criticism.quantiles",
        "Recovery": "pyrovi.criticism.parameter_recovery",
        "SBC": "pyrovi.criticism.calibration",
        "Section": "pyrovi.criticism.document",
        "Sensitivity": "pyrovi.criticism.prior_sensitivity",
        "Statistic": "pyrovi.criticism.statistics",
        "Summary": "pyrovi.criticism.statistics",
        "Table": "pyrovi.criticism.document",
        "compare": "pyrovi.criticism.comparison",
        "cross_validate": "pyrovi.criticism.held_out_density",
        "decide": "pyrovi.criticism.decisions",
        "diagnose": "pyrovi.criticism.diagnosis",
        "encoder_sbc": "pyrovi.criticism.calibration",
        "evidence_bounds": "pyrovi.criticism.bounds",
        "held_out": "pyrovi.criticism.held_out_density",
        "loo": "pyrovi.criticism.leave_one_out",
        "loo_pit": "pyrovi.criticism.calibration",
        "make_folds": "pyrovi.criticism.held_out_density",
        "plot_dropout": "pyrovi.criticism.statistic_plots",
        "plot_elbo": "pyrovi.criticism.elbo_plot",
        "plot_mean_variance": "pyrovi.criticism.predictive_plots",
        "plot_pit": "pyrovi.criticism.pit_plot",
        "plot_recovery": "pyrovi.criticism.recovery_plot",
        "plot_rootogram": "pyrovi.criticism.statistic_plots",
        "plot_statistic": "pyrovi.criticism.statistic_plots",
        "plot_totals": "pyrovi.criticism.predictive_plots",
        "plot_zero_fraction": "pyrovi.criticism.predictive_plots",
        "posterior_predictive_checks": "pyrovi.criticism.predictive",
        "predictive_pit": "pyrovi.criticism.pit",
        "recovery": "pyrovi.criticism.parameter_recovery",
        "report": "pyrovi.criticism.model_report",
        "sbc": "pyrovi.criticism.calibration",
        "sensitivity": "pyrovi.criticism.prior_sensitivity",
        "stacking_weights": "pyrovi.criticism.stacking",
        "thin_counts": "pyrovi.criticism.thinned_counts",
        "thinned_density": "pyrovi.criticism.count_thinning",
        "thinning": "pyrovi.criticism.count_thinning",
    },
)
