"""The matrix of marginal log-likelihoods against closed forms; diagnostics of the weights."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from scipy import stats
from tests.criticism.exact import exact_conditional, exact_model, simulated
from tests.module.stories import Factors, Mean, Pair, given
from torch import Tensor

from pyrovi.errors import ModelError
from pyrovi.model.local_fit import local_fit
from pyrovi.model.marginal import marginal_log_likelihood
from pyrovi.module import PyroBaseModule, obs_plate
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.pareto import khat_threshold

DATA = simulated(40)


def test_exact_encoder_gives_the_exact_matrix_whatever_the_number_of_draws() -> None:
    model = exact_model(*DATA)
    means = model.sample_posterior("m", num_samples=6, seed=2)["m"].values
    exact = exact_conditional(*DATA, means)
    for num_inner, batch_size in ((1, 40), (30, 7)):
        found = marginal_log_likelihood(
            model, num_samples=6, num_inner=num_inner, batch_size=batch_size, seed=2
        )
        assert found["log_likelihood"].dims == ("draw", "obs")
        assert found["obs"].values[3] == "cell3"
        np.testing.assert_allclose(found["log_likelihood"], exact, atol=2e-4)
    np.testing.assert_array_equal(found["khat"] <= 0.1, True)
    np.testing.assert_allclose(found["ess"], 30, rtol=1e-3)
    assert found.attrs["num_inner"] == 30
    assert found.attrs["khat_threshold"] == khat_threshold(30)


def test_never_above_the_evidence_at_any_ratio_of_plate_and_minibatch() -> None:
    """N / B = 50: a plate's scale inside the weights would break the bound."""
    X, W, sd = simulated(300)
    model = exact_model(X, W, sd, widen=1.6, shift=0.1)
    gaps = []
    for num_inner in (1, 10, 200):
        found = marginal_log_likelihood(
            model, num_samples=100, num_inner=num_inner, batch_size=6, indices=np.arange(12)
        )
        means = model.sample_posterior("m", num_samples=100)["m"].values
        gap = found["log_likelihood"].values - exact_conditional(X[:12], W, sd, means)
        error = gap.std(0) / 10
        assert (gap.mean(0) < 4 * error).all()
        gaps.append(gap.mean())
    assert gaps[0] < -0.5
    assert gaps[0] < gaps[1] < gaps[2] < 1e-3
    assert gaps[2] > -0.02


def test_query_of_others_and_of_some() -> None:
    X, W, sd = simulated(20)
    model = exact_model(X, W, sd)
    order = [7, 3, 11]
    means = model.sample_posterior("m", num_samples=3)["m"].values
    exact = exact_conditional(X, W, sd, means)[:, order]
    options = {"num_samples": 3, "num_inner": 2}
    found = marginal_log_likelihood(model, indices=order, **options)
    np.testing.assert_allclose(found["log_likelihood"], exact, atol=2e-4)
    other = model.adata[order].copy()
    found = marginal_log_likelihood(model, adata=other, **options)
    np.testing.assert_allclose(found["log_likelihood"], exact, atol=2e-4)
    assert list(found["obs"].values) == ["cell7", "cell3", "cell11"]


def test_without_local_latents_it_is_the_log_likelihood() -> None:
    X = np.random.default_rng(1).normal(1.0, 2.0, size=(30, 1))
    model = given(X, Mean(*Mean.exact_posterior(X)))
    found = marginal_log_likelihood(model, num_samples=9, seed=1)
    expected = model.log_likelihood(num_samples=9, seed=1)["X"]
    np.testing.assert_allclose(found["log_likelihood"], expected, rtol=1e-6)
    assert set(found.data_vars) == {"log_likelihood"}
    assert found.attrs["kind"] == "conditional"


def test_enumerated_sites_are_summed_out() -> None:
    def story(X: torch.Tensor) -> None:
        with obs_plate():
            k = pyro.sample(
                "k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"}
            )
            pyro.sample("X", dist.Normal(4.0 * k[..., None], 1.0).to_event(1), obs=X)

    X = np.random.default_rng(1).normal(1.0, 2.0, size=(30, 1))
    found = marginal_log_likelihood(given(X, Pair(story)), num_samples=2)
    parts = [np.log(p) + stats.norm(4 * k, 1).logpdf(X[:, 0]) for k, p in enumerate((0.3, 0.7))]
    exact = np.logaddexp(*parts)
    np.testing.assert_allclose(found["log_likelihood"], [exact, exact], atol=1e-5)


