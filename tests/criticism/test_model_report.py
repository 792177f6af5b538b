"""The report on a model: complete, self-contained, and equal to its twin and to what it reports."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from tests.criticism.test_document import Page, is_well_formed, loads_nothing

import pyrovi as pv
from pyrovi.criticism import Section, diagnose, evidence_bounds, loo
from pyrovi.criticism.diagnose_rows import Check
from pyrovi.criticism.report_inference import held_out_verdict
from pyrovi.criticism.report_posterior import most_telling
from pyrovi.criticism.report_predictive import is_counts, least_expected
from pyrovi.errors import ModelError, SaveLoadError


def line(x, y, *, slope_sd=2.0):
    """A line & <i>noise</i>."""
    a = pyro.sample("a", dist.Normal(0.0, 5.0))
    b = pyro.sample("b", dist.Normal(0.0, slope_sd))
    s = pyro.sample("s", dist.HalfNormal(2.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(a + b * x, s), obs=y)


def line_data(noise=0.5) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    return pd.DataFrame({"x": x, "y": 1 + 0.7 * x + noise * rng.normal(size=60)})


@pytest.fixture(scope="module")
def regression():
    model = pv.from_pyro(line, line_data(), guide="mvn")
    model.train(
        max_epochs=400, n_restarts=2, num_workers=1, accelerator="cpu", enable_progress_bar=False
    )
    return model


@pytest.fixture(scope="module")
def page(regression, tmp_path_factory):
    return pv.criticism.report(regression, tmp_path_factory.mktemp("line") / "line.html", seed=3)


@pytest.fixture(scope="module")
def twin(page):
    return json.loads(page.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def written(trained, checks, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return pv.criticism.report(
        trained,
        path,
        checks=checks,
        sections=[
            Section("My section", ["my words"], [Check("mine", 2.0, 1.0, "warn", "do this")])
        ],
        values={"mine": 3},
        max_observations=40,
    )


@pytest.fixture(scope="module")
def written_twin(written):
    return json.loads(written.with_suffix(".json").read_text())


@pytest.mark.parametrize("which", ["page", "written"])
def test_report_is_self_contained_and_well_formed(which, request) -> None:
    text = request.getfixturevalue(which).read_text()
    found = Page(text)
    assert loads_nothing(found)
    assert is_well_formed(found)
    assert "http" not in text
    titles = ["Verdict", "Model", "Data", "Inference", "Diagnostics", "Posterior"]
    for title in [*titles, "Calibration", "Sensitivity to priors", "Reproducibility"]:
        assert title in found.text


def test_one_s_own_sections_and_values_are_there_and_count(written, written_twin) -> None:
    assert "my words" in Page(written.read_text()).text
    assert written_twin["values"]["mine"] == 3
    mine = [c for c in written_twin["checks"] if c["check"] == "mine"]
    assert [(c["section"], c["verdict"], c["advice"]) for c in mine] == [
        ("My section", "warn", "do this")
    ]


def test_twin_holds_the_numbers(written_twin, trained, checks) -> None:
    values = written_twin["values"]
    bounds = evidence_bounds(trained, max_observations=40)
    assert values["bounds"]["held out"]["elbo"] == pytest.approx(bounds.loc["held out", "elbo"])
    assert values["predictive"]["mean"]["in 90% interval"] == checks.coverage("mean")
    assert values["data"]["split"]["training"] == len(trained.train_indices)


def test_verdicts_are_those_of_diagnose(twin, regression) -> None:
    found = diagnose(regression, seed=3)
    rows = [c for c in twin["checks"] if c["section"] == "Diagnostics"]
    assert [c["check"] for c in rows] == list(found.table.index)
    assert [c["verdict"] for c in rows] == list(found.table["verdict"])
    for row, check in zip(rows, found.checks, strict=True):
        assert row["value"] == (check.value if check.value is None else pytest.approx(check.value))
        assert row["threshold"] == check.threshold
    assert twin["passed"] == all(c["verdict"] != "fail" for c in twin["checks"])


def test_posterior_and_elpd_are_those_of_the_functions(twin, regression) -> None:
    table = regression.summary(["a", "b", "s"], seed=3)
    assert twin["values"]["posterior"]["b"]["mean"] == table.loc["b", "mean"]
    assert twin["values"]["posterior"]["s"]["r_hat"] == pytest.approx(table.loc["s", "r_hat"])
    found = loo(regression, num_samples=500, num_inner=1, seed=3)
    assert twin["values"]["elpd"]["loo"]["elpd"] == pytest.approx(found.elpd)


def test_priors_have_the_quantiles_of_their_distributions(twin) -> None:
    priors = twin["values"]["priors"]
    assert priors["b"]["distribution"] == "Normal(0, 2)"
    assert priors["s"]["distribution"] == "HalfNormal(2)"
    # quantiles of 4,000 draws of Normal(0, 2) and HalfNormal(2)
    assert priors["b"]["95%"] == pytest.approx(2 * 1.645, abs=0.25)
    assert priors["s"]["50%"] == pytest.approx(2 * 0.6745, abs=0.15)
    assert priors["b"]["depends on"] == "nothing (top level)"


def test_the_story_is_shown_and_escaped(page) -> None:
    text = page.read_text()
    assert "<i>noise</i>" not in text
    assert "A line & <i>noise</i>." in Page(text).text
    assert "y ~ Normal | a, b, s" in json.dumps(
        json.loads(page.with_suffix(".json").read_text())["sections"]
    )


def test_refusals_are_shown_with_their_reason(page, twin, written_twin) -> None:
    by_name = {c["check"]: c for c in twin["checks"]}
    amortised = by_name["calibration of the amortised posterior (simulated data)"]
    assert amortised["verdict"] == "not available"
    assert "no local latents" in amortised["advice"]
    assert amortised["advice"] in Page(page.read_text()).text
    of_scvi = {c["check"]: c for c in written_twin["checks"]}
    sensitivity = next(c for name, c in of_scvi.items() if "prior-data conflict" in name)
    assert "no global latent sites" in sensitivity["advice"]


def test_other_errors_are_not_hidden(regression, tmp_path, monkeypatch) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("pyrovi.criticism.report_calibration.loo", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        pv.criticism.report(regression, tmp_path / "r.html", sections=["comparison"])
    assert not list(tmp_path.iterdir())


def test_the_same_seed_makes_the_same_report_and_disturbs_nothing(
    regression, twin, tmp_path
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = pv.criticism.report(regression, tmp_path / "again.html", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    other = json.loads(again.with_suffix(".json").read_text())
    for one in (twin, other):
        one.pop("subtitle", None)  # has the time
    assert other == twin


def test_sections_can_be_chosen(regression, tmp_path) -> None:
    made = pv.criticism.report(regression, tmp_path / "r.html", sections=["data", "model"])
    found = json.loads(made.with_suffix(".json").read_text())
    assert [s["title"] for s in found["sections"]] == ["Verdict", "Model", "Data"]
    assert found["checks"] == []
    with pytest.raises(ModelError, match="no section 'dta'; its sections are: model, data"):
        pv.criticism.report(regression, tmp_path / "s.html", sections=["dta"])
    with pytest.raises(ModelError, match="holds 3"):
        pv.criticism.report(regression, tmp_path / "s.html", sections=[3])


def test_a_wrong_model_fails_its_predictive_check(tmp_path) -> None:
    frame = line_data()
    frame["y"] = np.random.default_rng(1).standard_cauchy(60) * 3

    def flat(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    model = pv.from_pyro(flat, frame)
    model.train(max_epochs=200, accelerator="cpu", enable_progress_bar=False)
    made = pv.criticism.report(model, tmp_path / "r.html", sections=["predictive"])
    found = json.loads(made.with_suffix(".json").read_text())
    assert not found["passed"]
    failed = {c["check"] for c in found["checks"] if c["verdict"] == "fail"}
    assert "y: two-sided predictive p-value of the variance" in failed
    callout = found["sections"][0]["blocks"][0]
    assert callout["verdict"] == "fail"
    assert callout["text"].startswith(f"{len(failed)} of 3 checks failed")


def test_nuts_has_energies_and_no_elbo(tmp_path) -> None:
    model = pv.from_pyro(line, line_data())
    model.train(
        method="nuts", num_samples=100, num_warmup=150, num_chains=2, num_workers=1,
        enable_progress_bar=False,
    )  # fmt: skip
    made = pv.criticism.report(model, tmp_path / "r.html", sections=["inference", "diagnostics"])
    found = json.loads(made.with_suffix(".json").read_text())
    assert found["values"]["diagnosis"]["method"] == "nuts"
    assert found["values"]["inference"]["chains"] == 2
    blocks = found["sections"][2]["blocks"]
    assert any("An ELBO needs the density" in b.get("text", "") for b in blocks)
    figures = [b["alt"] for b in blocks if b["kind"] == "figure"]
    assert any("energies" in alt for alt in figures)


def test_most_telling_rows_are_shared_between_sites() -> None:
    names = [f"w[{k}]" for k in range(50)] + ["m"] + [f"v[{k}]" for k in range(4)]
    table = pd.DataFrame({"mean": np.arange(55.0), "sd": 1.0}, index=names)
    kept = list(most_telling(table, 11).index)
    assert len(kept) == 11
    assert "m" in kept
    assert [n for n in kept if n.startswith("w")][-1] == "w[49]"
    assert sum(n.startswith("v") for n in kept) == 4
    assert most_telling(table, 55) is table


def test_counts_are_known_by_their_support(trained, regression) -> None:
    assert is_counts(trained.sites["X"])
    assert not is_counts(regression.sites["y"])


def test_least_expected_variables_come_first(checks) -> None:
    table = least_expected(checks, count=3)
    p = checks.p_values("variance").to_numpy()
    extreme = np.sort(np.minimum(p, 1 - p))[:3]
    np.testing.assert_allclose(np.minimum(table["p"], 1 - table["p"]), extreme)
    name = table.index[0]
    assert table.loc[name, "mean"] == float(checks.observed["mean"].sel(var=name))


def test_what_cannot_be_reported_is_refused_and_nothing_written(trained, tmp_path) -> None:
    adata = pv.data.synthetic_iid(batch_size=10, n_genes=5)
    pv.model.SCVI.setup_anndata(adata)
    with pytest.raises(ModelError, match="not been trained"):
        pv.criticism.report(pv.model.SCVI(adata), tmp_path / "report.html")
    with pytest.raises(SaveLoadError, match=r"name it \*\.html"):
        pv.criticism.report(trained, tmp_path / "report.pdf")
    with pytest.raises(ModelError, match="max_observations must be at least 20, got 2"):
        pv.criticism.report(trained, tmp_path / "report.html", max_observations=2)
    assert not list(tmp_path.iterdir())


def test_more_epochs_are_advised_only_where_held_out_observations_gain(trained) -> None:
    kept = dict(trained._history)
    epochs = range(20)
    try:
        trained._history["elbo_validation"] = {e: 100.0 - e for e in epochs}
        assert "more epochs may help" in held_out_verdict(trained)
        trained._history["elbo_validation"] = {e: 100.0 + abs(e - 7) for e in epochs}
        assert "in epoch 7" in held_out_verdict(trained)
        assert "training observations alone" in held_out_verdict(trained)
        del trained._history["elbo_validation"]
        assert "hold observations out" in held_out_verdict(trained)
    finally:
        trained._history = kept
