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
