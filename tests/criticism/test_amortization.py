"""The amortisation gap against exact Kullback-Leibler divergences."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from scipy import stats
from tests.criticism.exact import exact_conditional, exact_model, simulated
from tests.module.stories import Mean, Pair, given

from pyrovi.errors import ModelError
from pyrovi.model.amortization import amortization_gap
from pyrovi.module import obs_plate

X, W, SD = simulated(30)


def test_exact_encoder_has_no_gap() -> None:
    model = exact_model(X, W, SD)
    gap = amortization_gap(model)
    np.testing.assert_allclose(gap["amortization_gap"], 0, atol=2e-3)
    np.testing.assert_allclose(gap["approximation_gap"], 0, atol=2e-3)
    means = model.sample_posterior("m", num_samples=1)["m"].values
    exact = exact_conditional(X, W, SD, means)[0]
    for bound in ("elbo", "refined", "log_marginal"):
        np.testing.assert_allclose(gap[bound], exact, atol=2e-3)
    assert gap.index[2] == "cell2"


def test_gap_of_a_wrong_encoder_is_its_divergence() -> None:
    widen, shift = 0.6, 0.3
    model = exact_model(X, W, SD, widen=widen, shift=shift, batch=["off", "right"] * 15)
    gap = amortization_gap(model, num_evaluation=4000)
    precision = np.eye(3) + W @ W.T / SD**2
    # KL(N(m + s, w^2 C) || N(m, C))
    exact = 0.5 * (3 * widen**2 + shift**2 * precision.sum() - 3) - 3 * np.log(widen)
    off = np.arange(30) % 2 == 0
    error = gap["gap_se"][off]
    assert ((gap["amortization_gap"][off] - exact).abs() < 5 * error).all()
    assert gap["amortization_gap"][off].mean() == pytest.approx(exact, rel=0.02)
    np.testing.assert_allclose(gap["amortization_gap"][~off], 0, atol=2e-3)
    np.testing.assert_allclose(gap["approximation_gap"], 0, atol=5e-3)


def test_diagonal_family_leaves_the_cost_of_independence() -> None:
    gap = amortization_gap(exact_model(X, W, SD), covariance="diagonal", num_evaluation=4000)
    precision = np.eye(3) + W @ W.T / SD**2
    # the optimum of a mean-field normal has the conditional variances
    exact = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    assert exact > 0.05
    # the exact encoder is not of this family: refined bounds are lower
    np.testing.assert_allclose(gap["amortization_gap"].mean(), -exact, atol=0.01)
    np.testing.assert_allclose(gap["approximation_gap"].mean(), exact, atol=0.01)


def test_constrained_latents() -> None:
    def story(X: torch.Tensor) -> None:
        with obs_plate():
            size = pyro.sample("size", dist.Gamma(3.0, 2.0))
            share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
            rate = size[..., None] * share[..., :1]
            pyro.sample("X", dist.Exponential(rate * 0 + size[..., None]).to_event(1), obs=X)

    data = np.abs(np.random.default_rng(1).normal(1.0, 1.0, size=(20, 1))).astype(np.float32)
    model = given(data, Pair(story, AutoNormal(story, init_scale=0.3)))
    gap = amortization_gap(model, num_draws=200, num_evaluation=4000)
    exact = stats.lomax(3.0, scale=2.0).logpdf(data[:, 0])
    np.testing.assert_allclose(gap["log_marginal"], exact, atol=0.08)
    assert gap["log_marginal"].mean() == pytest.approx(exact.mean(), abs=0.01)
    assert (gap["amortization_gap"] > 0.1).all()
    assert (gap["approximation_gap"] > 0).all()
    assert (gap["approximation_gap"] < 0.3).all()
    assert (gap["elbo"] < exact).all()


def test_scvi_gains_from_refinement(trained) -> None:
    state = {name: value.clone() for name, value in trained.module.state_dict().items()}
    gap = amortization_gap(trained, max_observations=20, num_draws=16, num_evaluation=200)
    assert len(gap) == 20
    assert (gap["amortization_gap"] > -3 * gap["gap_se"]).all()
    assert gap["amortization_gap"].mean() > 0.05
    assert (gap["log_marginal"] > gap["elbo"]).all()
    for name, value in trained.module.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(p.grad is None for p in trained.module.parameters())


def test_same_seed_same_bits() -> None:
    model = exact_model(X, W, SD, widen=1.4)
    before = torch.get_rng_state()
    one = amortization_gap(model, max_observations=5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.equals(amortization_gap(model, max_observations=5, seed=1))
    assert not one.equals(amortization_gap(model, max_observations=5, seed=2))


def test_refused() -> None:
    with pytest.raises(ModelError, match="no local posterior"):
        amortization_gap(given(np.zeros((4, 1)), Mean()))
    with pytest.raises(ModelError, match="covariance='banded' is unknown"):
        amortization_gap(exact_model(X, W, SD), covariance="banded")

    def story(X: torch.Tensor) -> None:
        with obs_plate():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("X", dist.Normal(z[..., None], 1.0).to_event(1), obs=X)

    with pytest.raises(ModelError, match="no density"):
        amortization_gap(given(np.zeros((5, 1)), Pair(story, AutoDelta(story))))
