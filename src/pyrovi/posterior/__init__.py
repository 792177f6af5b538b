"""The posterior engine: draws of sites, streamed, reduced and labelled."""

from __future__ import annotations

from pyrovi.posterior.alignment import align, invariant
from pyrovi.posterior.convergence import (
    convergence_statistics,
    ebfmi,
    ess_bulk,
    ess_mean,
    ess_tail,
    mcse_mean,
    mcse_quantile,
    mcse_sd,
    rhat,
)
from pyrovi.posterior.ecdf import EcdfBands, Uniformity, ecdf_bands, ecdf_values, uniformity
from pyrovi.posterior.engine import posterior_query, prior_query, run_query
from pyrovi.posterior.globals import draw_globals
from pyrovi.posterior.pareto import importance_ess, khat_threshold, psis
from pyrovi.posterior.reduce import Reduction
from pyrovi.posterior.vectorise import map_draws

__all__ = [
    "EcdfBands",
    "Reduction",
    "Uniformity",
    "align",
    "convergence_statistics",
    "draw_globals",
    "ebfmi",
    "ecdf_bands",
    "ecdf_values",
    "ess_bulk",
    "ess_mean",
    "ess_tail",
    "importance_ess",
    "invariant",
    "khat_threshold",
    "map_draws",
    "mcse_mean",
    "mcse_quantile",
    "mcse_sd",
    "posterior_query",
    "prior_query",
    "psis",
    "rhat",
    "run_query",
    "uniformity",
]
