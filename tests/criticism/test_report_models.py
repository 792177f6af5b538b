"""Reports on models of every shape: what one cannot say loses nothing of the rest."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi as pv
from pyrovi.criticism import diagnose, loo
from pyrovi.criticism.diagnose_rows import Check
from pyrovi.criticism.diagnose_svi import _restarts
from pyrovi.criticism.pit import predictive_pit
from pyrovi.criticism.report_blocks import Section
from pyrovi.criticism.report_headline import headline_section
from pyrovi.criticism.report_predictive import _pit_check
from pyrovi.criticism.report_priors import constant_priors
from pyrovi.errors import ModelError

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame({"y": RNG.normal(size=30) + 3})
SERIES = torch.as_tensor(RNG.normal(size=40)).float()


def three(Y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pv.obs_plate():
        pyro.sample("Y", dist.Normal(mu, 1.0).to_event(1), obs=Y)


def flat(y):
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    s = pyro.sample("s", dist.HalfNormal(3.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(mu, s), obs=y)


def by_factor(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pv.obs_plate():
        pyro.factor("ll", -0.5 * (y - mu) ** 2)


def series(*, y=SERIES):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a * y[:-1], 1.0).to_event(1), obs=y[1:])


def correlated(Y):
    corner = pyro.sample("corner", dist.LKJCholesky(2, 1.0))
    with pv.obs_plate():
        pyro.sample("Y", dist.MultivariateNormal(torch.zeros(2), scale_tril=corner), obs=Y)


def laplace(story, data):
    model = pv.from_pyro(story, data)
    model.train(method="laplace")
    return model


def written(model, tmp_path, **kwargs):
    page = pv.criticism.report(model, tmp_path / "r.html", **kwargs)
    return json.loads(page.with_suffix(".json").read_text())


def test_an_array_of_a_few_columns_without_names(tmp_path) -> None:
    model = laplace(three, {"Y": RNG.normal(size=(30, 3))})
    found = written(model, tmp_path)
    assert found["passed"]
    inference = found["values"]["inference"]
    assert inference["method"] == "laplace"
    assert inference["training observations"] == 30
    assert not {"guide", "optimiser", "epochs"} & set(inference)
    assert "guide" not in inference["arguments"]


def test_a_flat_prior_is_called_improper_and_loses_nothing_else(tmp_path) -> None:
    found = written(laplace(flat, FRAME), tmp_path)
    priors = found["values"]["priors"]
    assert priors["mu"]["distribution"] == "improper"
    assert priors["s"]["distribution"] == "HalfNormal(3)"
    assert "50%" not in priors["s"]
    text = json.dumps(found["sections"])
    assert "Quantiles of the prior are not available" in text
    titles = {s["title"] for s in found["sections"]}
    assert {"Posterior", "Calibration", "Diagnostics"} <= titles
    sensitivity = next(c for c in found["checks"] if "prior-data conflict" in c["check"])
    assert "the prior of mu is improper" in sensitivity["advice"]
    assert found["values"]["posterior"]["mu"]["mean"] == pytest.approx(FRAME.y.mean(), abs=0.1)


def test_a_section_that_the_model_refuses_is_no_loss_to_others(tmp_path, monkeypatch) -> None:
    from pyrovi.criticism import model_report

    def refuses(subject):
        raise ModelError("not of this model")

    monkeypatch.setitem(model_report.SECTIONS, "posterior", refuses)
    model = laplace(three, {"Y": RNG.normal(size=(30, 3))})
    found = written(model, tmp_path, sections=["posterior", "diagnostics"])
    assert [c["verdict"] for c in found["checks"]] == ["pass", "not available"]
    assert found["sections"][2]["blocks"][0]["text"] == "Not available: not of this model"


def test_a_factor_as_the_likelihood_is_named(tmp_path) -> None:
    model = laplace(by_factor, FRAME)
    assert repr(loo(model)).startswith("LOO of ll\n")
    with pytest.raises(ModelError, match="no predictive distribution"):
        pv.criticism.posterior_predictive_checks(model)
    found = written(model, tmp_path)
    predictive = next(c for c in found["checks"] if c["check"] == "predictive checks")
    assert "pyro.factor (ll)" in predictive["advice"]
    assert found["sections"][0]["blocks"][0]["verdict"] == "not available"


def test_held_out_advises_what_the_method_takes() -> None:
    model = laplace(three, {"Y": RNG.normal(size=(30, 3))})
    with pytest.raises(ModelError, match=r"train\(method='laplace', indices="):
        pv.criticism.held_out(model)


def test_without_an_observation_plate_nothing_is_per_observation(tmp_path) -> None:
    model = pv.from_pyro(series, {}, guide="mvn")
    model.train(max_epochs=100, accelerator="cpu", enable_progress_bar=False)
    text = repr(diagnose(model))
    assert "per observation" not in text
    assert "nan" not in text
    row = next(c for c in diagnose(model).checks if "Monte-Carlo" in c.what)
    gram = 1 + float((SERIES[:-1] ** 2).sum())  # the evidence of this regression
    evidence = dist.Normal(0, 1).log_prob(SERIES[1:]).sum() - 0.5 * np.log(gram)
    evidence = float(evidence + 0.5 * (SERIES[1:] @ SERIES[:-1]) ** 2 / gram)
    assert float(row.detail.split()[1].rstrip(",")) == pytest.approx(evidence, abs=0.1)
    found = written(model, tmp_path, sections=["data", "diagnostics"])
    assert found["subtitle"].startswith("data without an observation plate")
    assert "observations" not in found["values"]["data"]["sizes"]


def test_constants_are_left_out_of_the_sensitivity(tmp_path) -> None:
    Y = RNG.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 60)
    found = written(laplace(correlated, {"Y": Y}), tmp_path, sections=["sensitivity"])
    check = found["checks"][0]
    assert check["verdict"] in ("pass", "warn")
    assert check["detail"].endswith("of 2")  # of four, two are constants


def test_the_headline_is_no_pass_where_half_could_not_be_checked() -> None:
    def headline(passed, missing):
        checks = [Check("a", 0.0, 1.0, "pass")] * passed
        checks += [Check("b", None, None, "not available")] * missing
        return headline_section([Section("s", [], checks)]).blocks[0].verdict

    assert headline(3, 2) == "pass"
    assert headline(2, 2) == "not available"


def test_in_sample_transforms_never_fail_and_leave_one_out_decides(tmp_path) -> None:
    def narrow(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(mu, 0.1), obs=y)

    model = laplace(narrow, FRAME)
    pit = predictive_pit(model)
    assert not pit.passed
    check = _pit_check(pit)
    assert check.verdict == "warn"
    assert "in-sample" in check.what
    assert "loo_pit" in check.advice

    class Judge:
        passed = True

    assert _pit_check(pit, Judge()).verdict == "pass"
    right = predictive_pit(laplace(flat, FRAME))
    assert right.passed
    assert _pit_check(right).verdict == "pass"
    Judge.passed = False
    assert _pit_check(right, Judge()).verdict == "warn"


def test_factors_are_spoken_of_where_there_could_be_some() -> None:
    def loadings(Y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        with pv.obs_plate():
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("Y", dist.Normal(z @ w, 1.0).to_event(1), obs=Y)

    for story, mentioned in ((three, False), (loadings, True)):
        model = pv.from_pyro(story, {"Y": RNG.normal(size=(30, 3))})
        model.train(2, n_restarts=2, num_workers=1, accelerator="cpu", enable_progress_bar=False)
        name = "mu" if story is three else "w"
        for k, state in enumerate(model._restarts):
            key = next(key for key in state if key.endswith(f"{name}_loc"))
            model._restarts[k] = {**state, key: state[key] + 5 * k}
        check = _restarts(model, None, None)
        assert check.verdict == "fail"
        assert ("W^T W" in check.advice) is mentioned


def test_priors_in_words() -> None:
    def story(y):
        a = pyro.sample("a", dist.Normal(torch.tensor([1.0, 2.0]), 0.5).to_event(1))
        pyro.sample("c", dist.Beta(2.0, 3.0))
        pyro.sample("t", dist.StudentT(3.0, 0.0, 2.5))
        many = torch.arange(9.0)
        pyro.sample("m", dist.Normal(many, 1.0).to_event(1))
        with pv.plate("k", 2):
            pyro.sample("u", dist.Uniform(-1.0, 1.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(a.sum(), 1.0), obs=y)

    model = pv.from_pyro(story, FRAME)
    assert constant_priors(model, ["a", "c", "t", "m", "u"]) == {
        "a": "Normal([1, 2], 0.5)",
        "c": "Beta(2, 3)",
        "t": "StudentT(3, 0, 2.5)",
        "u": "Uniform(-1, 1)",
    }