def test_automatic_guides_count_their_jacobian_once() -> None:
    def story(X: torch.Tensor) -> None:
        with obs_plate():
            size = pyro.sample("size", dist.Gamma(3.0, 2.0))
            pyro.sample("X", dist.Exponential(size[..., None]).to_event(1), obs=X)

    X = np.abs(np.random.default_rng(1).normal(1.0, 1.0, size=(20, 1))).astype(np.float32)
    model = given(X, Pair(story, AutoNormal(story, init_scale=0.6)))
    found = marginal_log_likelihood(model, num_samples=1, num_inner=20_000)
    # a gamma mixture of exponentials is a Lomax distribution
    exact = stats.lomax(3.0, scale=2.0).logpdf(X[:, 0])
    np.testing.assert_allclose(found["log_likelihood"][0], exact, atol=0.03)


def test_same_bits_and_no_trace() -> None:
    model = exact_model(*DATA, widen=1.5)
    options = {"num_samples": 3, "num_inner": 4}
    state = torch.get_rng_state()
    one = marginal_log_likelihood(model, seed=1, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.identical(marginal_log_likelihood(model, seed=1, **options))
    assert not one.equals(marginal_log_likelihood(model, seed=2, **options))


def test_stories_that_cannot_be_vectorised_give_the_same() -> None:
    module = Factors()
    X = module.simulate(8)
    exact = module.log_marginal(X.astype(np.float32))

    class Branching(Factors):
        def guide(self, X: torch.Tensor) -> None:
            super().guide(X)
            if bool(torch.rand(()) < -1):  # no vmap over a branch
                raise AssertionError

    found = marginal_log_likelihood(given(X, Branching()), num_samples=2, num_inner=3)
    np.testing.assert_allclose(found["log_likelihood"], [exact, exact], atol=2e-5)


def test_fitted_proposals_follow_the_globals_and_are_exact_where_densities_are_quadratic() -> None:
    X, W, sd = simulated(30)
    model = exact_model(X, W, sd, widen=0.3, shift=2.0)
    model.module.tril.mul_(20)  # globals that differ by several standard deviations of the locals
    options = {"num_samples": 8, "num_inner": 400}
    found = marginal_log_likelihood(model, **options)
    exact = exact_conditional(X, W, sd, model.sample_posterior("m", num_samples=8)["m"].values)
    assert found["fitted"].values.all()
    assert (found["khat"] < 0.4).all()
    np.testing.assert_allclose(found["log_likelihood"], exact, atol=0.15)
    # normal draws with 1.2 times the standard deviation: E[w]^2 / E[w^2] in 3 dimensions
    share = (np.sqrt(2 - 1 / 1.44) / 1.2) ** 3
    np.testing.assert_allclose(found["ess"].mean() / 400, share, rtol=0.05)
    untouched = marginal_log_likelihood(exact_model(X, W, sd), **options)
    assert not untouched["fitted"].values.any()


def test_fitted_proposals_of_positive_latents_and_skewed_posteriors() -> None:
    """x_n ~ Poisson(size_n), size_n ~ Gamma: the evidence is negative binomial."""

    def story(X: torch.Tensor) -> None:
        with obs_plate():
            size = pyro.sample("size", dist.Gamma(3.0, 0.5))
            pyro.sample("X", dist.Poisson(size[..., None]).to_event(1), obs=X)

    X = np.random.default_rng(1).poisson(6.0, size=(20, 1)).astype(np.float32)
    X[0] = 60.0
    model = given(X, Pair(story, AutoNormal(story, init_scale=0.05)))
    found = marginal_log_likelihood(model, num_samples=1, num_inner=20_000)
    exact = stats.nbinom(3.0, 0.5 / 1.5).logpmf(X[:, 0])
    assert found["fitted"].values.all()
    assert (found["khat"] < found.attrs["khat_threshold"]).mean() > 0.9
    np.testing.assert_allclose(found["log_likelihood"][0], exact, atol=0.03)
    guided = marginal_log_likelihood(model, num_samples=1, num_inner=2_000, fit=False)
    assert not guided["fitted"].values.any()
    assert (guided["log_likelihood"][0] < exact - 1).all()


def test_fitted_proposals_come_from_far_away() -> None:
    """A guide in one place for all, where the density is as steep as can be."""

    def story(X: torch.Tensor) -> None:
        with obs_plate():
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("X", dist.Poisson((3 * z).exp()).to_event(1), obs=X)

    class Far(PyroBaseModule):
        def model(self, X: Tensor) -> None:
            story(X)

        def guide(self, X: Tensor) -> None:
            with self.obs_plate():
                pyro.sample("z", dist.Normal(torch.full((2,), 5.0), 0.1).to_event(1))

    X = np.random.default_rng(0).poisson(2.0, size=(6, 2)).astype(np.float32)
    found = marginal_log_likelihood(given(X, Far()), num_samples=1, num_inner=2_000)
    grid = np.linspace(-8, 8, 20_001)
    log_joint = stats.poisson.logpmf(X[..., None], np.exp(3 * grid)) + stats.norm.logpdf(grid)
    exact = np.log(np.exp(log_joint).sum(-1) * (grid[1] - grid[0])).sum(-1)
    np.testing.assert_allclose(found["log_likelihood"][0], exact, atol=0.15)


def test_a_fit_to_one_of_two_modes_does_not_replace_a_guide_that_sees_both() -> None:
    class Square(PyroBaseModule):
        def model(self, X: Tensor) -> None:
            with self.obs_plate():
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("X", dist.Normal(z.square(), 0.1), obs=X[..., 0])

        def guide(self, X: Tensor) -> None:
            with self.obs_plate():
                pyro.sample("z", dist.Normal(torch.zeros(len(X)), 0.6))

    X = np.linspace(0.5, 2.5, 20)[:, None].astype(np.float32)
    model = given(X, Square())
    options = {"num_samples": 40, "num_inner": 100}
    found = marginal_log_likelihood(model, **options)
    guided = marginal_log_likelihood(model, fit=False, **options)
    grid = np.linspace(-4, 4, 20_001)
    log_joint = stats.norm.logpdf(X, grid**2, 0.1) + stats.norm.logpdf(grid)
    exact = np.log(np.exp(log_joint).sum(-1) * (grid[1] - grid[0]))
    error, before = (f["log_likelihood"].mean("draw").values - exact for f in (found, guided))
    sees_both = np.abs(before) < 0.25
    assert sees_both.sum() > 5
    assert (np.abs(error)[sees_both] < 0.25).all()
    assert (np.abs(error) < np.maximum(np.abs(before), np.log(2) + 0.05)).all()


def test_densities_that_overflow_for_some_draws_are_no_end_of_the_query() -> None:
    class Steep(PyroBaseModule):
        def model(self, X: Tensor) -> None:
            s = pyro.sample("s", dist.LogNormal(0.0, 5.0))
            with self.obs_plate():
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("X", dist.Poisson((s * z).exp()).to_event(1), obs=X)

        def guide(self, X: Tensor) -> None:
            pyro.sample("s", dist.LogNormal(0.0, 5.0))
            with self.obs_plate():
                pyro.sample("z", dist.Normal(torch.zeros(3), 0.1).to_event(1))

    X = np.random.default_rng(0).poisson(1.0, size=(12, 3)).astype(np.float32)
    found = marginal_log_likelihood(given(X, Steep()), num_samples=20, num_inner=100)
    assert found["log_likelihood"].notnull().all()


def test_latents_that_have_no_map_to_real_numbers_keep_the_guide() -> None:
    class Mixed(PyroBaseModule):
        def model(self, X: Tensor) -> None:
            weights = dist.Categorical(torch.tensor([0.5, 0.5]))
            prior = dist.MixtureSameFamily(weights, dist.Normal(torch.tensor([-1.0, 1.0]), 0.5))
            with self.obs_plate():
                z = pyro.sample("z", prior)
                pyro.sample("X", dist.Normal(z, 0.1), obs=X[..., 0])

        def guide(self, X: Tensor) -> None:
            with self.obs_plate():
                pyro.sample("z", dist.Normal(X[..., 0] + 0.2, 0.02))

    X = np.random.default_rng(0).normal(size=(8, 1)).astype(np.float32)
    found = marginal_log_likelihood(given(X, Mixed()), num_samples=2, num_inner=100)
    assert (found["khat"] > found.attrs["khat_threshold"]).any()
    assert not found["fitted"].values.any()


@pytest.mark.parametrize("name", ["num_samples", "num_inner"])
def test_bad_numbers(name: str) -> None:
    with pytest.raises(ModelError, match=f"{name} must be at least 1, got 0"):
        marginal_log_likelihood(exact_model(*DATA), **{name: 0})


def test_point_estimates_of_locals_are_refused() -> None:
    def story(X: torch.Tensor) -> None:
        with obs_plate():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("X", dist.Normal(z[..., None], 1.0).to_event(1), obs=X)

    model = given(np.zeros((5, 1)), Pair(story, AutoDelta(story)))
    with pytest.raises(ModelError, match=r"local latent.*'z'.*no density"):
        marginal_log_likelihood(model)
    with pytest.raises(ModelError, match=r"local latent.*'z'.*no density"):
        local_fit(model)


def test_models_without_observations_are_refused() -> None:
    def story(X: torch.Tensor) -> None:
        pyro.sample("m", dist.Normal(0.0, 1.0))

    model = given(np.zeros((5, 1)), Pair(story, AutoNormal(story)))
    with pytest.raises(ModelError, match="no observed site with a value per observation"):
        marginal_log_likelihood(model)


# ---------------------------------------------------------------------- local_fit


def test_exact_encoder_is_good_everywhere() -> None:
    fit = local_fit(exact_model(*DATA), num_inner=300)
    assert fit["good"].all()
    assert (fit["khat"] < 0.2).all()
    np.testing.assert_allclose(fit["ess"], 300, rtol=1e-3)
    np.testing.assert_allclose(fit["threshold"], khat_threshold(300))
    assert list(fit.index[:2]) == ["cell0", "cell1"]
    assert fit.index.name == "obs"


def test_too_narrow_encoder_is_flagged_cell_by_cell_and_a_wide_one_is_not() -> None:
    X, W, sd = simulated(40)
    batch = ["a", "b"] * 20
    narrow = local_fit(exact_model(X, W, sd, widen=0.25, batch=batch), num_inner=1000)
    off = np.array(batch) == "a"
    assert narrow["good"][~off].all()
    assert (narrow["khat"][off] > 0.7).mean() > 0.9
    assert narrow["ess"][off].max() < 500 < narrow["ess"][~off].min()
    # d = 3: a normal twice as wide loses draws, but no part of the posterior
    wide = local_fit(exact_model(X, W, sd, widen=2.0), num_inner=1000)
    assert wide["good"].all()
    # E[w]^2 / E[w^2] of normal densities, per dimension
    share = (np.sqrt(2 - 1 / 4) / 2) ** 3
    np.testing.assert_allclose(wide["ess"].mean() / 1000, share, rtol=0.05)


def test_log_marginal_is_the_evidence_given_the_globals() -> None:
    model = exact_model(*DATA, widen=1.2)
    fit = local_fit(model, num_inner=2000, num_samples=2, seed=5)
    means = model.sample_posterior("m", num_samples=2, seed=5)["m"].values
    np.testing.assert_allclose(
        fit["log_marginal"], exact_conditional(*DATA, means).mean(0), atol=0.05
    )


def test_the_users_data_are_not_written() -> None:
    model = exact_model(*DATA)
    before = model.adata.copy()
    local_fit(model, num_inner=200)
    assert model.adata.obs.equals(before.obs)
    assert list(model.adata.uns) == list(before.uns)


def test_local_fit_refuses() -> None:
    X = np.random.default_rng(1).normal(size=(10, 1))
    with pytest.raises(ModelError, match=r"latents are: mu\. There is no local posterior"):
        local_fit(given(X, Mean()))
    with pytest.raises(ModelError, match="num_inner must be at least 200"):
        local_fit(exact_model(*DATA), num_inner=199)


def test_proposals_after_mcmc_follow_a_scale_that_the_locals_have() -> None:
    # z ~ Normal(0, s), y ~ Normal(sum z, 1/2): the smaller s, the closer all z are to 0
    rng = np.random.default_rng(0)
    count, n, dim = 200, 12, 6
    y = rng.normal(size=(n, 1)).astype(np.float32) * 0.5

    class Funnel(PyroBaseModule):
        def model(self, X: Tensor) -> None:
            s = pyro.sample("s", dist.HalfNormal(1.0))
            with self.obs_plate():
                z = pyro.sample("z", dist.Normal(torch.zeros(dim), s).to_event(1))
                pyro.sample("X", dist.Normal(z.sum(-1), 0.5), obs=X[:, 0])

        def guide(self, X: Tensor) -> None:
            pyro.sample("s", dist.HalfNormal(1.0))
            with self.obs_plate():
                pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))

    s = np.exp(rng.uniform(-3, -0.5, count))
    prior = s[:, None, None] * rng.normal(size=(count, n, dim))
    gain = (s**2 / (dim * s**2 + 0.25))[:, None, None]
    residual = y[:, 0] + 0.5 * rng.normal(size=(count, n)) - prior.sum(-1)
    z = prior + gain * residual[..., None]
    model = given(y, Funnel())
    model.is_trained = True
    names = [str(name) for name in model.adata.obs_names]
    values = {"s": torch.as_tensor(s)[None].float(), "z": torch.as_tensor(z)[None].float()}
    model.module.use_posterior(StoredDraws(values, {"z": -2}, names))
    found = marginal_log_likelihood(model, num_samples=count, num_inner=100)
    exact = stats.norm.logpdf(y[:, 0], 0, np.sqrt(dim * s[:, None] ** 2 + 0.25))
    error = found["log_likelihood"].values - exact
    assert np.sqrt(np.square(error).mean()) < 0.2
    assert np.sqrt(np.square(error).mean()) < 2 * np.sqrt(np.square(found["mcse"]).mean())
