"""Pitfalls of vectorised draws, scaled plates and shared random states, by ``pv.from_pyro``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi as pv

pytestmark = pytest.mark.filterwarnings("ignore:.*not trained")

N = 11


def story(x: Any, y: Any) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pv.obs_plate():
        mu = pyro.deterministic("mu", w[..., 0] + w[..., 1] * x)
        pyro.sample("y", dist.Normal(mu, 0.5), obs=y)


@pytest.fixture(scope="module")
def model() -> Any:
    rng = np.random.default_rng(0)
    return pv.from_pyro(story, {"x": rng.normal(size=N), "y": rng.normal(size=N)})


def test_as_many_draws_as_observations_are_not_mixed_up(model: Any) -> None:
    """With S == N, draws of shape (S, D) broadcast against the observations without an error."""
    draws = model.sample_posterior(["w", "mu"], num_samples=N)
    w, x = draws["w"].values, model.adata.obs["x"].to_numpy()
    expected = w[:, :1] + w[:, 1:] * x
    np.testing.assert_allclose(draws["mu"].transpose("draw", "obs"), expected, atol=1e-5)


def test_deterministic_sites_keep_their_shape_without_data(model: Any) -> None:
    """``poutine.uncondition`` makes (N, N) of them, and of what is drawn from them."""
    draws = model.sample_prior(num_samples=5)
    assert draws["mu"].shape == draws["y"].shape == (5, N)
    noise = (draws["y"] - draws["mu"]).values
    assert noise.std() == pytest.approx(0.5, rel=0.3)


@pytest.mark.parametrize("batch_size", [1, 4, 10, N])
def test_likelihoods_have_no_scale_of_a_plate(model: Any, batch_size: int) -> None:
    """Whatever the minibatch, a last one of a single observation included."""
    draws = model.sample_posterior("w", num_samples=6)["w"].values
    x, y = (model.adata.obs[name].to_numpy() for name in "xy")
    z = (y - draws[:, :1] - draws[:, 1:] * x) / 0.5
    exact = -0.5 * z**2 - np.log(0.5) - 0.5 * np.log(2 * np.pi)
    found = model.log_likelihood(num_samples=6, batch_size=batch_size)["y"]
    np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_queries_leave_the_random_state_alone(model: Any) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    model.sample_prior(num_samples=2)
    model.get_elbo()
    model.to_arviz(num_samples=3)
    pv.criticism.loo(model, num_samples=30)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_the_weight_of_the_kl_term_does_not_reach_queries() -> None:
    """The ELBO in the middle of a warm-up is the same as after it."""
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=N), "y": rng.normal(size=N)}
    model = pv.from_pyro(story, data)
    plan = {"n_epochs_kl_warmup": 1000, "lr": 1e-9}
    before = model.get_elbo(num_samples=200)
    model.train(2, plan_kwargs=plan, start=None, enable_progress_bar=False)
    assert model.history["kl_weight"].to_numpy()[-1] < 0.1
    assert model.get_elbo(num_samples=200) == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("method", ["nuts", "laplace", "pathfinder"])
def test_every_method_is_diagnosed_and_asked_for_its_sensitivity(method: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    model = pv.from_pyro(story, {"x": x, "y": 0.5 + 0.3 * x + 0.5 * rng.normal(size=60)})
    options = {"nuts": {"num_samples": 200, "num_warmup": 200, "num_chains": 2}}.get(method, {})
    model.train(method=method, **options)
    found = pv.criticism.diagnose(model)
    assert found.method == ("nuts" if method == "nuts" else "approximation")
    assert found.passed, found
    if method != "laplace":  # which has no weights or chains of its own
        assert (found.table["verdict"] == "pass").any()
    table = pv.criticism.sensitivity(model).table
    assert len(table)
    assert not table.isna().all(axis=None)
