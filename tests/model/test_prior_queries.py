"""Queries of the prior: what can be drawn from it, and what cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi as pv
from pyrovi.criticism import posterior_predictive_checks, sbc
from pyrovi.errors import ModelError
from pyrovi.model.truth import truth_of

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame({"y": RNG.normal(3.0, 1.0, 12)})
FLAT = dist.ImproperUniform(dist.constraints.real, (), ())
POSITIVE = dist.ImproperUniform(dist.constraints.positive, (), ())

pytestmark = pytest.mark.filterwarnings("ignore:.*is not trained")


def flat(y: torch.Tensor) -> None:
    mu = pyro.sample("mu", FLAT)
    sigma = pyro.sample("sigma", POSITIVE)
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def with_factor(y: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    pyro.factor("pull", -0.5 * ((mu - 3.0) / 0.1) ** 2)
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


QUERIES: list[Callable[[Any], Any]] = [
    lambda model: model.sample_prior(),
    lambda model: model.sample_prior("mu"),
    lambda model: model.simulate(seed=1),
    lambda model: model.to_arviz(groups=["posterior", "prior"]),
    lambda model: posterior_predictive_checks(model, prior=True),
    lambda model: sbc(model, num_simulations=2, train_kwargs={"method": "laplace"}),
]


@pytest.mark.parametrize("query", QUERIES)
def test_nothing_is_drawn_from_an_improper_prior(query: Callable[[Any], Any]) -> None:
    model = pv.from_pyro(flat, FRAME)
    assert model.sites.improper == ["mu", "sigma"]
    with pytest.raises(ModelError, match=r"'mu', 'sigma' have improper priors .* dist.Normal"):
        query(model)


def test_given_values_take_the_place_of_improper_priors() -> None:
    made = pv.from_pyro(flat, FRAME).simulate(seed=1, given={"mu": 50.0, "sigma": 1e-3})
    np.testing.assert_allclose(made.obs["y"], 50.0, atol=0.01)


@pytest.mark.parametrize("query", QUERIES)
def test_nothing_is_drawn_from_a_prior_with_factors(query: Callable[[Any], Any]) -> None:
    with pytest.raises(ModelError, match=r"Factor 'pull' .* is part of the prior"):
        query(pv.from_pyro(with_factor, FRAME))


def test_data_are_not_simulated_where_a_factor_is_a_likelihood() -> None:
    def story(y: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
            pyro.factor("more", -((y - mu) ** 2))

    model = pv.from_pyro(story, FRAME)
    with pytest.raises(ModelError, match="more: they weigh draws"):
        model.simulate(seed=1)
    prior = model.sample_prior("mu", num_samples=2000)["mu"]
    assert float(prior.std()) == pytest.approx(10.0, rel=0.1)


def test_a_site_named_like_its_data_can_be_queried() -> None:
    """The dimension of its columns has another name, and their labels."""
    tables = {"counts": RNG.poisson(3.0, (50, 4)), "exposure": np.ones(50)}

    def rates(counts: torch.Tensor, exposure: torch.Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.ones(4), 1.0).to_event(1))
        with pv.obs_plate():
            pyro.sample("counts", dist.Poisson(exposure[:, None] * rate).to_event(1), obs=counts)

    model = pv.from_pyro(rates, tables, guide="mvn")
    assert model.sites["counts"].dims == ("obs", "counts_dim_0")
    assert model.sample_prior(num_samples=2)["counts"].dims == ("draw", "obs", "counts_dim_0")
    assert model.posterior_predictive(num_samples=2)["counts"].shape == (2, 50, 4)
    container = model.to_arviz(groups=["posterior", "observed_data"], num_samples=2)
    np.testing.assert_array_equal(container.observed_data["counts"], tables["counts"])
    made = model.simulate(seed=1)
    expected = truth_of(made)["rate"].to_numpy()
    np.testing.assert_allclose(
        made.obsm["counts"].mean(0), expected, atol=5 * expected.max() ** 0.5 / 7
    )


def test_the_columns_of_an_observed_frame_keep_their_names() -> None:
    import anndata

    adata = anndata.AnnData(obs=pd.DataFrame(index=["a", "b", "c"]))
    adata.obsm["doses"] = pd.DataFrame(RNG.normal(size=(3, 2)), adata.obs_names, ["low", "high"])

    def story(doses: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            mean = pyro.deterministic("mean", mu.expand(len(doses), 2))
            pyro.sample("doses", dist.Normal(mean, 1.0).to_event(1), obs=doses)

    drawn = pv.from_pyro(story, adata, {"doses": pv.fields.obsm("doses")}).sample_prior()
    assert drawn["mean"].dims == drawn["doses"].dims == ("draw", "obs", "doses_dim_0")
    assert drawn["doses_dim_0"].values.tolist() == ["low", "high"]
