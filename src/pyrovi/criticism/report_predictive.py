"""The report's predictive checks: data that the model would make beside those that there are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi.criticism.calibration import LooPit
from pyrovi.criticism.diagnose_rows import Check, graded
from pyrovi.criticism.pit import PredictivePIT, expected_inside, predictive_pit
from pyrovi.criticism.predictive import PredictiveChecks, posterior_predictive_checks
from pyrovi.criticism.predictive_plots import plot_mean_variance, plot_totals, plot_zero_fraction
from pyrovi.criticism.report_blocks import Block, Image, Section, Table, checks_table
from pyrovi.criticism.report_figures import plot_few_variables
from pyrovi.criticism.report_subject import Refusal, Subject
from pyrovi.criticism.statistic_plots import plot_rootogram
from pyrovi.module.ledger import Site

if TYPE_CHECKING:
    import pandas as pd

_PROBABILITY = 0.9
_P_LIMITS = (0.02, 0.005)
_FEW = 4
"""Up to so many variables each has figures of its own."""

_BAND = 0.95
_PIT_DRAWS = 200

_COST = 2
"""A replicated value takes as long as so many evaluations of a density."""


def predictive_section(subject: Subject) -> Section:
    """Predictive checks of every observed site that is a table."""
    title = "Posterior predictive checks"
    if not subject.observed:
        reason = Refusal(subject.unobserved)
        return Section(title, [reason.text], [reason.check("predictive checks")])
    blocks: list[Block] = []
    checks: list[Check] = []
    values: dict[str, Any] = {}
    several = len(subject.observed) > 1
    for name in subject.observed:
        given = subject.checks if subject.checks and subject.checks.site == name else None
        found = given or _predictive(subject, name)
        pit = _pit(subject, name)
        judged = [*_coverage_checks(found), _pit_check(pit, _judge(subject, name))]
        checks += judged
        own = {
            "predictive": found.summary(_PROBABILITY).to_dict(orient="index"),
            "pit": pit.summary(_BAND).to_dict(),
        }
        for key, value in own.items():
            if several:
                values.setdefault(key, {})[name] = value
            else:
                values[key] = value
        blocks += _site_blocks(subject.model.sites[name], found, pit, judged)
    return Section(title, blocks, checks, values)


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


def is_counts(site: Site) -> bool:
    """Whether the values of a site are whole numbers of any size."""
    support = site.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return bool(getattr(support, "is_discrete", False)) and str(support) != "Boolean()"


def _predictive(subject: Subject, name: str) -> PredictiveChecks:
    statistics = ["moments", "extremes"]
    if is_counts(subject.model.sites[name]):
        statistics.append("frequencies")
    draws = subject.at_most(subject.num_samples)
    rows = _rows(subject, draws)
    return posterior_predictive_checks(
        subject.model,
        name,
        statistics=statistics,
        num_samples=draws,
        indices=rows,
        seed=subject.seed,
    )


def _pit(subject: Subject, name: str) -> PredictivePIT:
    draws = subject.at_most(_PIT_DRAWS)
    rows = _rows(subject, draws)
    return predictive_pit(subject.model, name, num_samples=draws, indices=rows, seed=subject.seed)


def _rows(subject: Subject, draws: int) -> NDArray[np.int64]:
    return subject.sample("predictive", subject.affordable(_COST * draws, subject.max_observations))


def _coverage_checks(found: PredictiveChecks) -> list[Check]:
    """Share of the observed statistics in their predictive intervals, with its own noise."""
    checks = []
    for statistic in ("mean", "variance", "zero_fraction", "total"):
        if statistic not in found.observed or not _is_judged(found, statistic):
            continue
        count = found.observed[statistic].size
        if count <= _FEW:
            checks.append(_few_check(found, statistic))
            continue
        limit = _PROBABILITY - 2 * np.sqrt(_PROBABILITY * (1 - _PROBABILITY) / count)
        of = "observations" if statistic == "total" else "variables"
        words = statistic.replace("_", " ")
        checks.append(
            graded(
                f"{found.site}: {of} whose {words} lies in its {_PROBABILITY:.0%} interval, share",
                found.coverage(statistic, _PROBABILITY),
                (limit, limit - 0.2),
                _ADVICE[statistic],
                detail=f"{count:,} {of}",
                high_is_good=True,
            )
        )
    return checks


def _few_check(found: PredictiveChecks, statistic: str) -> Check:
    p = found.p_values(statistic).to_numpy()
    return graded(
        f"{found.site}: two-sided predictive p-value of the {statistic.replace('_', ' ')}",
        float(2 * np.minimum(p, 1 - p).min()),
        _P_LIMITS,
        _ADVICE[statistic],
        detail="" if p.size == 1 else f"smallest of {p.size} variables",
        high_is_good=True,
    )


_ADVICE = {
    "mean": "The model does not reproduce the level of the data: check the link, size factors and "
    "missing covariates.",
    "variance": "The model does not reproduce the spread of the data: another likelihood or "
    "dispersion, or structure that is missing.",
    "zero_fraction": "The model makes too many or too few zeros: another count distribution.",
    "total": "The model does not reproduce the totals of observations: check size factors.",
}


def _is_judged(found: PredictiveChecks, statistic: str) -> bool:
    if statistic == "zero_fraction":
        return bool((found.observed["zero_fraction"] > 0).any())
    return statistic != "total" or found.observed["mean"].size > _FEW


_JUDGE = "the leave-one-out transforms judge (section “Calibration”, or pyrovi.criticism.loo_pit)"


def _judge(subject: Subject, site: str) -> LooPit | None:
    """Leave-one-out transforms of the site, if the report has them and they are reliable."""
    if "calibration" not in subject.sections or site != subject.observed[0]:
        return None
    found = subject.loo_pit
    if isinstance(found, Refusal) or found.khat is None:
        return None
    return found if (found.khat <= found.khat_threshold).mean() > 0.5 else None


def _pit_check(pit: PredictivePIT, judge: LooPit | None = None) -> Check:
    count = pit.by_variable["mean"].size
    share = float(pit.summary(_BAND)["inside"])
    limit = expected_inside(_BAND, count)
    worst = pit.table(_BAND).iloc[0]
    # both in standard errors of uniform values: which of the two is plainer
    bias, spread = np.sqrt(12) * worst["bias"], np.sqrt(180) / 12 * worst["dispersion"]
    if abs(bias) > abs(spread):
        reading = f"too {'low' if bias > 0 else 'high'}"
    else:
        reading = f"too {'narrow' if spread > 0 else 'wide'}"
    detail = f"{count:,} variable{'s' * (count > 1)}, {pit.num_observations:,} observations"
    if judge is not None:
        limit = -np.inf if judge.passed else np.inf
        detail += f"; leave-one-out transforms {'pass' if judge.passed else 'fail'}"
    # the data have been used twice, and of one variable one in twenty leaves its band
    found = graded(
        f"{pit.site}: variables whose in-sample PIT is uniform ({_BAND:.0%} band), share",
        share,
        (limit, -np.inf),
        f"Predictions have another distribution than the data; those of {worst.name}, the worst, "
        f"are {reading}. In-sample, predictions that look too wide are usual: {_JUDGE}. If it "
        "fails too, look at likelihood, dispersion and fit.",
        detail=detail,
        high_is_good=True,
    )
    return found if judge is None else replace(found, threshold=None)


def _site_blocks(
    site: Site, found: PredictiveChecks, pit: PredictivePIT, judged: list[Check]
) -> list[Block]:
    draws, n = found.replicated.sizes["draw"], pit.num_observations
    blocks: list[Block] = [
        f"Statistics of the observed values of {site.name} beside those of {draws} replicated data "
        f"sets, each made with one joint draw of all latent variables; transforms of {n:,} "
        "observations. The same data served to fit the model, so more agreement than in the "
        "intervals' own probability is usual.",
        checks_table(judged),
        Table(
            _summary(found),
            "mean, variance and zero_fraction: of each variable over observations; total: of each "
            "observation over variables. The averages are over these values.",
        ),
    ]
    has_zeros = _is_judged(found, "zero_fraction")
    if found.observed["mean"].size <= _FEW:
        statistics = ["mean", "variance"]
        statistics += ["maximum"] if "maximum" in found.observed else []
        statistics += ["zero_fraction"] if has_zeros else []
        blocks.append(
            Image(
                plot_few_variables(found, statistics),
                "Statistics over observations. p: share of replicated data sets that exceed the "
                "observed value; 0 or 1 mark what the model does not reproduce.",
                "Histograms of statistics of replicated data with the observed value as a line.",
            )
        )
    else:
        blocks += _many_variables(found, has_zeros, is_counts(site))
    if "frequency" in found.observed:
        blocks.append(
            Image(
                plot_rootogram(found).figure,
                "How often each count occurs: bars hang from what is predicted, and end at zero "
                "where prediction and data agree.",
                "Hanging rootogram of counts.",
            )
        )
    blocks.append(
        Image(
            pit.plot(),
            "Randomised probability integral transforms. Left: flat if predictions are right, a U "
            "where they are too narrow, a hump where too wide. Right: one line for each variable.",
            "Histogram of transforms; distribution functions with their band.",
        )
    )
    return blocks


def _summary(found: PredictiveChecks) -> pd.DataFrame:
    """The summary without statistics that say nothing of these data."""
    table = found.summary(_PROBABILITY)
    silent = [s for s in ("zero_fraction", "total") if not _is_judged(found, s)]
    return table.drop(index=[*silent, "largest", "frequency"], errors="ignore")


def _many_variables(found: PredictiveChecks, has_zeros: bool, counts: bool) -> list[Block]:
    blocks: list[Block] = [
        Image(
            plot_mean_variance(found),
            "Mean and variance of each variable. Intervals above the points mean that the model "
            "makes data that vary more than the observed ones.",
            "Observed variances against means, with predicted intervals; predicted against "
            "observed variances.",
        )
    ]
    if has_zeros:
        blocks.append(
            Image(
                plot_zero_fraction(found),
                "Fraction of observations in which each variable is zero.",
                "Observed fractions of zeros against means, with predicted intervals; predicted "
                "against observed fractions.",
            )
        )
    if counts:
        blocks.append(
            Image(
                plot_totals(found),
                "Totals of the observations (library sizes).",
                "Histogram of observed totals with predicted intervals; predicted against observed "
                "totals.",
            )
        )
    blocks.append(
        Table(
            least_expected(found),
            "The variables whose variance the model reproduces least: p is the probability that a "
            "replicated variance exceeds the observed one (0 or 1: never or always). Among those "
            "with equal p, the largest ratio comes first.",
        )
    )
    return blocks
