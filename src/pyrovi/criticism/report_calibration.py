"""The report's account of calibration, and of predictions of observations that were left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi.criticism.calibration import Calibration, encoder_sbc
from pyrovi.criticism.diagnose_rows import Check, graded
from pyrovi.criticism.elpd import Elpd
from pyrovi.criticism.held_out_density import held_out, keep_apart
from pyrovi.criticism.leave_one_out import loo
from pyrovi.criticism.report_blocks import Block, Callout, Image, Section, Table
from pyrovi.criticism.report_figures import plot_threshold_histogram
from pyrovi.criticism.report_subject import Refusal, Subject, attempt

if TYPE_CHECKING:
    import pandas as pd

_ENCODER = "calibration of the amortised posterior (simulated data)"
_LOO_PIT = "calibration of leave-one-out predictions"
_SBC = "simulation-based calibration of inference (refits)"
_UNRELIABLE = "share of observations that it cannot be relied on for"

_ADVICE = {
    "loo": "The weights of these observations are dominated by few draws, so that elpd is not to "
    "be compared with that of other models: cross_validate(model) refits instead.",
    "held_out": "The guide does not cover the local posterior of these observations, so that elpd "
    "is too low in tendency: a wider encoder, more epochs, or more draws (held_out(num_inner=)).",
}

_UNUSABLE = (
    "The sum is unusable: it may be wrong by any amount. Mend the fit first, see Diagnostics, or "
    "cross_validate(model), which refits."
)

_SIMULATIONS = 400
_RANKS = 99
_DRAWS = 500
_SHOWN = 10


def calibration_section(subject: Subject) -> Section:
    """Calibration of the amortised posterior, of predictions, and of inference."""
    blocks: list[Block] = []
    checks: list[Check] = []
    values: dict[str, Any] = {}
    sbc = subject.sbc
    refits = (
        sbc
        if sbc is not None
        else Refusal(
            "it takes many refits. Run "
            "pyrovi.criticism.sbc(model, ...) and pass its result: report(..., sbc=result)."
        )
    )
    parts: list[tuple[str, str, Calibration | Refusal]] = [
        ("encoder_sbc", _ENCODER, attempt(lambda: _encoder(subject))),
        ("loo_pit", _LOO_PIT, subject.loo_pit),
        ("sbc", _SBC, refits),
    ]
    for key, what, found in parts:
        if isinstance(found, Refusal):
            checks.append(found.check(what))
            blocks.append(f"{what[0].upper()}{what[1:]} is not available: {found.reason}")
            continue
        checks.append(_calibration_check(what, found))
        values[key] = found.table.to_dict(orient="index") | {"passed": found.passed}
        blocks += _calibration_blocks(found)
    return Section("Calibration", blocks, checks, values)


def _encoder(subject: Subject) -> Calibration:
    most = subject.affordable(2 * _RANKS, _SIMULATIONS)
    return encoder_sbc(
        subject.model,
        num_simulations=most,
        num_draws=_RANKS,
        indices=subject.sample("encoder sbc", subject.max_observations),
        seed=subject.seed,
    )


def _calibration_check(what: str, found: Calibration) -> Check:
    kind = "simulations" if found.num_draws is not None else "observations"
    if found.passed is None:
        return Refusal(f"{len(found.values)} {kind} are too few to judge.").check(what)
    smallest = float(found.table["adjusted"].min())
    worst = found.table.iloc[0]
    failed = not found.passed
    return Check(
        what,
        smallest,
        round(1 - found.probability, 6),
        "fail" if failed else "pass",
        f"{worst['reading'] or 'fits failed'}: see the figure; {found.table.index[0]} is farthest "
        "from uniform."
        if failed
        else "",
        f"smallest adjusted p-value of {found.values.shape[1]} quantities, "
        f"{len(found.values)} {kind}",
    )


def _calibration_blocks(found: Calibration) -> list[Block]:
    shown = found.table.head(_SHOWN)
    more = "" if len(shown) == len(found.table) else f" The first {_SHOWN} of {len(found.table)}."
    return [
        found.summary().partition("\n")[0] + ".",
        Table(
            shown,
            "bias: mean of the values minus 1/2, positive where the truth lies above; spread: "
            "above 1 where draws lie too close together; adjusted: p-values for all quantities "
            "together." + more,
        ),
        Image(
            found.plot(max_quantities=4),
            "Above: distribution functions minus the uniform one, with the band of a calibrated "
            "model. Below: histograms, flat if calibrated.",
            "Distribution functions with bands, and histograms.",
        ),
    ]


def comparison_section(subject: Subject) -> Section:
    """Expected log predictive density: by leave-one-out weights, and of held-out observations."""
    blocks: list[Block] = []
    checks: list[Check] = []
    values: dict[str, Any] = {}
    parts: list[tuple[str, str, Elpd | Refusal]] = [
        ("loo", "Leave-one-out density", attempt(lambda: _loo(subject))),
        ("held_out", "Density of held-out observations", attempt(lambda: _held_out(subject))),
    ]
    for key, what, found in parts:
        check = f"{what}: {_UNRELIABLE}"
        if isinstance(found, Refusal):
            blocks.append(f"{what} is not available: {found.reason}")
            checks.append(found.check(check))
            continue
        values[key] = found.summary().iloc[0].to_dict() | {"unusable": found.unusable}
        checks.append(_elpd_check(check, found))
        blocks += _elpd_blocks(found)
    return Section("Prediction of observations left out", blocks, checks, {"elpd": values})


def _elpd_check(what: str, found: Elpd) -> Check:
    return graded(
        what,
        found.n_bad / len(found.pointwise),
        (0.01, 0.1),
        _UNUSABLE if found.unusable else _ADVICE[found.kind],
        detail=f"{found.n_bad} of {len(found.pointwise)} observations",
    )


def _elpd_blocks(found: Elpd) -> list[Block]:
    if found.unusable:
        return [Callout("fail", found.warning()[0]), *_khat_figure(found)]
    table = found.summary()
    table["elpd / observation"] = found.elpd / found.n_obs
    table["se / observation"] = found.se / found.n_obs
    notes = "; ".join(found.notes())
    return [
        Table(
            table,
            "elpd: sum of log predictive densities of the observations looked at, in nats, with "
            "its standard error; higher is better. Compare models on the same observations: "
            "pyrovi.criticism.compare.",
        ),
        *([f"To mind: {notes}."] if notes else []),
        *_khat_figure(found),
    ]


def _loo(subject: Subject) -> Elpd:
    draws, inner = subject.draws(_DRAWS)
    most = subject.affordable(draws * inner, subject.max_observations)
    rows = subject.sample("leave one out", most, subject.model.train_indices)
    return loo(subject.model, num_samples=draws, num_inner=inner, indices=rows, seed=subject.seed)


def _held_out(subject: Subject) -> Elpd | Refusal:
    model = subject.model
    parts = [rows for rows in (model.validation_indices, model.test_indices) if rows is not None]
    outside = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    draws, inner = subject.draws(100)
    most = subject.affordable(draws * inner, subject.max_observations)
    rows = subject.sample("held out", most, outside)
    if not len(rows):
        return Refusal(f"no observations were held out of training: {keep_apart(model)}.")
    return held_out(model, indices=rows, num_samples=draws, num_inner=inner, seed=subject.seed)


def _khat_figure(found: Elpd) -> list[Block]:
    pointwise: pd.DataFrame = found.pointwise
    threshold = getattr(found, "khat_threshold", None)
    if "khat" not in pointwise or threshold is None:
        return []
    axes = plot_threshold_histogram(
        pointwise["khat"],
        threshold,
        name="Pareto k-hat of leave-one-out weights",
        of="Observations",
        title="How far leaving an observation out moves the posterior",
    )
    return [
        Image(
            axes.figure,
            "Pareto k-hat of each observation: beyond the limit an observation is so influential "
            "that its elpd is not reliable.",
            "Histogram of k-hat with its limit.",
        )
    ]
