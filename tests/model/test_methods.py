"""``model.train(method=...)`` against posteriors that are known exactly."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from tests.module.stories import Hierarchy, Mean, given
from torch import Tensor

import pyrovi as pv
from pyrovi._settings import settings
from pyrovi.criticism.diagnose_mcmc import approximation_checks
from pyrovi.errors import ModelError, TrainingError
from pyrovi.model.chains import in_chain, num_chains
from pyrovi.module import PyroBaseModule
from pyrovi.module.stored import NormalPosterior, StoredDraws
from pyrovi.posterior.convergence import ess_bulk

QUICK = {"num_warmup": 200, "num_samples": 250, "num_chains": 2, "num_workers": 2}


class Regression(PyroBaseModule):
    """y ~ N(a + b x, 0.5), a, b ~ N(0, 10); x is far from centred, so that a and b correlate."""

    def model(self, X: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        with self.obs_plate():
            pyro.sample("y", dist.Normal(b[0] + b[1] * X[:, 1], 0.5), obs=X[:, 0])

    def guide(self) -> None:
        pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    @staticmethod
    def data() -> np.ndarray:
        rng = np.random.default_rng(0)
        x = 5 + rng.normal(size=40)
        return np.stack([1 + 2 * x + 0.5 * rng.normal(size=40), x], 1).astype(np.float32)

    @staticmethod
    def exact(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        design = np.stack([np.ones(len(X)), X[:, 1]], 1).astype(float)
        covariance = np.linalg.inv(design.T @ design / 0.25 + np.eye(2) / 100)
        return covariance @ design.T @ X[:, 0] / 0.25, covariance


class Rate(PyroBaseModule):
    """Bernoulli observations of a rate with a Beta(2, 3) prior."""

    def model(self, X: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        with self.obs_plate():
            pyro.sample("X", dist.Bernoulli(p), obs=X[:, 0])

    def guide(self) -> None:
        pyro.sample("p", dist.Beta(1.0, 1.0))


class Funnel(PyroBaseModule):
    """Neal's funnel: the scale of nine variables is a tenth one, over orders of magnitude."""

    def model(self) -> None:
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(torch.zeros(9), (v / 2).exp()).to_event(1))

    def guide(self) -> None:
        pyro.sample("v", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(torch.zeros(9), 1.0).to_event(1))


def assert_moments(draws: np.ndarray, mean: Any, sd: Any) -> None:
    """Mean and sd of draws ``(chain, draw, ...)`` within five standard errors by their ESS."""
    draws = np.asarray(draws, dtype=float)
    error = 1 / np.sqrt(ess_bulk(draws))
    squares = 1 / np.sqrt(2 * ess_bulk((draws - mean) ** 2))
    assert np.all(np.abs(draws.mean((0, 1)) - mean) < 5 * error * sd)
    assert np.all(np.abs(draws.std((0, 1)) / sd - 1) < 5 * squares + 0.02)


@pytest.fixture(scope="module")
def regression() -> Any:
    X = Regression.data()
    model = given(X, Regression())
    model.train(method="nuts", num_warmup=300, num_samples=500, num_chains=4, num_workers=2)
    return model, X


def chains(model: Any, site: str, indices: Any = None) -> np.ndarray:
    return np.asarray(model.to_arviz(site, indices=indices).posterior[site])


def test_nuts_on_a_correlated_regression(regression: Any) -> None:
    model, X = regression
    mean, covariance = Regression.exact(X)
    draws = chains(model, "b")
    assert draws.shape == (4, 500, 2)
    assert abs(np.corrcoef(draws.reshape(-1, 2).T)[0, 1]) > 0.95
    assert_moments(draws, mean, np.sqrt(np.diagonal(covariance)))
    contrast = np.array([1.0, 5.0])
    assert_moments(draws @ contrast, mean @ contrast, np.sqrt(contrast @ covariance @ contrast))


