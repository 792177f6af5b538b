"""Tests of the table of posterior moments."""

from __future__ import annotations

import numpy as np
import pytest
from tests.train.toys import QUIET, Local, Mean, toy

from pyrovi.errors import ModelError

az = pytest.importorskip("arviz")


@pytest.fixture(scope="module")
def model():
    model = toy(Mean, n_vars=3)
    model.train(2, n_restarts=3, num_workers=1, batch_size=8, **QUIET)
    return model


def test_it_is_that_of_the_guide(model):
    table = model.summary(num_samples=4000)
    assert list(table.index) == [f"mu[mu_dim_0={i}]" for i in range(3)] or len(table) == 3
    draws = model.sample_posterior("mu", num_samples=4000)["mu"].to_numpy()
    assert table["mean"].shape == (3,)
    assert (table["sd"] > 0).all()
    assert np.isfinite(table).all().all()
    assert table["r_hat"].max() < 10
    assert draws.shape == (4000, 3)


def test_intervals(model):
    eti = model.summary(num_samples=1500, probability=0.8)
    hdi = model.summary(num_samples=1500, probability=0.8, interval="hdi")
    width = hdi["hdi_0.8_high"] - hdi["hdi_0.8_low"]
    assert (width <= eti["eti_0.9"] - eti["eti_0.1"] + 1e-6).all()
    from pyrovi.model.summary import chain_draws

    values = chain_draws(model, num_samples=500)["mu"].to_numpy().reshape(1500, 3)
    np.testing.assert_allclose(eti["eti_0.1"], np.quantile(values, 0.1, axis=0), rtol=1e-5)
    np.testing.assert_allclose(eti["mean"], values.mean(0), rtol=1e-5)


def test_labels_choose_rows():
    model = toy(Local)
    model.train(1, batch_size=8, **QUIET)
    table = model.summary("z", coords={"obs": ["3", "5"]}, num_samples=20)
    assert len(table) == 4
    assert all("obs=3" in name or "obs=5" in name for name in table.index)
    assert table["r_hat"].isna().all()
    with pytest.raises(ModelError, match="no 'cell9'; labels are"):
        model.summary("z", coords={"obs": "cell9"}, num_samples=20)
    with pytest.raises(ModelError, match="dimension 'gene', which the sites do not have"):
        model.summary("z", coords={"gene": "a"}, num_samples=20)


def test_messages(model):
    with pytest.raises(ModelError, match="probability must be between 0 and 1, got 94"):
        model.summary(probability=94)
    with pytest.raises(ModelError, match="'eti' or 'hdi', got 'sd'"):
        model.summary(interval="sd")
    with pytest.raises(ModelError, match="align names the dimension 'factor'"):
        model.summary(align={"factor": "rotation"})


def test_number_of_draws_is_that_of_all_chains_together(model):
    assert model.summary(num_samples=30)["ess_bulk"].notna().all()
    with pytest.raises(ModelError, match="less than one draw of each of the 3 chains"):
        model.summary(num_samples=2)


def test_stored_draws_are_counted_as_sample_posterior_counts_them():
    import pyro
    import pyro.distributions as dist

    import pyrovi as pv

    def story(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    model = pv.from_pyro(story, {"y": np.arange(5.0)})
    model.train(method="nuts", num_chains=2, num_warmup=60, num_samples=20, num_workers=1)
    mean = float(model.sample_posterior("mu", num_samples=40)["mu"].mean())
    assert model.summary(num_samples=40).loc["mu", "mean"] == pytest.approx(mean, rel=1e-5)
    assert model.summary(num_samples=40).equals(model.summary())
    with pytest.raises(ModelError, match=r"41 draws were asked for and 40 are stored \(2 chain"):
        model.summary(num_samples=41)
