"""Power-scaling sensitivity of models whose posteriors are known."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta
from scipy import stats
from tests.module.stories import Factors, Hierarchy, Mean, Pair, given

from pyrovi.criticism.prior_sensitivity import CONFLICT, STRONG_PRIOR, sensitivity
from pyrovi.errors import ModelError
from pyrovi.model.log_prior import log_prior
from pyrovi.module import PyroBaseModule
from pyrovi.posterior.power_scaling import power_scaling_sensitivity


def mean_model(X: np.ndarray):
    X = np.asarray(X, dtype=float).reshape(-1, 1)
    return given(X, Mean(*Mean.exact_posterior(X)))


class Groups(PyroBaseModule):
    """m ~ N(0, 1); tau ~ LogNormal(0, 1); theta_g ~ N(m, tau); y_n ~ N(theta_g, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.site_dims = {"theta": ("group",)}

    def model(self, X: torch.Tensor, batch: torch.Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        theta = pyro.sample("theta", dist.Normal(m, tau).expand([2]).to_event(1))
        with self.obs_plate():
            loc = theta[batch[:, 0]]
            pyro.sample("X", dist.Normal(loc[..., None], 1.0).to_event(1), obs=X)

    def guide(self) -> None:
        pyro.sample("m", dist.Normal(0.2, 0.5))
        pyro.sample("tau", dist.LogNormal(0.1, 0.3))
        pyro.sample("theta", dist.Normal(torch.tensor([0.3, 0.9]), 0.2).to_event(1))


def test_weak_priors_are_not_flagged() -> None:
    found = sensitivity(mean_model(np.random.default_rng(0).normal(0.5, 1.5, 60)))
    row = found.table.loc["mu"]
    assert row["prior"] < 0.05 < row["likelihood"]
    assert row["diagnosis"] == ""
    assert found.passed
    assert found.reliable


def test_conflict_of_prior_and_data_is_flagged() -> None:
    found = sensitivity(mean_model(np.full(3, 9.0)))  # prior N(0, 2), data at 9
    assert found.table.loc["mu", "diagnosis"] == CONFLICT
    assert not found.passed
    assert CONFLICT in found.summary()


def test_a_likelihood_that_says_little_is_flagged() -> None:
    class Narrow(Mean):
        prior_sd, sd = 0.3, 1.5

    X = np.zeros((1, 1))
    module = Narrow(*Narrow.exact_posterior(X))
    found = sensitivity(given(X, module))
    assert found.table.loc["mu", "diagnosis"] == STRONG_PRIOR


def test_it_is_the_sensitivity_of_the_draws_to_the_exact_densities() -> None:
    X = np.random.default_rng(1).normal(2.0, 1.5, (8, 1))
    model = mean_model(X)
    draws = model.sample_posterior("mu", num_samples=1000, seed=3)["mu"].values.astype(float)
    prior, _ = power_scaling_sensitivity(draws[:, None], stats.norm(0, 2).logpdf(draws))
    log_likelihood = stats.norm(draws, 1.5).logpdf(X).sum(0)
    likelihood, _ = power_scaling_sensitivity(draws[:, None], log_likelihood)
    found = sensitivity(model, seed=3).table.loc["mu"]
    assert found["prior"] == pytest.approx(prior[0], rel=1e-3)
    assert found["likelihood"] == pytest.approx(likelihood[0], rel=1e-3)


def test_local_latents_are_integrated_out() -> None:
    """z_n has an exact guide, so the marginal likelihood is exact: N(mu, sqrt(1.25))."""
    X = np.random.default_rng(1).normal(1.0, 2.0, (20, 1))
    model = given(X, Hierarchy(X))
    draws = model.sample_posterior("mu", num_samples=500, seed=1)["mu"].values.astype(float)
    log_likelihood = stats.norm(draws, np.hypot(1.0, 0.5)).logpdf(X).sum(0)
    exact, _ = power_scaling_sensitivity(draws[:, None], log_likelihood)
    found = sensitivity(model, num_samples=500, num_inner=5, seed=1).table.loc["mu"]
    assert found["likelihood"] == pytest.approx(exact[0], rel=5e-3)


def test_only_top_level_priors_are_scaled_and_they_can_be_chosen() -> None:
    X = np.random.default_rng(0).normal(size=(10, 1))
    model = given(X, Groups(), batch=["a", "b"] * 5)
    found = sensitivity(model, num_samples=400)
    assert found.priors == ("m", "tau")  # the prior of theta depends on both
    assert list(found.table.index) == ["m", "tau", "theta[group=0]", "theta[group=1]"]
    assert list(found.by_prior) == ["m", "tau"]
    alone = sensitivity(model, "tau", priors="tau", num_samples=400)
    assert alone.table.loc["tau", "prior"] == pytest.approx(found.by_prior.loc["tau", "tau"])
    with pytest.raises(ModelError, match="depends on m, tau"):
        sensitivity(model, priors=["theta"])
    with pytest.raises(ModelError, match="'sigma', which is no global"):
        sensitivity(model, priors="sigma")


def test_what_is_observed_outside_the_plate_is_part_of_the_likelihood() -> None:
    class Outside(PyroBaseModule):
        def model(self) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
            pyro.sample("y", dist.Normal(mu, 0.5), obs=torch.tensor(3.0))

        def guide(self) -> None:
            pyro.sample("mu", dist.Normal(2.8, 0.5))

    model = given(np.zeros((4, 1)), Outside())
    draws = model.sample_posterior("mu", num_samples=1000)["mu"].values.astype(float)
    exact, _ = power_scaling_sensitivity(draws[:, None], stats.norm(3.0, 0.5).logpdf(draws))
    assert sensitivity(model).table.loc["mu", "likelihood"] == pytest.approx(exact[0], rel=1e-3)


class WithFactor(Mean):
    """The prior N(0, 2) of :class:`Mean` as N(0, 4) and a factor that makes up for it."""

    def model(self, X: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 4.0))
        pyro.factor("f", -0.5 * mu**2 * (1 / 4 - 1 / 16))
        with self.obs_plate():
            pyro.sample("X", dist.Normal(mu.expand(X.shape[-1]), self.sd).to_event(1), obs=X)


def test_factors_outside_the_plate_belong_to_the_prior() -> None:
    X = np.full((3, 1), 9.0)
    plain, model = mean_model(X), given(X, WithFactor(*Mean.exact_posterior(X)))
    found, expected = (sensitivity(one, seed=1) for one in (model, plain))
    assert found.priors == ("mu", "f")
    np.testing.assert_allclose(found.table["prior"], expected.table["prior"], rtol=1e-3)
    np.testing.assert_allclose(found.table["likelihood"], expected.table["likelihood"], rtol=1e-3)
    assert list(sensitivity(model, priors="f").by_prior) == ["f"]

    draws = model.sample_posterior("mu", num_samples=20, seed=2)["mu"].values.astype(float)
    parts = log_prior(model, num_samples=20, seed=2)
    assert list(parts) == ["mu", "f"]
    total = (parts["mu"] + parts["f"]).values - stats.norm(0, 2).logpdf(draws)
    np.testing.assert_allclose(total, total[0], atol=1e-5)
    assert list(model.to_arviz(groups=["posterior", "log_prior"]).log_prior) == ["mu", "f"]
    with pytest.raises(ModelError, match=r"Factor 'f' .* is part of the prior"):
        model.sample_prior()


def test_factors_are_the_likelihood_of_a_story_that_observes_nothing() -> None:
    def story(X: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        pyro.factor("f", dist.Normal(mu, 0.5).log_prob(torch.tensor(3.0)))

    def guide(X: torch.Tensor) -> None:
        pyro.sample("mu", dist.Normal(2.8, 0.5))

    model = given(np.zeros((4, 1)), Pair(story, guide))
    draws = model.sample_posterior("mu", num_samples=1000)["mu"].values.astype(float)
    exact, _ = power_scaling_sensitivity(draws[:, None], stats.norm(3.0, 0.5).logpdf(draws))
    assert sensitivity(model).table.loc["mu", "likelihood"] == pytest.approx(exact[0], rel=1e-3)
    prior = model.sample_prior("mu", num_samples=2000)["mu"]
    assert float(prior.std()) == pytest.approx(2.0, rel=0.1)


def test_log_prior_is_the_density_of_the_draws() -> None:
    model = given(np.zeros((8, 1)), Groups(), batch=["a", "b"] * 4)
    draws = model.sample_posterior(num_samples=50, seed=2)
    found = log_prior(model, num_samples=50, seed=2)
    m, tau = draws["m"].values.astype(float), draws["tau"].values.astype(float)
    np.testing.assert_allclose(found["m"], stats.norm(0, 1).logpdf(m), atol=1e-5)
    np.testing.assert_allclose(found["tau"], stats.lognorm(1).logpdf(tau), atol=1e-5)
    theta = stats.norm(m[:, None], tau[:, None]).logpdf(draws["theta"].values).sum(1)
    np.testing.assert_allclose(found["theta"], theta, atol=1e-4)
    assert found["theta"].dims == ("draw",)
    assert list(log_prior(model, "tau", num_samples=5)) == ["tau"]
    with pytest.raises(ModelError, match="'X' is no global"):
        log_prior(model, "X")


def test_models_without_a_posterior_of_globals_are_refused() -> None:
    with pytest.raises(ModelError, match="no global latent sites"):
        sensitivity(given(np.zeros((5, 4)), Factors()))
    with pytest.raises(ModelError, match="no global latent sites"):
        log_prior(given(np.zeros((5, 4)), Factors()))

    def story(X: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 1):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.zeros(1))

    with pytest.raises(ModelError, match="point estimate"):
        sensitivity(given(np.zeros((5, 1)), Pair(story, AutoDelta(story))), num_samples=50)


def test_figure_marks_what_has_a_diagnosis() -> None:
    ax = sensitivity(mean_model(np.full(3, 9.0))).plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["mu *"]
    assert len(ax.collections) == 3