def test_sample_stats_and_attributes(regression: Any) -> None:
    model, X = regression
    data = model.to_arviz(groups=("posterior", "log_likelihood", "posterior_predictive"))
    stats_ = data.sample_stats
    assert set(stats_.data_vars) == {
        "diverging", "energy", "lp", "step_size", "tree_depth", "n_steps", "acceptance_rate"
    }  # fmt: skip
    assert stats_["energy"].dims == ("chain", "draw")
    assert stats_["energy"].shape == (4, 500)
    assert data.attrs["inference"] == "nuts"
    assert "note" not in data.attrs
    assert data.log_likelihood["y"].shape == data.posterior_predictive["y"].shape == (4, 500, 40)
    b = np.asarray(data.posterior["b"]).astype(float)
    exact = stats.norm(b[..., :1] + b[..., 1:] * X[:, 1], 0.5).logpdf(X[:, 0])
    np.testing.assert_allclose(data.log_likelihood["y"], exact, atol=2e-3)
    log_joint = exact.sum(-1) + stats.norm(0, 10).logpdf(b).sum(-1)
    np.testing.assert_allclose(stats_["lp"], log_joint, atol=0.02)
    # the kinetic energy of two momenta is half a chi-squared variable of two degrees of freedom
    kinetic = np.asarray(stats_["energy"] + stats_["lp"]).ravel()
    assert kinetic.min() > 0
    assert kinetic.mean() == pytest.approx(1.0, abs=0.25)
    assert np.all(np.asarray(stats_["n_steps"]) < 2 ** (np.asarray(stats_["tree_depth"]) + 1))
    # aimed at 0.8; with few dimensions the average of log step sizes ends on the careful side
    assert 0.7 < float(stats_["acceptance_rate"].mean()) < 0.97


def test_chains_are_different_and_one_can_be_asked(regression: Any) -> None:
    model, _ = regression
    draws = chains(model, "b")
    assert num_chains(model) == 4
    assert len({float(draw) for draw in draws[:, 10, 0]}) == 4
    with in_chain(model, 2):
        np.testing.assert_array_equal(model.sample_posterior("b")["b"], draws[2])
    every = model.sample_posterior("b")["b"]
    np.testing.assert_array_equal(every, draws.reshape(-1, 2))
    few = np.asarray(model.sample_posterior("b", num_samples=400)["b"])
    np.testing.assert_array_equal(few, np.asarray(every)[::5])
    with pytest.raises(ModelError, match="3000 draws were asked for and 2000 are stored"):
        model.sample_posterior("b", num_samples=3000)


def test_reductions_agree_with_the_draws(regression: Any) -> None:
    model, _ = regression
    draws = np.asarray(model.sample_posterior("b")["b"]).astype(float)
    reduced = model.sample_posterior("b", reduce=["mean", "sd"])["b"]
    np.testing.assert_allclose(reduced.sel(statistic="mean"), draws.mean(0), rtol=1e-5)
    with pytest.raises(ModelError, match="'nuts' gives draws without"):
        model.get_elbo()


def test_marginal_likelihood_without_locals_is_the_mean_of_likelihoods(regression: Any) -> None:
    model, X = regression
    b = np.asarray(model.sample_posterior("b")["b"]).astype(float)
    exact = stats.norm(b[:, :1] + b[:, 1:] * X[:, 1], 0.5).logpdf(X[:, 0])
    exact = np.logaddexp.reduce(exact, 0) - np.log(len(b))
    found = model.get_marginal_ll(num_global_samples=2000, n_mc_samples=1, return_mean=False)
    np.testing.assert_allclose(found, exact, atol=1e-3)


def test_same_seed_same_bits_whatever_the_processes() -> None:
    X = np.random.default_rng(0).normal(size=(10, 1))
    draws = []
    for workers, seed in ((2, 0), (1, 0), (2, 1)):
        settings.seed = seed
        model = given(X, Mean())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.train(method="nuts", **{**QUICK, "num_samples": 40, "num_workers": workers})
        draws.append(chains(model, "mu"))
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.isin(draws[0], draws[2]).any()
    assert not np.isin(draws[0][0], draws[0][1]).any()


def test_beta_binomial() -> None:
    X = (np.random.default_rng(1).random((30, 1)) < 0.3).astype(np.float32)
    model = given(X, Rate())
    model.train(method="nuts", **{**QUICK, "num_samples": 1000})
    exact = stats.beta(2 + X.sum(), 3 + len(X) - X.sum())
    assert_moments(chains(model, "p"), exact.mean(), exact.std())


