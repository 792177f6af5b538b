"""Draws are joint, exact, repeatable, and independent of how the observations are divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.module.stories import Factors, Hierarchy, Mean, given

from pyrovi.module.ledger import Role, Site
from pyrovi.posterior.engine import (
    ELEMENT_BUDGET,
    EVALUATION_BUDGET,
    _Collected,
    bounded_batch_size,
    draws_at_once,
)


@pytest.fixture(scope="module")
def column() -> np.ndarray:
    return np.random.default_rng(1).normal(1.0, 2.0, size=(30, 1)).astype(np.float32)


def test_draws_are_joint_across_globals_deterministics_and_minibatches(column: np.ndarray) -> None:
    model = given(column, Hierarchy(column))
    draws = model.sample_posterior(["mu", "negative", "offset", "z"], num_samples=200, batch_size=7)
    mu = draws["mu"].values
    np.testing.assert_allclose(draws["negative"], -mu)
    np.testing.assert_allclose(draws["offset"], np.tile(mu[:, None], (1, 30)))
    # z of different minibatches are dependent through mu, by a known amount
    z = draws["z"].values
    precision = 1 / Hierarchy.between**2 + 1 / Hierarchy.within**2
    shared = model.module.scale.item() / Hierarchy.between**2 / precision
    correlation = shared**2 / (shared**2 + 1 / precision)
    many = model.sample_posterior("z", num_samples=20_000, batch_size=7, indices=[0, 29])["z"]
    assert np.corrcoef(many.values.T)[0, 1] == pytest.approx(correlation, abs=4 / 20_000**0.5)
    assert z.shape == (200, 30)


def test_global_draws_do_not_depend_on_the_observations(column: np.ndarray) -> None:
    model = given(column, Hierarchy(column))
    draws = [
        model.sample_posterior("mu", num_samples=20, **options)["mu"].values
        for options in ({}, {"batch_size": 3}, {"indices": [4, 2]}, {"batch_size": 30})
    ]
    for other in draws[1:]:
        np.testing.assert_array_equal(draws[0], other)


def test_same_seed_and_batch_size_same_bits(column: np.ndarray) -> None:
    model = given(column, Hierarchy(column))

    def draw(seed: int) -> np.ndarray:
        torch.manual_seed(np.random.default_rng().integers(1000))  # the caller's state is no input
        return model.sample_posterior("z", num_samples=5, batch_size=8, seed=seed)["z"].values

    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


def test_minibatches_do_not_share_noise(column: np.ndarray) -> None:
    model = given(np.zeros_like(column), Hierarchy(column))
    z = model.sample_posterior("z", num_samples=3_000, batch_size=10)["z"].values
    z = z - model.sample_posterior("mu", num_samples=3_000)["mu"].values[:, None] / 5
    correlation = np.corrcoef(z.T) - np.eye(30)
    assert np.abs(correlation).max() < 5.5 / 3_000**0.5


def test_exact_moments_of_local_and_global_draws() -> None:
    module = Factors()
    X = module.simulate(6).astype(np.float32)
    model = given(X, module)
    z = model.sample_posterior("z", num_samples=20_000, batch_size=4)["z"]
    assert z.dims == ("draw", "obs", "factor")
    loc, covariance = (t.double().numpy() for t in module.moments(torch.as_tensor(X)))
    error = np.sqrt(np.diag(covariance) / 20_000)
    assert np.abs((z.values.mean(0) - loc) / error).max() < 5
    for n in range(6):
        found = np.cov(z.values[:, n].T)
        np.testing.assert_allclose(found, covariance, atol=5 * 1.5 * covariance.max() / 20_000**0.5)


def test_posterior_predictive_moments(column: np.ndarray) -> None:
    loc, scale = Mean.exact_posterior(column)
    model = given(column, Mean(loc, scale))
    x = model.posterior_predictive(num_samples=20_000, indices=[0, 1])["X"].values[..., 0]
    sd = np.hypot(scale, Mean.sd)
    assert np.abs((x.mean(0) - loc) / (sd / 20_000**0.5)).max() < 5
    np.testing.assert_allclose(x.std(0), sd, rtol=5 / (2 * 20_000) ** 0.5)
    # two observations of one joint draw share mu
    assert np.corrcoef(x.T)[0, 1] == pytest.approx(scale**2 / sd**2, abs=5 / 20_000**0.5)


def test_prior_and_prior_predictive_moments(column: np.ndarray) -> None:
    model = given(column, Mean())
    prior = model.sample_prior(num_samples=20_000, indices=[0, 5])
    assert set(prior) == {"mu", "twice", "X"}
    np.testing.assert_allclose(prior["twice"], 2 * prior["mu"].values[:, None].repeat(2, 1))
    x = prior["X"].values[..., 0]
    sd = np.hypot(Mean.prior_sd, Mean.sd)
    assert np.abs(x.mean(0)).max() < 5 * sd / 20_000**0.5
    np.testing.assert_allclose(x.std(0), sd, rtol=5 / (2 * 20_000) ** 0.5)
    assert np.corrcoef(x.T)[0, 1] == pytest.approx((Mean.prior_sd / sd) ** 2, abs=0.03)


def test_observations_come_back_in_the_order_asked_for() -> None:
    module = Factors()
    model = given(module.simulate(20), module)
    order = [13, 2, 7, 19, 0]
    found = model.log_likelihood(num_samples=4_000, indices=order, batch_size=2, reduce="mean")
    whole = model.log_likelihood(num_samples=4_000, reduce="mean")
    assert list(found["obs"].values) == [f"cell{i}" for i in order]
    np.testing.assert_allclose(found["X"], whole["X"].values[order], atol=0.2)


def test_an_intervention_changes_what_the_model_sees_and_not_the_guide() -> None:
    module = Factors()
    model = given(module.simulate(8), module)

    def double(minibatch):
        return minibatch.replace(tensors={**minibatch.tensors, "X": 0 * minibatch["X"]})

    plain = model.sample_posterior(["z", "loc"], num_samples=3)
    changed = model.sample_posterior(["z", "loc"], num_samples=3, intervention=double)
    np.testing.assert_array_equal(plain["z"], changed["z"])
    np.testing.assert_array_equal(plain["loc"], changed["loc"])


def test_bounds_of_memory() -> None:
    wide = Site("x", Role.LOCAL, ("obs",), ("obs", 1000), ("obs", "var"), 1)
    assert bounded_batch_size([wide], 1, 128) == 128
    assert bounded_batch_size([wide], 1000, 128) == ELEMENT_BUDGET // 10**6
    assert bounded_batch_size([wide], 10**9, 128) == 1
    module = Factors()
    given(module.simulate(8), module)
    assert draws_at_once(module, EVALUATION_BUDGET) == 1
    assert draws_at_once(module, 2**9) == EVALUATION_BUDGET // 2**9 // 4


@pytest.mark.slow
def test_memory_stays_bounded() -> None:
    import resource

    module = Factors(n_vars=500)
    model = given(module.simulate(2_000), module)
    model.sample_posterior("loc", num_samples=2, reduce="mean")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = model.sample_posterior("loc", num_samples=200, reduce=["mean", "q05"])
    assert result["loc"].shape == (2, 2_000, 500)
    # the draws themselves would be 0.8 GB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024


@pytest.mark.parametrize("axis", [0, 1])
def test_results_of_minibatches_are_put_together_in_order(axis: int) -> None:
    """However many there are, and whatever a function of the user makes of each."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(3, n) if axis else (n, 3)) for n in (1, 700, 900, 5, 2000)]
    parts[0] = np.ones_like(parts[0], dtype=np.int64)  # a type that cannot hold the others
    collected = _Collected(_Local(axis), sum(part.shape[axis] for part in parts))  # type: ignore[arg-type]
    assert collected.is_empty
    for part in parts:
        collected.append(part)
    found = collected.together()
    np.testing.assert_array_equal(found, np.concatenate(parts, axis))
    assert found.base is None
    assert found.dtype == np.float64


class _Local:
    """What the collection asks a site."""

    is_local = True

    def __init__(self, obs_axis: int) -> None:
        self.obs_axis = obs_axis
