"""Predictive checks are those of the materialised draws, under the data's names."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi as pv
from pyrovi.criticism import posterior_predictive_checks
from pyrovi.criticism.statistics import Dropout
from pyrovi.data.fields import LayerField
from pyrovi.errors import ModelError
from pyrovi.model import BaseModelClass
from pyrovi.module import PyroBaseModule


def brute_force(values: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of a table, or of a stack of tables."""
    return {
        "mean": values.mean(-2),
        "variance": values.var(-2, ddof=1),
        "zero_fraction": (values == 0).mean(-2),
        "total": values.sum(-1),
    }


def assert_statistics(dataset, expected: dict[str, np.ndarray]) -> None:
    assert set(dataset.data_vars) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(dataset[name].to_numpy(), value, rtol=1e-9, err_msg=name)


def test_statistics_equal_those_of_materialised_draws(trained, checks) -> None:
    draws = trained.posterior_predictive(num_samples=6, batch_size=16)["X"].to_numpy()
    assert_statistics(checks.replicated, brute_force(draws.astype(np.float64)))
    data = np.asarray(trained.adata.X.astype(np.float64))
    assert_statistics(checks.observed, brute_force(data))
    assert list(checks.observed["var"].values) == list(trained.adata.var_names)
    assert list(checks.observed["obs"].values) == list(trained.adata.obs_names)


def test_a_part_of_the_observations(trained) -> None:
    rows = np.array([7, 3, 11])
    found = posterior_predictive_checks(trained, num_samples=2, indices=rows)
    assert_statistics(found.observed, brute_force(np.asarray(trained.adata.X, dtype=float)[rows]))
    assert list(found.observed["obs"].values) == list(trained.adata.obs_names[rows])


def test_interval_coverage_and_p_values(checks) -> None:
    replicated = checks.replicated["variance"].to_numpy()
    observed = checks.observed["variance"].to_numpy()
    low, high = np.quantile(replicated, [0.1, 0.9], axis=0)
    ends = checks.interval("variance", 0.8)
    np.testing.assert_allclose(ends[0], low)
    np.testing.assert_allclose(ends[1], high)
    inside = ((observed >= low) & (observed <= high)).mean()
    assert checks.coverage("variance", 0.8) == pytest.approx(inside)
    p = ((replicated > observed) + 0.5 * (replicated == observed)).mean(0)
    np.testing.assert_allclose(checks.p_values("variance"), p)
    assert checks.summary(0.8).loc["variance", "in 80% interval"] == pytest.approx(inside)


def test_checks_leave_the_mode_and_the_random_state_alone(trained) -> None:
    before = torch.get_rng_state()
    first = posterior_predictive_checks(trained, num_samples=2)
    second = posterior_predictive_checks(trained, num_samples=2)
    assert torch.equal(before, torch.get_rng_state())
    assert first.replicated.identical(second.replicated)
    assert not trained.module.training


class PoissonModule(PyroBaseModule):
    def __init__(self, n_vars: int) -> None:
        super().__init__()
        self.site_dims = {"counts": ("var",)}
        self.n_vars = n_vars

    def model(self, X):
        with pv.plate("var", self.n_vars, dim=-1):
            rate = pyro.sample("rate", dist.Gamma(X.new_tensor(2.0), 1.0))
        with self.obs_plate():
            pyro.sample("counts", dist.Poisson(rate).expand([self.n_vars]).to_event(1), obs=X)

    def guide(self, X):
        with pv.plate("var", self.n_vars, dim=-1):
            pyro.sample("rate", dist.Gamma(X.new_tensor(50.0), 10.0))


class PoissonModel(BaseModelClass):
    def __init__(self, adata) -> None:
        super().__init__(adata)
        self.module = PoissonModule(self.summary_stats.n_vars)

    @classmethod
    def setup_anndata(cls, adata) -> None:
        cls.register(adata, [LayerField("X", None)], locals())


@pytest.fixture
def poisson():
    adata = pv.data.synthetic_iid(batch_size=20, n_genes=5)
    PoissonModel.setup_anndata(adata)
    return PoissonModel(adata)


def test_global_draws_are_shared_by_all_minibatches(poisson) -> None:
    # the observed site has another name than its field, and its rates are global
    found = posterior_predictive_checks(poisson, num_samples=40, batch_size=7)
    draws = poisson.posterior_predictive(num_samples=40, batch_size=7)["counts"].to_numpy()
    assert_statistics(found.replicated, brute_force(draws.astype(np.float64)))
    rates = poisson.sample_posterior("rate", num_samples=40)["rate"].to_numpy()
    means = found.replicated["mean"].to_numpy()
    assert np.corrcoef(rates.ravel(), means.ravel())[0, 1] > 0.8
    assert_statistics(found.observed, brute_force(np.asarray(poisson.adata.X, dtype=float)))