def test_locals_of_a_hierarchy(tmp_path: Path) -> None:
    X = np.random.default_rng(2).normal(1.0, 1.1, size=(12, 1)).astype(np.float32)
    used = np.array([0, 2, 3, 5, 8, 11])
    model = given(X, Hierarchy(X))
    model.train(method="nuts", indices=used, **{**QUICK, "num_samples": 800})
    x = X[used, 0].astype(float)
    variance = 1 / (1 / 4 + len(x) / 1.25)
    mean = variance * x.sum() / 1.25
    assert_moments(chains(model, "mu"), mean, np.sqrt(variance))
    data = model.to_arviz().posterior
    assert list(data["obs"].values) == [f"cell{i}" for i in used]
    # E and Var of z_n = (mu + 4 x_n) / 5 + noise of variance 1 / 5
    assert_moments(data["z"].values, (mean + 4 * x) / 5, np.sqrt(0.2 + variance / 25))
    # one draw has the globals and locals of one another: mu and z correlate as they should
    draw = model.sample_posterior(["mu", "z", "offset"], indices=used)
    np.testing.assert_array_equal(draw["offset"], np.repeat(draw["mu"].values[:, None], 6, 1))
    correlation = np.corrcoef(draw["mu"].values, draw["z"].values[:, 0])[0, 1]
    exact = variance / 5 / np.sqrt(variance * (0.2 + variance / 25))
    assert correlation == pytest.approx(exact, abs=0.12)
    with pytest.raises(ModelError, match="no draws of 'z' for 6 of these 12"):
        model.sample_posterior("z")
    assert model.sample_posterior("mu").sizes["draw"] == 1600

    def evidence(one: Any) -> np.ndarray:
        options = {"num_global_samples": 50, "n_mc_samples": 200, "return_mean": False}
        return np.asarray(one.get_marginal_ll(indices=used[::-1], **options))

    mu = model.sample_posterior("mu", num_samples=50)["mu"].values.astype(float)
    likelihood = stats.norm(mu[:, None], np.sqrt(1.25)).logpdf(x[::-1])
    exact = np.logaddexp.reduce(likelihood, 0) - np.log(50)
    np.testing.assert_allclose(evidence(model), exact, atol=0.03)

    model.save(tmp_path / "model")
    from pyrovi.model.persistence import read_description

    assert read_description(tmp_path / "model")["posterior"]["obs_names"][1] == "cell2"


def test_initial_values_and_preconditioning_from_the_guide() -> None:
    X = Regression.data()
    model = pv.from_pyro(line, {"x": X[:, 1], "y": X[:, 0]}, guide="mvn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=20, lr=0.05, enable_progress_bar=False)
        model.train(method="nuts", num_chains=2, num_samples=200, num_warmup=150)
    mean, covariance = Regression.exact(X)
    assert_moments(chains(model, "b"), mean[1], np.sqrt(covariance[1, 1]))
    assert "trained by nuts (2 x 200 draws)" in repr(model)
    assert model._training.epochs == 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=1, enable_progress_bar=False)
    assert model.module.posterior is None
    assert model.sample_posterior("b").sizes["draw"] == 250


def test_divergences_of_a_funnel_are_reported() -> None:
    model = given(np.zeros((3, 1)), Funnel())
    with pytest.warns(UserWarning, match=r"transitions diverged.*non-centred"):
        model.train(method="nuts", **QUICK, max_tree_depth=6)
    assert int(model.to_arviz().sample_stats["diverging"].sum()) > 0


def test_map_in_closed_form() -> None:
    X = (np.random.default_rng(1).random((30, 1)) < 0.3).astype(np.float32)
    model = given(X, Rate())
    model.train(method="map")
    exact = (X.sum() + 1) / (len(X) + 3)  # the mode of Beta(2 + k, 3 + n - k), not of its logit
    assert float(model.sample_posterior("p")["p"][0]) == pytest.approx(exact, abs=1e-5)
    assert model.posterior_predictive(num_samples=20).sizes["draw"] == 20


def test_map_of_locals() -> None:
    X = np.random.default_rng(2).normal(size=(8, 1)).astype(np.float32)
    model = given(X, Hierarchy(X))
    model.train(method="map")
    # the joint mode of a normal is its mean
    mu = float(Hierarchy(X).loc)
    draw = model.sample_posterior()
    assert float(draw["mu"][0]) == pytest.approx(mu, abs=1e-4)
    np.testing.assert_allclose(draw["z"][0], (mu + 4 * X[:, 0]) / 5, atol=1e-4)


