"""The report on a model: complete, self-contained, and equal to its twin."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.criticism.test_document import Page, loads_nothing

import pyrovi as pv
from pyrovi.criticism import Section, evidence_bounds
from pyrovi.criticism.model_report import convergence, least_expected
from pyrovi.errors import ModelError


@pytest.fixture(scope="module")
def written(trained, checks, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return pv.criticism.report(
        trained,
        path,
        checks=checks,
        sections=[Section("My section", ["my words"])],
        values={"mine": 3},
    )


def test_report_is_self_contained(written) -> None:
    text = written.read_text()
    page = Page(text)
    assert loads_nothing(page)
    assert "http" not in text
    assert page.tags.count("img") == 4
    for title in ("Fit", "My section", "Posterior predictive checks", "Settings and versions"):
        assert title in page.text


def test_twin_holds_the_numbers(written, trained, checks) -> None:
    values = json.loads(written.with_suffix(".json").read_text())["values"]
    assert values["mine"] == 3
    bounds = evidence_bounds(trained)
    assert values["bounds"]["held out"]["elbo"] == pytest.approx(bounds.loc["held out", "elbo"])
    assert values["predictive"]["mean"]["in 90% interval"] == checks.coverage("mean")
    assert values["convergence"]["epochs"] == 3


def test_convergence_compares_the_last_epochs() -> None:
    import pandas as pd

    class Model:
        def __init__(self, losses) -> None:
            self.history = {"elbo_train": pd.DataFrame({"elbo_train": losses})}

    flat = convergence(Model(np.r_[np.linspace(200, 100, 60), np.full(40, 100.0)]))
    assert flat["converged"]
    assert flat["relative_change"] == 0
    moving = convergence(Model(np.linspace(200, 100, 100)))
    assert not moving["converged"]
    assert moving["relative_change"] > 0
    assert convergence(Model([1.0]))["relative_change"] is None


def test_least_expected_variables_come_first(checks) -> None:
    table = least_expected(checks, count=3)
    p = checks.p_values("variance").to_numpy()
    extreme = np.sort(np.minimum(p, 1 - p))[:3]
    np.testing.assert_allclose(np.minimum(table["p"], 1 - table["p"]), extreme)
    name = table.index[0]
    assert table.loc[name, "mean"] == float(checks.observed["mean"].sel(var=name))


def test_an_untrained_model_is_refused_and_nothing_written(tmp_path) -> None:
    adata = pv.data.synthetic_iid(batch_size=10, n_genes=5)
    pv.model.SCVI.setup_anndata(adata)
    with pytest.raises(ModelError, match="not been trained"):
        pv.criticism.report(pv.model.SCVI(adata), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_more_epochs_are_advised_only_where_held_out_observations_gain(trained) -> None:
    from pyrovi.criticism.model_report import _held_out_verdict

    kept = dict(trained._history)
    epochs = range(20)
    try:
        trained._history["elbo_validation"] = {e: 100.0 - e for e in epochs}
        assert "more epochs may help" in _held_out_verdict(trained)
        trained._history["elbo_validation"] = {e: 100.0 + abs(e - 7) for e in epochs}
        assert "in epoch 7" in _held_out_verdict(trained)
        assert "training observations alone" in _held_out_verdict(trained)
        del trained._history["elbo_validation"]
        assert "hold observations out" in _held_out_verdict(trained)
    finally:
        trained._history = kept
