"""Posterior probabilities of discrete latents against brute force."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from tests.module.stories import Pair, given
from torch import Tensor

from pyrovi.errors import ModelError
from pyrovi.model.discrete import discrete_marginals
from pyrovi.module import obs_plate
from pyrovi.module.guides import make_guide

X = np.array([[-1.2], [0.4], [1.9], [2.2], [-0.3]], dtype=np.float32)
LOCS, SD, WEIGHTS = np.array([-1.0, 0.5, 2.0]), 0.7, np.array([0.2, 0.5, 0.3])


def two_sites(X: Tensor) -> None:
    """A component and a sign that share the observation."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with obs_plate():
        weights = torch.tensor(WEIGHTS, dtype=torch.float32)
        batch = pyro.sample("batch", dist.Categorical(weights))
        flip = pyro.sample("flip", dist.Bernoulli(0.4))
        loc = torch.tensor(LOCS, dtype=torch.float32)[batch.long()] + mu + flip
        pyro.sample("X", dist.Normal(loc[..., None], SD).to_event(1), obs=X)


def brute_force(mu: float) -> np.ndarray:
    """Joint probabilities given mu, shape (n, 3, 2)."""
    loc = LOCS[:, None] + mu + np.array([0.0, 1.0])
    joint = WEIGHTS[:, None] * np.array([0.6, 0.4]) * stats.norm(loc, SD).pdf(X[:, :, None])
    return joint / joint.sum((1, 2), keepdims=True)


def model(init_scale: float = 1e-4) -> object:
    guide = make_guide("normal", two_sites, init={"mu": 0.3}, init_scale=init_scale)
    return given(X, Pair(two_sites, guide), batch=list("abcab"))


@pytest.mark.filterwarnings("ignore:This Given is not trained")
def test_probabilities_are_exact() -> None:
    found = discrete_marginals(model(), num_samples=20, batch_size=2)
    exact = brute_force(0.3)
    assert found["batch"].dims == ("obs", "batch_category")
    assert found["batch"].values == pytest.approx(exact.sum(2), abs=1e-3)
    assert found["flip"].values == pytest.approx(exact.sum(1), abs=1e-3)
    assert list(found["obs"].values[:2]) == ["cell0", "cell1"]
    assert list(found["batch_category"].values) == ["a", "b", "c"]
    assert list(found["flip_category"].values) == [0, 1]


@pytest.mark.filterwarnings("ignore:This Given is not trained")
def test_the_other_latents_are_averaged_over() -> None:
    fitted = model(init_scale=0.8)
    found = discrete_marginals(fitted, "flip", indices=[3, 1], num_samples=4_000)
    grid = 0.3 + 0.8 * stats.norm.ppf((np.arange(400) + 0.5) / 400)
    exact = np.mean([brute_force(mu).sum(1) for mu in grid], axis=0)
    assert found["flip"].values == pytest.approx(exact[[3, 1]], abs=0.02)
    assert np.allclose(found["flip"].sum("flip_category"), 1, atol=1e-5)
    again = discrete_marginals(fitted, "flip", indices=[3, 1], num_samples=4_000)
    assert found.identical(again)


@pytest.mark.filterwarnings("ignore:This Given is not trained")
def test_draws_agree_with_probabilities() -> None:
    fitted = model()
    drawn = fitted.sample_posterior("batch", num_samples=4_000)["batch"].values
    frequencies = np.stack([(drawn == k).mean(0) for k in range(3)], 1)
    assert frequencies == pytest.approx(discrete_marginals(fitted)["batch"].values, abs=0.03)


@pytest.mark.filterwarnings("ignore:This Given is not trained")
def test_other_sites_have_no_probabilities() -> None:
    with pytest.raises(ModelError, match="'mu' is no discrete latent with one value"):
        discrete_marginals(model(), "mu")


@pytest.mark.filterwarnings("ignore:This Given is not trained")
def test_codes_of_categories_have_no_statistics() -> None:
    fitted = model()
    instead = r"'batch' are codes of categories.*: discrete_marginals\('batch'\)\."
    for statistic in ("mean", "sd", "median", "q05", ["mean", "q50"]):
        with pytest.raises(ModelError, match=instead):
            fitted.sample_posterior("batch", num_samples=3, reduce=statistic)
    with pytest.raises(ModelError, match=instead):
        fitted.sample_posterior(num_samples=3, reduce="mean")
    with pytest.raises(ModelError, match=instead):
        fitted.summary(["mu", "batch"], num_samples=3)
    # numbers stay numbers, draws are draws, and a function knows what it does
    drawn = fitted.sample_posterior(["flip", "batch"], num_samples=200)
    mean = fitted.sample_posterior("flip", num_samples=200, reduce="mean")["flip"]
    np.testing.assert_allclose(mean, drawn["flip"].mean("draw"), atol=1e-6)
    assert len(fitted.summary("flip", num_samples=3)) == len(X)
    share = fitted.sample_posterior(
        "batch", num_samples=200, reduce=lambda draws: (draws == 2).mean(0)
    )["batch"]
    assert share.shape == (len(X),)


def classes_and_labels(X: Tensor) -> None:
    with obs_plate():
        c = pyro.sample("c", dist.Categorical(torch.tensor(WEIGHTS, dtype=torch.float32)))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        y = dist.Categorical(torch.ones(3)).expand(X.shape[:-1])
        pyro.sample("y", y, obs=torch.zeros(X.shape[:-1]))
        pyro.sample("X", dist.Normal((c + z)[..., None], SD).to_event(1), obs=X)


@pytest.mark.filterwarnings("ignore:This Given is not trained")
def test_a_summary_of_all_leaves_categories_out() -> None:
    fitted = given(X, Pair(classes_and_labels, make_guide("normal", classes_and_labels)))
    names = list(fitted.summary(num_samples=3).index)
    assert names
    assert all(name.startswith("z[") for name in names)
    for query in (fitted.posterior_predictive, fitted.sample_prior):
        with pytest.raises(ModelError, match=r"'y' are codes of categories.*shares of its draws"):
            query("y", num_samples=3, reduce="mean")
    assert fitted.log_likelihood("y", num_samples=3, reduce="mean")["y"].shape == (len(X),)