def test_laplace_is_exact_on_a_normal(tmp_path: Path) -> None:
    X = Regression.data()
    model = given(X, Regression())
    model.train(method="laplace")
    posterior = model.module.posterior
    assert isinstance(posterior, NormalPosterior)
    mean, covariance = Regression.exact(X)
    np.testing.assert_allclose(posterior.loc, mean, rtol=1e-4)
    found = posterior.scale_tril.double() @ posterior.scale_tril.double().T
    np.testing.assert_allclose(found, covariance, rtol=1e-4)
    design = np.stack([np.ones(len(X)), X[:, 1]], 1).astype(float)
    marginal = stats.multivariate_normal(np.zeros(40), 100 * design @ design.T + 0.25 * np.eye(40))
    # the ELBO of the exact posterior is the evidence, whatever the draws
    assert model.get_elbo() * 40 == pytest.approx(marginal.logpdf(X[:, 0]), abs=0.05)


def test_laplace_by_a_numeric_hessian() -> None:
    X = (np.random.default_rng(1).random((30, 1)) < 0.3).astype(np.float32)
    model = given(X, Rate())
    model.train(method="laplace")
    a, b = 2 + float(X.sum()), 3 + len(X) - float(X.sum())
    # in logits the density of Beta(a, b) has its mode at logit(a / (a + b))
    mode = np.log(a / b)
    log_density = lambda u: -a * np.log1p(np.exp(-u)) - b * np.log1p(np.exp(u))  # noqa: E731
    h = 1e-4
    second = (log_density(mode + h) - 2 * log_density(mode) + log_density(mode - h)) / h**2
    posterior: Any = model.module.posterior
    assert float(posterior.loc[0]) == pytest.approx(mode, abs=1e-5)
    assert float(posterior.scale_tril[0, 0]) == pytest.approx((-second) ** -0.5, rel=1e-4)


def test_laplace_refuses_flat_directions_and_locals() -> None:
    class Flat(PyroBaseModule):
        def model(self, X: Tensor) -> None:
            a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
            c = pyro.sample("c", dist.ImproperUniform(dist.constraints.real, (), ()))
            with self.obs_plate():
                pyro.sample("X", dist.Normal(a + c, 1.0), obs=X[:, 0])

        def guide(self) -> None:
            for name in "ac":
                pyro.sample(name, dist.Normal(0.0, 1.0))

    X = np.ones((5, 1), dtype=np.float32)
    with pytest.raises(TrainingError, match=r"not curved at its mode in a direction of a, c"):
        given(X, Flat()).train(method="laplace")
    for method in ("laplace", "pathfinder"):
        with pytest.raises(ModelError, match=r"all global.*'z'.*nuts"):
            given(X, Hierarchy(X)).train(method=method)


def test_pathfinder_on_a_normal() -> None:
    X = Regression.data()
    model = given(X, Regression())
    model.train(method="pathfinder", num_samples=2000)
    posterior = model.module.posterior
    assert isinstance(posterior, StoredDraws)
    mean, covariance = Regression.exact(X)
    draws = model.sample_posterior("b")["b"].values.astype(float)
    sd = np.sqrt(np.diagonal(covariance))
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.15 * sd.max())
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.1)
    assert float(posterior.statistics["khat"][0, 0]) < 0.7


def test_pathfinder_far_from_the_posterior_has_no_copies_and_says_so() -> None:
    class Heavy(PyroBaseModule):
        def model(self) -> None:
            scale = pyro.sample("scale", dist.HalfCauchy(1.0))
            pyro.sample("theta", dist.StudentT(2.0, torch.zeros(30), scale).to_event(1))

        def guide(self) -> None:
            pyro.sample("scale", dist.HalfCauchy(1.0))
            pyro.sample("theta", dist.Normal(torch.zeros(30), 1.0).to_event(1))

    model = given(np.zeros((2, 1), dtype=np.float32), Heavy())
    with pytest.warns(UserWarning, match=r"effective number \d+, 1000 distinct of 1000 draws"):
        model.train(method="pathfinder")
    known = {n: float(v[0, 0]) for n, v in model.module.posterior.statistics.items()}
    assert known["khat"] > 0.7
    assert known["num_distinct"] == 1000
    assert 1 <= known["importance_ess"] < 4000
    draws = model.module.posterior.value(model.module.posterior.names[0])
    assert len(torch.unique(draws.flatten(0, 1), dim=0)) == 1000
    checks = {check.what: check for check in approximation_checks(model)}
    value = checks["effective number of weighted draws"].value
    assert value == pytest.approx(known["importance_ess"])