def test_a_site_that_is_not_observed_is_refused(trained) -> None:
    with pytest.raises(ModelError, match="'z' is not an observed site; observed are: X"):
        posterior_predictive_checks(trained, "z")
    with pytest.raises(ModelError, match="num_samples must be at least 1, got 0"):
        posterior_predictive_checks(trained, num_samples=0)


def test_all_statistics_see_the_same_draws(poisson) -> None:
    def covariance(values, minibatch):
        return torch.einsum("sni,snj->sij", values, values)

    found = posterior_predictive_checks(
        poisson,
        num_samples=8,
        batch_size=7,
        statistics=[
            "moments",
            "extremes",
            "frequencies",
            "quantiles",
            Dropout("batch"),
            covariance,
        ],
    )
    draws = poisson.posterior_predictive(num_samples=8, batch_size=7)["counts"].to_numpy()
    replicated = found.replicated
    np.testing.assert_allclose(replicated["mean"], draws.mean(1), rtol=1e-6)
    np.testing.assert_array_equal(replicated["maximum"], draws.max(1))
    np.testing.assert_allclose(
        replicated["covariance"], np.einsum("sni,snj->sij", draws, draws), rtol=1e-6
    )
    np.testing.assert_array_equal(
        replicated["quantile"].sel(probability=0.5),
        np.quantile(draws, 0.5, axis=1, method="inverted_cdf"),
    )
    groups = poisson.adata.obs["batch"].to_numpy()
    expected = np.stack([(draws[:, groups == g] == 0).mean(1) for g in np.unique(groups)], 1)
    np.testing.assert_allclose(replicated["dropout"], expected, rtol=1e-6)
    assert found.summary().loc["dropout", "values"] == 10


def test_statistics_of_globals_do_not_depend_on_the_batch_size(poisson) -> None:
    means = [
        posterior_predictive_checks(poisson, num_samples=40, batch_size=size).replicated["mean"]
        for size in (7, 40)
    ]
    # the same rates, other noise: 40 observations leave a standard error of sqrt(rate / 40)
    rates = poisson.sample_posterior("rate", num_samples=40)["rate"].to_numpy()
    for mean in means:
        assert np.abs((mean - rates) / np.sqrt(rates / 40)).max() < 5


def test_prior_checks_draw_from_the_prior(poisson) -> None:
    found = posterior_predictive_checks(poisson, num_samples=60, prior=True)
    prior = poisson.sample_prior("rate", num_samples=60)["rate"].to_numpy()
    means = found.replicated["mean"].to_numpy()
    assert np.corrcoef(prior.ravel(), means.ravel())[0, 1] > 0.95
    assert means.mean() == pytest.approx(2.0, abs=0.5)


def test_the_model_runs_once_per_draw_and_minibatch(poisson) -> None:
    runs = []

    original = poisson.module.model

    def counted(X):
        runs.append(len(X))
        return original(X)

    poisson.module.model = counted
    try:
        posterior_predictive_checks(poisson, num_samples=3, batch_size=20)
    finally:
        del poisson.module.model
    assert runs == [20, 20]  # vectorised over draws; observed values come from the same run


def test_unknown_statistics_are_explained(poisson) -> None:
    with pytest.raises(ModelError, match="Unknown statistic 'median': expected one of 'moments'"):
        posterior_predictive_checks(poisson, statistics=["median"])
    with pytest.raises(ModelError, match="statistics is empty"):
        posterior_predictive_checks(poisson, statistics=[])
    with pytest.raises(ModelError, match="Two statistics are named 'mean'"):
        posterior_predictive_checks(poisson, num_samples=2, statistics=["moments", "moments"])


def test_a_statistic_that_is_no_sum_is_refused(trained) -> None:
    def range_of_values(values, _):
        return values.amax((1, 2)) - values.amin((1, 2))

    with pytest.raises(ModelError, match=r"'range_of_values' of \d+ observations is not the sum"):
        posterior_predictive_checks(
            trained, statistics=[range_of_values], num_samples=3, batch_size=8
        )
    whole = posterior_predictive_checks(
        trained, statistics=[range_of_values], num_samples=3, batch_size=10**6
    )
    assert whole.replicated["range_of_values"].shape == (3,)
