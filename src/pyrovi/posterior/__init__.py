"""The posterior engine: draws of sites, streamed, reduced and labelled."""

from __future__ import annotations

from pyrovi.posterior.engine import posterior_query, prior_query, run_query
from pyrovi.posterior.globals import draw_globals
from pyrovi.posterior.reduce import Reduction
from pyrovi.posterior.vectorise import map_draws

__all__ = [
    "Reduction",
    "draw_globals",
    "map_draws",
    "posterior_query",
    "prior_query",
    "run_query",
]
