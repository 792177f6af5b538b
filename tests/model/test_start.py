"""SVI that starts near the posterior, and the defaults of models made by from_pyro."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi as pv
from pyrovi.errors import TrainingError
from pyrovi.model.start import can_start_near, start_near_posterior


def trend(year: Any, y: Any) -> None:
    """A slope and an intercept that are nearly the same thing: years are far from 0."""
    a = pyro.sample("a", dist.Normal(0.0, 100.0))
    b = pyro.sample("b", dist.Normal(0.0, 0.1))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(a + b * year, 1.0), obs=y)


@pytest.fixture
def frame() -> pd.DataFrame:
    year = np.arange(1952.0, 2014.0)
    y = 9 + 0.02 * (year - 1983) + np.random.default_rng(0).normal(size=len(year))
    return pd.DataFrame({"year": year, "y": y})


def exact(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    X = np.column_stack([np.ones(len(frame)), frame["year"]])
    precision = X.T @ X + np.diag([1e-4, 1e2])
    return np.linalg.solve(precision, X.T @ frame["y"].to_numpy()), precision


def draws_of(model: Any) -> np.ndarray:
    draws = model.sample_posterior(["a", "b"], num_samples=4000)
    return np.column_stack([draws["a"], draws["b"]]).astype(float)


@pytest.mark.parametrize("guide", ["normal", "mvn", "flow"])
def test_a_guide_starts_at_the_best_member_of_its_family(guide: str, frame: pd.DataFrame) -> None:
    mean, precision = exact(frame)
    assert np.corrcoef(np.linalg.inv(precision))[0, 1] < -0.99
    sd = (
        np.diag(precision) ** -0.5
        if guide == "normal"
        else np.diag(np.linalg.inv(precision)) ** 0.5
    )
    model = pv.from_pyro(trend, frame, guide=guide)
    start_near_posterior(model)
    found = draws_of(model)
    posterior_sd = np.diag(np.linalg.inv(precision)) ** 0.5
    assert (np.abs(found.mean(0) - mean) < 0.1 * posterior_sd).all()
    assert found.std(0) == pytest.approx(sd, rel=0.06)


def test_training_does_not_leave_it(frame: pd.DataFrame) -> None:
    mean, precision = exact(frame)
    sd = np.diag(np.linalg.inv(precision)) ** 0.5
    model = pv.from_pyro(trend, frame, guide="mvn")
    model.train(max_epochs=200, enable_progress_bar=False)
    found = draws_of(model)
    assert (np.abs(found.mean(0) - mean) < 0.1 * sd).all()
    assert found.std(0) == pytest.approx(sd, rel=0.08)


def test_less_noise_needs_fewer_steps(frame: pd.DataFrame) -> None:
    """A guide that has become the posterior has no noise; independent coordinates have much."""
    mean, precision = exact(frame)
    sd = np.diag(np.linalg.inv(precision)) ** 0.5
    model = pv.from_pyro(trend, frame, guide="mvn")
    model.train(enable_progress_bar=False)
    assert len(model.history["elbo_train"]) == 250
    found = draws_of(model)
    assert (np.abs(found.mean(0) - mean) < 0.1 * sd).all()
    assert found.std(0) == pytest.approx(sd, rel=0.05)
    assert start_near_posterior(pv.from_pyro(trend, frame, guide="mvn")) < 0.05
    assert start_near_posterior(pv.from_pyro(trend, frame, guide="normal")) > 0.8
    assert start_near_posterior(pv.from_pyro(trend, frame, guide="flow")) == np.inf


def test_points_start_at_the_mode(frame: pd.DataFrame) -> None:
    mean, precision = exact(frame)
    model = pv.from_pyro(trend, frame, guide="delta")
    start_near_posterior(model)
    sd = np.diag(np.linalg.inv(precision)) ** 0.5
    assert (np.abs(draws_of(model).mean(0) - mean) < 0.02 * sd).all()


def test_the_same_seed_starts_at_the_same_place(frame: pd.DataFrame) -> None:
    states = []
    for _ in range(2):
        model = pv.from_pyro(trend, frame, guide="mvn")
        before = torch.get_rng_state()
        start_near_posterior(model)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(model.module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_cannot_start_so(frame: pd.DataFrame) -> None:
    def local(y: Any) -> None:
        with pv.obs_plate():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    model = pv.from_pyro(local, frame)
    assert not can_start_near(model)
    with pytest.raises(TrainingError, match="guide by name whose sites are all global"):
        model.train(start="pathfinder")
    with pytest.raises(TrainingError, match="must be None or 'pathfinder', got 'laplace'"):
        pv.from_pyro(trend, frame).train(start="laplace")


@pytest.mark.parametrize("wrong", [{"early_stopping": True}, {"lerning_rate": 0.1}])
def test_a_refused_call_leaves_the_posterior(wrong: dict[str, Any], frame: pd.DataFrame) -> None:
    model = pv.from_pyro(trend, frame)
    model.train(method="laplace")
    before = draws_of(model)
    with pytest.raises(TrainingError):
        model.train(**wrong)
    np.testing.assert_array_equal(draws_of(model), before)


def test_outcomes_are_predicted_for_covariates_alone(frame: pd.DataFrame) -> None:
    model = pv.from_pyro(trend, frame)
    model.train(method="laplace")
    new = pd.DataFrame({"year": [1960.0, 2000.0]}, index=["then", "later"])
    predicted = model.posterior_predictive(adata=new, num_samples=2000)["y"]
    assert list(predicted["obs"].values) == ["then", "later"]
    mean, precision = exact(frame)
    X = np.column_stack([np.ones(2), new["year"]])
    variance = 1 + np.einsum("ni,ij,nj->n", X, np.linalg.inv(precision), X)
    assert predicted.mean("draw").values == pytest.approx(X @ mean, abs=0.12)
    assert predicted.std("draw").values == pytest.approx(variance**0.5, rel=0.06)
    assert list(new.columns) == ["year"]


def test_simulated_tables_are_data_for_the_same_story(frame: pd.DataFrame) -> None:
    simulated = pv.from_pyro(trend, frame).simulate(seed=1)
    again = pv.from_pyro(trend, simulated)
    assert again.sites["y"].shape == ("obs",)


def test_az_loo_works_on_the_default_export(frame: pd.DataFrame) -> None:
    model = pv.from_pyro(trend, frame)
    model.train(method="laplace")
    exported = model.to_arviz(num_samples=50)
    groups = exported.groups() if callable(exported.groups) else exported.groups
    assert any("log_likelihood" in group for group in groups)
