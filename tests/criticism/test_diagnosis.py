"""Tests of the one table that judges a fit: planted faults are flagged, good fits pass."""

from __future__ import annotations

import pytest
import torch
from tests.train.toys import QUIET, Amortised, Mean, scvi, toy

from pyrovi.criticism.diagnose_rows import Check
from pyrovi.criticism.diagnosis import Diagnosis, diagnose
from pyrovi.errors import ModelError

SETTLED = {"lr": 0.05, "lr_decay": 0.02, "n_epochs_kl_warmup": 0}


@pytest.fixture(scope="module")
def converged():
    model = toy(Mean, n=60)
    model.train(
        150,
        n_restarts=3,
        num_workers=1,
        batch_size=30,
        plan_kwargs=SETTLED,
        averaging=True,
        **QUIET,
    )
    return model


def verdict(diagnosis, check):
    table = diagnosis.table
    name = next(name for name in table.index if name.startswith(check))
    return table.loc[name, "verdict"]


def test_a_good_fit_passes(converged):
    found = diagnose(converged)
    assert found.method == "svi"
    assert found.passed
    assert found.failed == []
    for check in ("ELBO still improving", "R-hat over restarts", "Monte-Carlo error"):
        assert verdict(found, check) == "pass", found
    assert "passed" in repr(found)
    assert "R-hat over restarts" in found._repr_html_()
    assert list(found.table.columns) == ["value", "threshold", "verdict", "advice"]


def test_training_that_was_cut_short_is_flagged():
    model = toy(Mean, n=60)
    plan = {"lr": 0.01, "n_epochs_kl_warmup": 0}
    model.train(40, batch_size=30, plan_kwargs=plan, **QUIET)
    found = diagnose(model)
    assert verdict(found, "ELBO still improving") != "pass"
    assert verdict(found, "R-hat over restarts") == "not available"
    model.train(1, batch_size=30, plan_kwargs=plan, **QUIET)
    few = toy(Mean, n=60)
    few.train(3, batch_size=30, plan_kwargs=plan, **QUIET)
    assert verdict(diagnose(few), "ELBO still improving") == "warn"


def test_restarts_that_disagree_fail(converged):
    before = [dict(state) for state in converged._restarts]
    converged._restarts[0] = {**before[0], "loc": before[0]["loc"] + 2}
    try:
        found = diagnose(converged)
    finally:
        converged._restarts = before
    assert not found.passed
    assert found.failed == ["R-hat over restarts"]
    assert "mu" in repr(found)


def test_parameters_that_are_not_finite_fail():
    model = toy(Mean)
    model.train(1, **QUIET)
    with torch.no_grad():
        model.module.loc[0] = float("nan")
    found = diagnose(model)
    assert found.failed == ["parameters that are not finite"]
    assert len(found.table) == 1


def test_the_local_posterior_of_an_encoder():
    model = toy(Amortised, n=60)
    model.train(1, **QUIET)
    with torch.no_grad():  # the exact posterior: z | x ~ N(0.8 x, 0.2)
        model.module.weight.fill_(0.8)
        model.module.scale = torch.full((2,), 0.2**0.5)
    good = diagnose(model)
    assert verdict(good, "observations with local k-hat") == "pass"
    assert verdict(good, "amortisation gap") == "pass"
    assert verdict(good, "collapsed dimensions") == "pass"
    with torch.no_grad():
        model.module.weight.fill_(0.0)
        model.module.scale = torch.full((2,), 0.1)
    bad = diagnose(model)
    assert verdict(bad, "observations with local k-hat") == "fail"
    assert verdict(bad, "amortisation gap") == "fail"
    assert verdict(bad, "collapsed dimensions") == "fail"


def test_any_model_can_be_diagnosed():
    model = scvi()
    model.train(2, **QUIET)
    found = diagnose(model, max_observations=20)
    assert "observations with local k-hat too high, share" in found.table.index
    assert "20 observations" in repr(found)


def test_messages():
    model = toy(Mean)
    with pytest.raises(ModelError, match="has not been trained"):
        diagnose(model)


def test_the_verdict_counts_what_was_checked() -> None:
    def checks(*verdicts: str) -> Diagnosis:
        return Diagnosis("svi", tuple(Check(v, 0.0, 1.0, v, "") for v in verdicts))

    assert checks("pass", "pass").verdict == "passed"
    assert checks("pass", "warn", "warn").verdict == "passed, with 2 warnings"
    nothing = checks("not available")
    assert nothing.verdict == "nothing could be checked"
    assert not nothing.passed
    assert checks("pass", "fail").verdict == "failed: fail"
