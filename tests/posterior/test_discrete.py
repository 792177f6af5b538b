"""Enumerated sites: the marginal likelihood and the exact posterior of a mixture."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from scipy import special, stats
from tests.module.stories import given, materialised
from torch import Tensor

from pyrovi.errors import ModelError
from pyrovi.module import PyroBaseModule, Role, obs_plate, plate

WEIGHTS, LOCS, SCALE = np.array([0.2, 0.5, 0.3]), np.array([-2.0, 0.0, 1.5]), 0.8


class Mixture(PyroBaseModule):
    """c_n ~ Categorical; x_ng ~ N(loc_c, 0.8), or with z_n ~ N(loc_c, 0.5) in between."""

    def __init__(self, continuous: bool = False) -> None:
        super().__init__()
        self.continuous = continuous
        self.locs = torch.nn.Parameter(torch.tensor(LOCS).float())
        self.register_buffer("weights", torch.tensor(WEIGHTS).float())

    def model(self, X: Tensor) -> None:
        with self.obs_plate():
            c = pyro.sample("c", dist.Categorical(self.weights), infer={"enumerate": "parallel"})
            loc = self.locs[c]
            if self.continuous:
                loc = pyro.sample("z", dist.Normal(loc, 0.5))
            pyro.deterministic("loc", loc)
            loc = loc[..., None].expand(*loc.shape, X.shape[-1])
            pyro.sample("X", dist.Normal(loc, SCALE).to_event(1), obs=X)

    def guide(self, X: Tensor) -> None:
        if self.continuous:
            with self.obs_plate():
                pyro.sample("z", dist.Normal(X.mean(-1), 0.6))


@pytest.fixture(scope="module")
def X() -> np.ndarray:
    rng = np.random.default_rng(0)
    c = rng.choice(3, size=40, p=WEIGHTS)
    return (LOCS[c][:, None] + SCALE * rng.normal(size=(40, 2))).astype(np.float32)


def table(X: np.ndarray) -> np.ndarray:
    """log p(x_n, c_n), shape (3, n)."""
    return np.log(WEIGHTS)[:, None] + stats.norm(LOCS[:, None, None], SCALE).logpdf(X).sum(-1)


def test_bounds_are_the_exact_marginal_likelihood(X: np.ndarray) -> None:
    model = given(X, Mixture())
    assert model.sites["c"].role is Role.ENUMERATED
    exact = special.logsumexp(table(X), 0)
    np.testing.assert_allclose(model.get_elbo(num_samples=1, return_mean=False), exact, rtol=1e-5)
    np.testing.assert_allclose(
        model.get_marginal_ll(n_mc_samples=2, return_mean=False, batch_size=7), exact, rtol=1e-5
    )
    likelihood = model.log_likelihood(num_samples=3)["X"].values
    np.testing.assert_allclose(likelihood, np.tile(exact, (3, 1)), rtol=1e-5)


def test_draws_follow_the_exact_posterior(X: np.ndarray) -> None:
    model = given(X, Mixture())
    S = 4_000
    draws = model.sample_posterior(["c", "loc"], num_samples=S, batch_size=16)
    exact = np.exp(table(X) - special.logsumexp(table(X), 0))
    found = np.stack([(draws["c"].values == k).mean(0) for k in range(3)])
    assert np.abs(found - exact).max() < 5 * 0.5 / S**0.5
    np.testing.assert_allclose(draws["loc"], LOCS[draws["c"].values])


def test_with_a_continuous_latent_below(X: np.ndarray) -> None:
    """z | c is summed over c too: x ~ sum_c w_c N(loc_c, 0.25 + 0.64 on the diagonal)."""
    model = given(X, Mixture(continuous=True))
    covariance = 0.25 + SCALE**2 * np.eye(2)
    parts = [stats.multivariate_normal([m, m], covariance).logpdf(X) for m in LOCS]
    exact = special.logsumexp(np.log(WEIGHTS)[:, None] + np.stack(parts), 0)
    found = model.get_marginal_ll(n_mc_samples=3_000, return_mean=False)
    np.testing.assert_allclose(found, exact, atol=0.15)
    assert model.get_elbo(num_samples=50) < exact.mean()
    # log p(x | z) does not depend on c
    z = model.sample_posterior("z", num_samples=4)["z"].values
    likelihood = model.log_likelihood(num_samples=4)["X"].values
    assert likelihood.shape == z.shape


def test_two_enumerated_sites(X: np.ndarray) -> None:
    def story(X: Tensor) -> None:
        with obs_plate():
            a = pyro.sample("a", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            b = pyro.sample(
                "b", dist.Categorical(torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])[a.long()]),
                infer={"enumerate": "parallel"},
            )  # fmt: skip
            loc = a + torch.tensor(LOCS).float()[b]
            loc = loc[..., None].expand(*loc.shape, X.shape[-1])
            pyro.sample("X", dist.Normal(loc, SCALE).to_event(1), obs=X)

    prior = np.array([[0.7 * p for p in (0.2, 0.3, 0.5)], [0.3 * p for p in (0.6, 0.3, 0.1)]])
    loc = np.arange(2)[:, None] + LOCS
    joint = np.log(prior)[..., None] + stats.norm(loc[..., None, None], SCALE).logpdf(X).sum(-1)
    exact = special.logsumexp(joint, (0, 1))
    from tests.module.stories import Pair

    model = given(X, Pair(story))
    np.testing.assert_allclose(model.get_elbo(num_samples=1, return_mean=False), exact, rtol=1e-5)
    draws = model.sample_posterior(["a", "b"], num_samples=4_000)
    probabilities = np.exp(joint - exact)
    for i in range(2):
        for k in range(3):
            found = ((draws["a"].values == i) & (draws["b"].values == k)).mean(0)
            assert np.abs(found - probabilities[i, k]).max() < 5 * 0.5 / 4_000**0.5


def test_training_sums_out_and_its_metrics_are_the_marginal_likelihood(X: np.ndarray) -> None:
    module = Mixture()
    assert isinstance(given(X, module).module.default_elbo(), TraceEnum_ELBO)
    with torch.no_grad():
        module.locs.copy_(torch.tensor([-1.0, 0.2, 1.0]))
    model = given(X, module)
    model.train(
        max_epochs=60, train_size=1.0, lr=0.05, batch_size=20, enable_progress_bar=False
    )  # fmt: skip
    fitted = module.locs.detach().numpy()
    joint = np.log(WEIGHTS)[:, None] + stats.norm(fitted[:, None, None], SCALE).logpdf(X).sum(-1)
    assert special.logsumexp(joint, 0).mean() > special.logsumexp(table(X), 0).mean()
    last = model.history["elbo_train"].to_numpy()[-1, 0]
    assert last == pytest.approx(-special.logsumexp(joint, 0).mean(), abs=0.02)
    assert model.history["reconstruction_loss_train"].to_numpy()[-1, 0] == pytest.approx(last)


def test_training_with_a_continuous_latent_below(X: np.ndarray) -> None:
    model = given(X, Mixture(continuous=True))
    model.train(max_epochs=3, train_size=1.0, batch_size=20, enable_progress_bar=False)
    last = model.history["elbo_train"].to_numpy()[-1, 0]
    assert last == pytest.approx(-model.get_elbo(num_samples=200), abs=0.3)


def test_what_cannot_be_queried_says_so() -> None:
    def story(X: Tensor) -> None:
        with obs_plate(dim=-2), plate("var", 3, dim=-1):
            c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("X", dist.Normal(c, 1.0), obs=X)

    from tests.module.stories import example

    from pyrovi.posterior.discrete import DiscreteTable

    pair = materialised(story)
    with pytest.raises(ModelError, match=r"'c' stands in the plates.*obs"):
        DiscreteTable(pair, example()(4), {})
