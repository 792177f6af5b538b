"""The report's account of the posterior, and of what it rests on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pyrovi.criticism.diagnose_rows import Check, graded, unavailable
from pyrovi.criticism.prior_sensitivity import Sensitivity, sensitivity
from pyrovi.criticism.report_blocks import Block, Image, Section, Table
from pyrovi.criticism.report_figures import plot_forest
from pyrovi.criticism.report_subject import BUDGET, Refusal, Subject, attempt
from pyrovi.posterior.pareto import khat_threshold

if TYPE_CHECKING:
    import pandas as pd

_FOREST_ROWS = 30
_SENSITIVITY = "quantities with prior-data conflict, or a strong prior and weak likelihood"
_SENSITIVITY_DRAWS = 1_000

_CONSTANT = 1e-6
"""Relative spread up to which a number is a constant, but for rounding."""


def posterior_section(subject: Subject) -> Section:
    """Summary of the global sites, and a forest plot."""
    if not subject.has_globals:
        return Section(
            "Posterior",
            [
                "The model has no global latent sites, so there is no table of them. Local latents "
                "are queried by model.sample_posterior(...)."
            ],
        )
    table = subject.global_summary
    shown = most_telling(table, subject.max_rows)
    note = ""
    if len(shown) < len(table):
        note = (
            f" {len(shown)} of {len(table):,} numbers: of each site those farthest from 0 in "
            "standard deviations; model.summary() has all."
        )
    forest = (
        shown.head(_FOREST_ROWS)
        if len(shown) == len(table)
        else most_telling(table, min(_FOREST_ROWS, subject.max_rows))
    )
    blocks: list[Block] = [
        Table(
            _for_the_eye(shown),
            "Posterior of the global sites: mean, standard deviation, 94 % interval, Monte-Carlo "
            "errors, effective sample sizes and R-hat." + note,
        ),
        Image(
            plot_forest(forest).figure,
            "Means (points), standard deviations (thick) and 94 % intervals (thin); colours are "
            "sites." + (f" The first {len(forest)} numbers." if len(forest) < len(shown) else ""),
            "Points with intervals, one line for each number.",
        ),
    ]
    return Section("Posterior", blocks, values={"posterior": shown.to_dict(orient="index")})


def _for_the_eye(table: pd.DataFrame) -> pd.DataFrame:
    """The table without digits that say nothing."""
    whole = {name: table[name].round().astype("Int64") for name in ("ess_bulk", "ess_tail")}
    return table.assign(**whole, r_hat=table["r_hat"].round(3))


def most_telling(table: pd.DataFrame, rows: int) -> pd.DataFrame:
    """A share of rows for each site, those farthest from 0 in standard deviations.

    Parameters
    ----------
    table
        Result of ``model.summary()``.
    rows
        Most rows to keep; small sites are kept as a whole, in the order of the table.
    """
    if len(table) <= rows:
        return table
    sites = np.array([str(name).partition("[")[0] for name in table.index])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = table["mean"].to_numpy() / table["sd"].to_numpy()
        distance = np.nan_to_num(np.abs(ratio), posinf=np.inf)
    names, sizes = np.unique(sites, return_counts=True)
    kept: list[int] = []
    left = rows
    for position, site in enumerate(names[np.argsort(sizes, kind="stable")]):
        own = np.flatnonzero(sites == site)
        share = min(len(own), max(1, left // (len(names) - position)))
        kept += list(own[np.argsort(-distance[own], kind="stable")[:share]])
        left -= share
    return table.iloc[sorted(kept)]


def sensitivity_section(subject: Subject) -> Section:
    """Power-scaling of the top-level priors and of the likelihood."""
    found = attempt(lambda: _sensitivity(subject))
    title = "Sensitivity to priors"
    if isinstance(found, Refusal):
        return Section(title, [found.text], [found.check(_SENSITIVITY)])
    marked = found.table[found.table["diagnosis"] != ""]
    blocks: list[Block] = [
        f"Power-scaling of the priors of {', '.join(found.priors)} and of the likelihood, by "
        f"importance weights of {found.num_draws} draws. Sensitivities above "
        f"{found.threshold:g} matter.",
        Image(
            found.plot().figure,
            "How far the posterior of each number moves when prior or likelihood count a little "
            "more or less.",
            "Two points for each number, with the limit.",
        ),
    ]
    if len(marked):
        shown = marked.head(subject.max_rows)
        more = "" if len(shown) == len(marked) else f" The first {len(shown)} of {len(marked)}."
        blocks.insert(1, Table(shown, "Numbers that need a look." + more))
    values = {
        "priors": list(found.priors),
        "khat": found.khat,
        "reliable": found.reliable,
        "marked": marked.to_dict(orient="index"),
    }
    return Section(title, blocks, _sensitivity_checks(found), {"sensitivity": values})


def _sensitivity(subject: Subject) -> Sensitivity | Refusal:
    model = subject.model
    if subject.improper:
        return Refusal(
            f"the prior of {', '.join(subject.improper)} is improper, so there is no density to "
            "count more or less."
        )
    draws, inner = subject.draws(_SENSITIVITY_DRAWS)
    n = len(model.train_indices) if model.train_indices is not None else model.adata_manager.n_obs
    if subject.has_globals and subject.affordable(draws * inner, n) < n:
        return Refusal(
            f"the likelihood of {n:,} observations under {draws * inner:,} draws each is more than "
            f"this report computes ({BUDGET:.0e} values). Call "
            "pyrovi.criticism.sensitivity(model), which takes as long as it needs."
        )
    found = sensitivity(model, num_samples=draws, num_inner=inner, seed=subject.seed)
    return _without_constants(found, subject.global_summary)


def _without_constants(found: Sensitivity, posterior: pd.DataFrame) -> Sensitivity:
    """Without numbers that are the same in every draw, e.g. corners of a Cholesky factor."""
    spread = posterior["sd"] > _CONSTANT * posterior["mean"].abs().clip(lower=1)
    moving = found.table.index.isin(posterior.index[spread])
    return replace(found, table=found.table[moving], by_prior=found.by_prior[moving])


def _sensitivity_checks(found: Sensitivity) -> list[Check]:
    number = int((found.table["diagnosis"] != "").sum())
    if not found.reliable:
        return [
            unavailable(
                _SENSITIVITY,
                f"The importance weights are poor (k-hat {max(found.khat.values()):.2f}, limit "
                f"{khat_threshold(found.num_draws):.2f}): take more draws.",
            )
        ]
    advice = (
        "Look at these priors: whether they say what is known, and what the conclusions would be "
        "under others."
    )
    detail = f"{number} of {len(found.table)}"
    # strong priors may be meant: this is for a person to judge
    return [graded(_SENSITIVITY, float(number), (0, np.inf), advice, detail=detail)]
