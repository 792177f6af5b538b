"""The report on a fitted model: its fit, its predictive checks, and how it was made."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._settings import settings
from pyrovi.criticism.bounds import evidence_bounds
from pyrovi.criticism.document import Document, Image, Section, Table, plain
from pyrovi.criticism.elbo_plot import plot_elbo
from pyrovi.criticism.predictive import PredictiveChecks, posterior_predictive_checks
from pyrovi.criticism.predictive_plots import plot_mean_variance, plot_totals, plot_zero_fraction

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass

_PACKAGES = ("pyrovi", "torch", "pyro-ppl", "lightning", "anndata", "arviz", "numpy", "scipy")
_PROBABILITY = 0.9
_FLAT = 2e-4
"""Largest relative change of the training ELBO over the last tenth of the epochs when converged."""


def report(
    model: BaseModelClass,
    path: str | Path,
    *,
    title: str | None = None,
    sections: Sequence[Section] = (),
    values: dict[str, Any] | None = None,
    bounds: pd.DataFrame | None = None,
    checks: PredictiveChecks | None = None,
    num_samples: int = 100,
    seed: int | None = None,
) -> Path:
    """Write a report on a fitted model: one HTML page that loads nothing, and its JSON twin.

    Parameters
    ----------
    model
        A trained model with its data.
    path
        Name of the page, ``*.html``; the same content goes to ``*.json`` for programs.
    title
        Heading.
    sections
        Sections of one's own, shown after the fit.
    values
        Numbers of one's own for the JSON twin.
    bounds, checks
        Results of :func:`evidence_bounds` and :func:`posterior_predictive_checks`, if they have
        been made already.
    num_samples
        Number of replicated data sets of the predictive checks.
    seed
        Root seed of the draws; ``None`` for ``settings.seed``.

    Returns
    -------
    Path
        Where the page is.

    Raises
    ------
    ModelError
        If the model has not been trained.
    SaveLoadError
        If the files cannot be written.
    """
    if bounds is None:
        bounds = evidence_bounds(model, seed=seed)
    if checks is None:
        checks = posterior_predictive_checks(model, num_samples=num_samples, seed=seed)
    stats = model.summary_stats
    document = Document(
        title or f"{type(model).__name__}: report on the fit",
        f"{stats.n_obs:,} observations, {stats.n_vars:,} variables · "
        f"{datetime.datetime.now(datetime.UTC):%d %B %Y, %H:%M} UTC · pyrovi {version('pyrovi')}",
        [
            _fit_section(model, bounds),
            *sections,
            _predictive_section(checks),
            _model_section(model),
            _settings_section(model, seed),
        ],
        {
            "bounds": bounds.to_dict(orient="index"),
            "predictive": checks.summary(_PROBABILITY).to_dict(orient="index"),
            "convergence": convergence(model),
            **(values or {}),
        },
    )
    return document.write(path)


def convergence(model: BaseModelClass) -> dict[str, Any]:
    """Whether the training ELBO was still moving when training ended.

    Returns
    -------
    dict
        ``epochs``; ``relative_change`` of the training ELBO between the means of the last two
        twentieths of the epochs, positive if it was improving; ``converged``.
    """
    loss = model.history["elbo_train"].iloc[:, 0].to_numpy()
    block = max(1, len(loss) // 20)
    if len(loss) < 2 * block:
        return {"epochs": len(loss), "relative_change": None, "converged": False}
    before, after = loss[-2 * block : -block].mean(), loss[-block:].mean()
    change = float((before - after) / abs(after))
    return {"epochs": len(loss), "relative_change": change, "converged": abs(change) < _FLAT}


def _held_out_verdict(model: BaseModelClass) -> str:
    """What more epochs would bring, judged by the held-out observations."""
    if "elbo_validation" not in model.history:
        return "More epochs may change the fit; hold observations out to see whether they help."
    loss = model.history["elbo_validation"].iloc[:, 0]
    best, last = loss.min(), loss.iloc[-1]
    fifth = max(1, len(loss) // 5)
    recent, before = loss.iloc[-fifth:].mean(), loss.iloc[-2 * fifth : -fifth].mean()
    if len(loss) >= 10 and (before - recent) > _FLAT * abs(recent):
        return "That of held-out observations was improving too: more epochs may help."
    return (
        f"That of held-out observations was not: its best was {-best:.1f} in epoch "
        f"{loss.idxmin()}, its last {-last:.1f}. More epochs would fit the training observations "
        "alone; early_stopping=True keeps the best parameters."
    )


def _fit_section(model: BaseModelClass, bounds: pd.DataFrame) -> Section:
    found = convergence(model)
    change = found["relative_change"]
    generalisation = ""
    if {"training", "held out"} <= set(bounds.index):
        elbo = bounds["elbo"].to_dict()
        difference = elbo["training"] - elbo["held out"]
        where = "below" if difference >= 0 else "above"
        generalisation = (
            f" The bound of held-out observations lies {abs(difference):.1f} nats {where} that of "
            "training observations."
        )
    if change is None:
        verdict = f"Training took {found['epochs']} epoch(s), too few to judge convergence."
    elif found["converged"]:
        verdict = (
            f"After {found['epochs']} epochs the training ELBO had stopped moving "
            f"(relative change {change:.1e} over the last tenth of the epochs)."
        )
    else:
        verdict = (
            f"After {found['epochs']} epochs the training ELBO was still moving (relative change "
            f"{change:.1e} over the last tenth of the epochs). " + _held_out_verdict(model)
        )
    return Section(
        "Fit",
        [
            "All numbers are lower bounds on the log evidence per observation, in nats: higher is "
            "better, and the true value is at least as high.",
            Table(
                bounds,
                "elbo: the bound that training maximises, with its standard error over "
                "observations. importance: a tighter bound from importance sampling. gap: their "
                "difference, what the guide loses at least.",
            ),
            verdict + generalisation,
            Image(
                plot_elbo(model),
                "Course of training. Left: the bound per observation; the first epochs lie below "
                "the frame. Right: how far the guide is from the prior.",
                "Lines of the evidence lower bound and of the KL divergence over the epochs, for "
                "training and held-out observations.",
            ),
        ],
    )


def _predictive_section(checks: PredictiveChecks) -> Section:
    draws = checks.replicated.sizes["draw"]
    return Section(
        "Posterior predictive checks",
        [
            f"Statistics of the observed data beside those of {draws} replicated data sets, each "
            "made with one joint draw of all latent variables. A good model's intervals cover the "
            f"observed values at least {_PROBABILITY:.0%} of the time; as the same data served to "
            "fit the model, more is usual.",
            Table(
                checks.summary(_PROBABILITY),
                "mean, variance and zero_fraction: of each variable over observations; total: of "
                "each observation over variables. The averages are over these values.",
            ),
            Image(
                plot_mean_variance(checks),
                "Mean and variance of each variable. Intervals above the points mean that the "
                "model makes data that vary more than the observed ones.",
                "Observed variances against means, with predicted intervals; predicted against "
                "observed variances.",
            ),
            Image(
                plot_zero_fraction(checks),
                "Fraction of observations in which each variable is zero.",
                "Observed fractions of zeros against means, with predicted intervals; predicted "
                "against observed fractions.",
            ),
            Image(
                plot_totals(checks),
                "Totals of the observations (library sizes).",
                "Histogram of observed totals with predicted intervals; predicted against observed "
                "totals.",
            ),
            Table(
                least_expected(checks),
                "The variables whose variance the model reproduces least: p is the probability "
                "that a replicated variance exceeds the observed one (0 or 1: never or always). "
                "Among those with equal p, the largest ratio comes first.",
            ),
        ],
    )


def least_expected(checks: PredictiveChecks, count: int = 10) -> pd.DataFrame:
    """The variables with the most extreme predictive p-values of their variance."""
    import pandas as pd

    variance = checks.observed["variance"]
    names = variance.coords[variance.dims[0]].to_numpy() if variance.coords else None
    predicted = checks.replicated["variance"].median("draw").to_numpy()
    p = checks.p_values("variance").to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(np.log(variance.to_numpy() / predicted))
    order = np.lexsort((-np.nan_to_num(ratio), np.minimum(p, 1 - p)))[:count]
    table = pd.DataFrame(
        {
            "mean": checks.observed["mean"].to_numpy(),
            "observed variance": variance.to_numpy(),
            "predicted variance (median)": predicted,
            "p": p,
        },
        index=pd.Index(names if names is not None else np.arange(len(p)), name="variable"),
    )
    return table.iloc[order]


def _model_section(model: BaseModelClass) -> Section:
    import pandas as pd

    sites = pd.DataFrame(
        [
            {
                "site": site.name,
                "role": site.role.value,
                "plates": ", ".join(site.plates) or "–",
                "shape": ", ".join(map(str, site.shape)) or "one number",
            }
            for site in (model.sites[name] for name in model.sites)
        ]
    ).set_index("site")
    arguments = pd.DataFrame(
        {"value": [repr(v) for v in model._init_arguments.values()]},
        index=pd.Index(list(model._init_arguments), name="argument"),
    )
    setup = {
        key: value
        for key, value in model.registry.get("setup_args", {}).items()
        if value is not None and key != "adata"
    }
    given = ", ".join(f"{key}={value!r}" for key, value in setup.items()) or "no arguments"
    return Section(
        "Model",
        [
            f"{type(model).__name__}, set up with {given}.",
            Table(arguments, "Arguments of the class."),
            Table(sites, "Every site of the model; each can be queried by its name."),
        ],
    )


def _settings_section(model: BaseModelClass, seed: int | None) -> Section:
    import pandas as pd

    training = model._training
    rows: dict[str, Any] = {
        "seed of data split, initialisation and training": settings.seed,
        "seed of the draws": settings.seed if seed is None else seed,
        "training observations": 0 if training is None else training.n_obs,
        "epochs": 0 if training is None else training.epochs,
        "training plan": "defaults"
        if training is None or not training.plan_kwargs
        else ", ".join(f"{k}={v!r}" for k, v in training.plan_kwargs.items()),
        "stopped early because": (training and training.stopping_reason) or "it did not",
        "device": str(model.device),
        "Python": platform.python_version(),
        **{package: installed for package in _PACKAGES if (installed := _version(package))},
    }
    table = pd.DataFrame(
        {"value": [str(plain(v)) for v in rows.values()]},
        index=pd.Index(list(rows), name="setting"),
    )
    return Section("Settings and versions", [Table(table)])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
