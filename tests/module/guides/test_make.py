"""Guides from names, classes, functions and guides; discrete sites; errors that teach."""

from __future__ import annotations

import copy
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, autoguide
from tests.module.guides.fitting import draws, elbo_of, fit, pair_of
from torch import Tensor

from pyrovi.errors import ModelError
from pyrovi.module import PyroBaseModule, Role, obs_plate
from pyrovi.module.guides import AutoAmortized, AutoRows, make_guide

LOCS, SD = (-1.0, 2.0), 0.7


def mean(X: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with obs_plate():
        pyro.sample("X", dist.Normal(mu, 1.0).expand([1]).to_event(1), obs=X)


def mixture(X: Tensor) -> None:
    """Two known components with an unknown weight; the component of each observation is latent."""
    weight = pyro.sample("weight", dist.Beta(2.0, 3.0))
    with obs_plate():
        k = pyro.sample("k", dist.Bernoulli(weight))
        loc = torch.where(k.bool(), LOCS[1], LOCS[0])
        pyro.sample("X", dist.Normal(loc[..., None], SD).to_event(1), obs=X)


def summed(X: Tensor) -> None:
    """The same with its discrete site summed out by hand."""
    weight = pyro.sample("weight", dist.Beta(2.0, 3.0))
    with obs_plate():
        parts = torch.stack([dist.Normal(loc, SD).log_prob(X[:, 0]) for loc in LOCS])
        weights = torch.stack([1 - weight, weight]).log()[:, None]
        pyro.factor("X", (parts + weights).logsumexp(0))


@pytest.mark.parametrize(
    "spec",
    [
        "normal",
        "amortized",
        autoguide.AutoNormal,
        autoguide.AutoMultivariateNormal,
        lambda model: autoguide.AutoDelta(model),
        lambda X: pyro.sample("mu", dist.Normal(X.new_zeros(()), 1.0)),
        autoguide.AutoNormal(mean),
    ],
    ids=["name", "amortized", "class", "joint class", "factory", "by hand", "instance"],
)
def test_every_kind_of_guide(spec: Any) -> None:
    X = torch.ones(3, 1)
    if spec == "amortized":
        with pytest.raises(ModelError, match='Use "normal"'):
            pair_of(mean, X, spec)
        return
    pair = pair_of(mean, X, spec)
    assert draws(pair, X, 2)["mu"].shape == (2,)


def test_a_module_makes_a_guide_of_its_own_model() -> None:
    class Own(PyroBaseModule):
        def __init__(self, own: bool) -> None:
            super().__init__()
            self.guide = make_guide("mvn", self if own else self.model)

        def model(self, X: Tensor) -> None:
            mean(X)

    for own in (True, False):
        pair = Own(own)
        from tests.module.stories import example

        pair.materialise(example(1))
        assert set(pair.ledger.names(Role.GLOBAL)) == {"mu"}
        other = copy.deepcopy(pair)
        with torch.no_grad():
            other.guide.globals.loc += 1
        assert pair.guide.globals.loc.item() != other.guide.globals.loc.item()
        other.materialise(example(1))


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["normal", autoguide.AutoNormal], ids=["name", "class"])
def test_discrete_sites_are_summed_out(spec: Any) -> None:
    X = torch.tensor([[-1.2], [0.4], [1.9], [2.2], [-0.3]])
    pair, reference = pair_of(mixture, X, spec), pair_of(summed, X, "normal")
    assert pair.ledger["k"].role is Role.ENUMERATED
    assert type(pair.default_elbo()) is TraceEnum_ELBO
    assert type(reference.default_elbo()) is Trace_ELBO
    found = []
    for each in (pair, reference):
        fit(each, X, steps=400)
        found.append((draws(each, X)["weight"].mean().item(), elbo_of(each, X)))
    assert found[0][0] == pytest.approx(found[1][0], abs=0.03)
    assert found[0][1] == pytest.approx(found[1][1], abs=0.05)


def test_infinitely_many_values_cannot_be_summed() -> None:
    def story(X: Tensor) -> None:
        with obs_plate():
            n = pyro.sample("n", dist.Poisson(3.0))
            pyro.sample("X", dist.Normal(n[..., None], 1.0).to_event(1), obs=X)

    for spec in ("normal", autoguide.AutoNormal):
        with pytest.raises(ModelError, match=r"'n' .Poisson. cannot be summed out"):
            pair_of(story, torch.ones(2, 1), spec)


def test_shared_discrete_sites_are_summed_only_where_that_is_exact() -> None:
    def spike_and_slab(X: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.3))
        mu = pyro.sample("mu", dist.Normal(0.0, 0.1 + k))
        with obs_plate():
            pyro.sample("X", dist.Normal(mu, 1.0).expand([1]).to_event(1), obs=X)

    def direct(X: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with obs_plate():
            loc = k[..., None].expand(*k.shape, 1)
            pyro.sample("X", dist.Normal(loc, 1.0).to_event(1), obs=X)

    X = torch.tensor([[0.5], [0.7]])
    pair = pair_of(spike_and_slab, X, "normal")
    assert pair.ledger["k"].role is Role.ENUMERATED
    with pytest.raises(ModelError, match="'k' stands outside the observation plate"):
        pair_of(direct, X, "normal")


def test_options_and_names_are_checked() -> None:
    with pytest.raises(ModelError, match=r"There is no guide 'gaussian'\. Names are: normal"):
        make_guide("gaussian", mean)
    with pytest.raises(ModelError, match="no option 'ranks'; it has: init, init_scale, rank"):
        make_guide("lowrank", mean, ranks=3)
    with pytest.raises(ModelError, match="rank= belongs to the guide 'lowrank'"):
        make_guide("normal", mean, rank=3)
    with pytest.raises(ModelError, match="Expected a guide, found 3"):
        make_guide(3, mean)
    with pytest.raises(ModelError, match="init names 'nu', which is no continuous latent"):
        pair_of(mean, torch.ones(2, 1), "normal", init={"nu": 1.0})
    with pytest.raises(ModelError, match="init_scale must be positive"):
        AutoRows(mean, "normal", init_scale=0)
    with pytest.raises(ModelError, match="'weight' is not within its support"):
        pair_of(mixture, torch.ones(2, 1), "normal", init={"weight": 1.5})
    with pytest.raises(ModelError, match="no Laplace approximation"):
        AutoAmortized(mean, globals="laplace")
    with pytest.raises(ModelError, match="is to make a guide of the model, but returns None"):
        make_guide(lambda model: None, mean)


def test_supports_that_depend_on_latents_are_refused() -> None:
    def story(X: Tensor) -> None:
        a = pyro.sample("a", dist.Uniform(0.0, 1.0))
        pyro.sample("b", dist.Uniform(0.0, a))
        with obs_plate():
            pyro.sample("X", dist.Normal(a, 1.0).expand([1]).to_event(1), obs=X)

    with pytest.raises(ModelError, match="support of site 'b' depends on other latent sites"):
        pair_of(story, torch.ones(2, 1), "normal")


def test_large_joint_families_are_refused() -> None:
    def story(X: Tensor) -> None:
        pyro.sample("W", dist.Normal(torch.zeros(5_000), 1.0).to_event(1))
        mean(X)

    for name in ("mvn", "flow"):
        with pytest.raises(ModelError, match="parameters for every pair"):
            pair_of(story, torch.ones(2, 1), name)
    assert pair_of(story, torch.ones(2, 1), "lowrank", rank=2).guide.globals.factors.shape[1] == 2
