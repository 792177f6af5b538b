"""The report on a model: its verdicts, what they rest on, and how it was made, in one page."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovi.criticism.document import Document, page_path
from pyrovi.criticism.elpd import has_observations
from pyrovi.criticism.report_blocks import Section
from pyrovi.criticism.report_calibration import calibration_section, comparison_section
from pyrovi.criticism.report_data import data_section, reproducibility_section
from pyrovi.criticism.report_headline import headline_section
from pyrovi.criticism.report_inference import diagnostics_section, inference_section
from pyrovi.criticism.report_model import model_section
from pyrovi.criticism.report_posterior import posterior_section, sensitivity_section
from pyrovi.criticism.report_predictive import predictive_section
from pyrovi.criticism.report_subject import Refusal, Subject, attempt
from pyrovi.errors import ModelError
from pyrovi.posterior.alignment import Symmetry

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.criticism.calibration.refits import SBC
    from pyrovi.criticism.predictive import PredictiveChecks
    from pyrovi.model.base import BaseModelClass

SECTIONS: dict[str, Callable[[Subject], Section]] = {
    "model": model_section,
    "data": data_section,
    "inference": inference_section,
    "diagnostics": diagnostics_section,
    "posterior": posterior_section,
    "predictive": predictive_section,
    "calibration": calibration_section,
    "comparison": comparison_section,
    "sensitivity": sensitivity_section,
    "reproducibility": reproducibility_section,
}
"""Name -> function that makes the section, in the order of the page."""

_OWN_AFTER = "posterior"


def report(
    model: BaseModelClass,
    path: str | Path,
    *,
    title: str | None = None,
    sections: Sequence[str | Section] | None = None,
    values: Mapping[str, Any] | None = None,
    bounds: pd.DataFrame | None = None,
    checks: PredictiveChecks | None = None,
    sbc: SBC | None = None,
    align: Mapping[str, Symmetry] | None = None,
    num_samples: int = 100,
    indices: Any = None,
    max_observations: int = 1_000,
    max_rows: int = 40,
    seed: int | None = None,
) -> Path:
    """Write a report on a fitted model: one HTML page that loads nothing, and its JSON twin.

    It begins with the verdicts: what passed, what failed, and what to do. Then come the model
    (graph, sites, priors, source code), the data, inference, diagnostics, the posterior, predictive
    checks, calibration, the prediction of observations left out, sensitivity to priors, and what it
    takes to make the same again. What does not apply to a model says why in a line. All that costs
    something works on a bounded, seeded sample of the observations, so that a report of some
    thousand observations and variables takes minutes.

    Parameters
    ----------
    model
        A trained model with its data.
    path
        Name of the page, ``*.html``; the same content goes to ``*.json`` for programs: ``passed``,
        ``checks`` (each with ``section``, ``check``, ``value``, ``threshold``, ``verdict``,
        ``advice``, ``detail``), ``values`` and the text.
    title
        Heading.
    sections
        Names of the sections to make (see :data:`SECTIONS`), and sections of one's own, which are
        shown after the posterior and may have checks. Without a name, all are made.
    values
        Numbers of one's own for the JSON twin.
    bounds, checks, sbc
        Results of :func:`evidence_bounds`, :func:`posterior_predictive_checks` and :func:`sbc`, if
        they have been made already. SBC refits the model many times, so it is never made here.
    align
        Symmetries of factors, as in :func:`diagnose`.
    num_samples
        Number of replicated data sets of the predictive checks.
    indices
        Observations that predictive checks, calibration and comparison look at; ``None`` for all.
    max_observations
        Most of them that are looked at, a seeded sample; fewer where they have many variables.
    max_rows
        Most rows of the table of the posterior.
    seed
        Root seed of the draws; ``None`` for ``settings.seed``.

    Returns
    -------
    Path
        Where the page is.

    Raises
    ------
    ModelError
        If the model has not been trained, a section is unknown, or a number is too small.
    SaveLoadError
        If the name does not end in ``.html``, or the files cannot be written.

    References
    ----------
    Kruschke: Bayesian analysis reporting guidelines. Nature Human Behaviour 5, 1282-1291 (2021).

    Examples
    --------
    >>> page = pv.criticism.report(model, "report.html")
    >>> assert json.loads(page.with_suffix(".json").read_text())["passed"]
    """
    page = page_path(path)
    _check(model, max_observations, max_rows)
    names, own = _chosen(sections)
    subject = Subject(
        model=model,
        num_samples=num_samples,
        indices=indices,
        max_observations=max_observations,
        max_rows=max_rows,
        align=align,
        seed=seed,
        bounds=bounds,
        checks=checks,
        sbc=sbc,
        sections=names,
    )
    made: list[Section] = []
    for name, make in SECTIONS.items():
        if name in names:
            made.append(_made(name, make, subject))
        if name == _OWN_AFTER:
            made += own
    sizes = _size(model)
    if "n_vars" in model.summary_stats:
        sizes += f", {model.summary_stats.n_vars:,} variables"
    now = f"{datetime.datetime.now(datetime.UTC):%d %B %Y, %H:%M} UTC"
    document = Document(
        title or f"{type(model).__name__}: report on the fit",
        f"{sizes} · {now} · pyrovi {version('pyrovi')}",
        [headline_section(made), *made],
        dict(values or {}),
    )
    return document.write(page)


def _made(name: str, make: Callable[[Subject], Section], subject: Subject) -> Section:
    """A section, or why the model has none: what one section cannot say is no loss to others."""
    found = attempt(lambda: make(subject))
    if not isinstance(found, Refusal):
        return found
    title = name.capitalize()
    return Section(title, [found.text], [found.check(f"section {title}")])


def _size(model: BaseModelClass) -> str:
    if not has_observations(model):
        return "data without an observation plate"
    n = model.adata_manager.n_obs
    return f"{n:,} observation{'s' * (n != 1)}"


def _chosen(sections: Sequence[str | Section] | None) -> tuple[list[str], list[Section]]:
    """Names of the sections to make, and those that are there already."""
    given = [sections] if isinstance(sections, str) else list(sections or ())
    names = [entry for entry in given if isinstance(entry, str)]
    own = [entry for entry in given if isinstance(entry, Section)]
    if len(names) + len(own) < len(given):
        wrong = next(entry for entry in given if not isinstance(entry, str | Section))
        raise ModelError(
            f"sections holds {wrong!r} ({type(wrong).__name__}). Expected names of sections, or "
            "sections of your own: pyrovi.criticism.Section('Title', ['text', ...])."
        )
    if unknown := [name for name in names if name not in SECTIONS]:
        raise ModelError(
            f"The report has no section {unknown[0]!r}; its sections are: {', '.join(SECTIONS)}."
        )
    return names or list(SECTIONS), own


def _check(model: BaseModelClass, max_observations: int, max_rows: int) -> None:
    if not model.is_trained:
        raise ModelError("The model has not been trained; call model.train() first.")
    for name, least, value in (
        ("max_observations", 20, max_observations),
        ("max_rows", 1, max_rows),
    ):
        if value < least:
            raise ModelError(f"{name} must be at least {least}, got {value}.")