def test_results_are_saved(tmp_path: Path) -> None:
    X = Regression.data()
    frame = {"x": X[:, 1], "y": X[:, 0]}

    for method, options in {
        "nuts": {**QUICK, "num_samples": 100},
        "laplace": {},
        "map": {},
    }.items():
        model = pv.from_pyro(line, frame)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.train(method=method, **options)
        model.save(tmp_path / method)
        loaded = pv.load(tmp_path / method, adata=False)
        assert repr(loaded).splitlines()[1:] == repr(model).splitlines()[1:]
        assert loaded._training.method == method
        for name, value in model.module.state_dict().items():
            torch.testing.assert_close(loaded.module.state_dict()[name], value, rtol=0, atol=0)
        same = loaded.sample_posterior("a", adata=model.adata)
        np.testing.assert_array_equal(same["a"], model.sample_posterior("a")["a"])


def line(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(a + b * x, 0.5), obs=y)


def test_wrong_options_teach() -> None:
    model = given(np.zeros((4, 1)), Mean())
    with pytest.raises(
        TrainingError, match=r"Unknown method 'mcmc'; train\(\) knows 'svi', 'nuts'"
    ):
        model.train(method="mcmc")
    with pytest.raises(TrainingError, match=r"does not take 'warmup'.*num_warmup"):
        model.train(method="nuts", warmup=3)
    with pytest.raises(TrainingError, match="does not take 'max_epochs'"):
        model.train(5, method="nuts")
    with pytest.raises(TrainingError, match=r"target_accept must be between 0 and 1, got 1\.5"):
        model.train(method="nuts", target_accept=1.5)
    assert model.module.posterior is None
    assert not model.is_trained


def test_parameters_without_a_prior_are_told() -> None:
    class Fixed(PyroBaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.log_sd = torch.nn.Parameter(torch.tensor(0.0))

        def model(self, X: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with self.obs_plate():
                pyro.sample("X", dist.Normal(mu, self.log_sd.exp()), obs=X[:, 0])

        def guide(self) -> None:
            pyro.sample("mu", dist.Normal(0.0, 1.0))

    model = given(np.zeros((4, 1)), Fixed())
    with pytest.warns(UserWarning, match="parameters log_sd, which method='map' does not estimate"):
        model.train(method="map")


def test_one_failing_chain_keeps_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyrovi.model.mcmc as mcmc

    model = given(np.zeros((4, 1)), Mean())
    model.train(method="laplace")
    run = mcmc.run_chain

    def failing(*args: Any, chain: int, **kwargs: Any) -> Any:
        if chain == 1:
            raise FloatingPointError("chain 1")
        return run(*args, chain=chain, **kwargs)

    monkeypatch.setattr(mcmc, "run_chain", failing)
    with pytest.raises(FloatingPointError, match="chain 1"):
        model.train(method="nuts", **QUICK)
    assert isinstance(model.module.posterior, NormalPosterior)


def test_nuts_of_a_far_and_badly_scaled_regression() -> None:
    """Years as they are: two coefficients with a correlation of -0.9999, far from the start."""
    rng = np.random.default_rng(0)
    year = np.arange(1950, 2010.0)
    data = {"year": year, "y": 9 + 0.02 * (year - 1980) + rng.normal(size=60)}

    def story(year: Tensor, y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 100.0))
        b = pyro.sample("b", dist.Normal(0.0, 5.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(a + b * year, 1.0), obs=y)

    model = pv.from_pyro(story, data)
    model.train(method="nuts", enable_progress_bar=False, **QUICK)
    design = np.stack([np.ones(60), year], 1)
    covariance = np.linalg.inv(design.T @ design + np.diag([1e-4, 0.04]))
    draws = model.to_arviz(["a", "b"])
    both = np.stack([draws.posterior["a"], draws.posterior["b"]], -1)
    mean = covariance @ design.T @ data["y"]
    assert_moments(both, mean, np.sqrt(np.diagonal(covariance)))
    assert draws.sample_stats["n_steps"].mean() < 20
