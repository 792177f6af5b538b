"""Local sites of guides by name: rows, encoders, supports, minibatches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from tests.module.guides.fitting import draws, elbo_of, fit, minibatch, pair_of
from tests.module.stories import Factors, Pair, given
from torch import Tensor

from pyrovi.dataloaders import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module import obs_plate, plate
from pyrovi.module.guides import AutoAmortized, make_guide
from pyrovi.module.handlers import Substitute

NAMES = ("normal", "lowrank", "mvn", "flow", "delta", "laplace", "amortized")

factors = Factors(n_vars=4)


def exact_moments(X: Tensor) -> tuple[Tensor, Tensor]:
    return factors.moments(X)


@pytest.mark.parametrize("batch_size", [None, pytest.param(7, marks=pytest.mark.slow)])
def test_a_full_covariance_per_row_is_the_exact_posterior(batch_size: int | None) -> None:
    X = torch.tensor(factors.simulate(20), dtype=torch.float32)
    loc, covariance = exact_moments(X)
    pair = pair_of(factors.model, X, "mvn")
    fit(pair, X, steps=500 if batch_size is None else 1_500)
    evidence = factors.log_marginal(X.double().numpy()).sum()
    assert elbo_of(pair, X, 100) == pytest.approx(evidence, abs=0.2)
    z = draws(pair, X, 3_000)["z"]
    assert (z.mean(0) - loc).abs().max() < 0.1
    assert torch.cov(z[:, 3].T) == pytest.approx(covariance, abs=0.05)


def test_independent_rows_are_the_mean_field_optimum() -> None:
    X = torch.tensor(factors.simulate(20), dtype=torch.float32)
    loc, covariance = exact_moments(X)
    pair = pair_of(factors.model, X, "normal")
    fit(pair, X, steps=800, batch_size=10)
    z = draws(pair, X, 2_000)["z"]
    sd = torch.linalg.inv(covariance).diagonal() ** -0.5
    assert (z.mean(0) - loc).abs().max() < 0.6 * sd.min()
    assert (z.std(0).mean(0) / sd - 1).abs().max() < 0.1


@pytest.mark.slow
def test_the_encoder_finds_the_exact_posterior() -> None:
    """The posterior mean is linear in the data and the covariance is constant."""
    X = torch.tensor(factors.simulate(200), dtype=torch.float32)
    loc, covariance = exact_moments(X)
    pair = pair_of(factors.model, X, "amortized", locals="mvn", n_hidden=16)
    fit(pair, X, steps=1_000, batch_size=50, lr=0.01)
    evidence = factors.log_marginal(X.double().numpy()).mean()
    assert elbo_of(pair, X, 50) / 200 == pytest.approx(evidence, abs=0.02)
    z = draws(pair, X, 1_000)["z"]
    assert (z.mean(0) - loc).square().mean().sqrt() < 0.1
    assert torch.cov(z[:, 3].T) == pytest.approx(covariance, abs=0.06)
    new = torch.tensor(factors.simulate(203)[200:], dtype=torch.float32)
    with torch.no_grad():
        guide: Any = poutine.trace(pair.run_guide).get_trace(minibatch(new))
    assert guide.nodes["z"]["value"].shape == (3, 2)


def supports(X: Tensor) -> None:
    """Local sites of all kinds; observations in the first of two plates."""
    a = pyro.sample("a", dist.Dirichlet(torch.ones(3)))
    with obs_plate(dim=-2), plate("var", 3, dim=-1):
        pyro.sample("w", dist.Gamma(2.0, 2.0))
        pyro.sample("L", dist.LKJCholesky(2, 1.0))
    with obs_plate(dim=-2):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
        u = pyro.sample("u", dist.Uniform(-1.0, 3.0))
        with plate("var_", 3, dim=-1):
            loc = a + u + p[..., 0]
            pyro.sample("X", dist.Normal(loc, 1.0), obs=X)


INTERVAL = dist.constraints.interval(-1.0, 3.0)


@pytest.mark.parametrize("guide", ["normal", "amortized"])
@pytest.mark.parametrize(
    ("name", "support"),
    [("p", dist.constraints.simplex), ("u", INTERVAL), ("w", dist.constraints.positive)],
)
def test_densities_on_the_supports(guide: str, name: str, support: Any) -> None:
    """Normal density over the determinant of the Jacobian, by automatic differentiation."""
    X = torch.randn(5, 3, generator=torch.manual_seed(0))
    pair = pair_of(supports, X, guide)
    torch.manual_seed(1)
    trace: Any = poutine.trace(pair.run_guide).get_trace(minibatch(X))
    fn, value = trace.nodes[name]["fn"], trace.nodes[name]["value"].detach()
    base = fn.base_dist
    while hasattr(base, "base_dist"):
        base = base.base_dist
    transform = torch.distributions.biject_to(support)
    real = transform.inv(value)[2, 0].clone()
    jacobian = torch.autograd.functional.jacobian(transform, real)
    if name == "p":
        jacobian = jacobian[:-1]  # the last entry is 1 minus the others
    determinant = torch.linalg.slogdet(jacobian.reshape(real.numel(), real.numel()))[1]
    loc, scale = (each.expand(base.batch_shape)[2, 0] for each in (base.loc, base.scale))
    expected = dist.Normal(loc, scale).log_prob(real).sum() - determinant
    assert fn.log_prob(value)[2, 0].item() == pytest.approx(expected.item(), abs=1e-3)


@pytest.mark.parametrize("guide", NAMES)
def test_all_supports_train_in_minibatches_that_end_with_one(guide: str) -> None:
    X = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    model = given(X, Pair(supports, make_guide(guide, supports)))
    model.train(max_epochs=2, batch_size=4, train_size=1.0, enable_progress_bar=False, lr=0.05)
    drawn = model.sample_posterior(num_samples=3, batch_size=2)
    assert dict(drawn["p"].sizes) == {"draw": 3, "obs": 9, "p_dim_0": 4}
    assert np.allclose(drawn["p"].sum("p_dim_0"), 1, atol=1e-5)
    assert bool(((drawn["u"] >= -1) & (drawn["u"] <= 3)).all())
    assert bool((drawn["w"] > 0).all())
    assert np.isfinite(model.get_elbo(num_samples=3))
    assert np.isfinite(model.get_elbo(indices=[4], num_samples=3))


@pytest.mark.parametrize("guide", NAMES)
def test_state_makes_the_same_guide_again(guide: str) -> None:
    """Without data, bit for bit, and in minibatches of another size."""
    X = torch.randn(6, 3, generator=torch.manual_seed(0))
    first = pair_of(supports, X, guide)
    fit(first, X, steps=3, batch_size=4)
    second = pair_of(supports, torch.zeros(6, 3), guide)
    second.load_state_dict(first.state_dict())
    second.eval()
    one, two = draws(first, X, 3), draws(second, X, 3)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("guide", ["normal", "mvn", "delta"])
def test_observations_keep_their_rows(guide: str) -> None:
    X = torch.randn(6, 4, generator=torch.manual_seed(0))
    pair = pair_of(factors.model, X, guide)
    with torch.no_grad():
        for name in pair.row_parameters:
            if name.endswith(("z_loc_unconstrained", "locals.loc_1_unconstrained")):
                parameter = dict(pair.named_parameters())[name]
                parameter.copy_(100 * torch.arange(6.0).reshape(6, 1).expand_as(parameter))
    rows = torch.tensor([4, 1])
    batch = Minibatch({"X": X[rows]}, rows, 6)
    trace: Any = poutine.trace(pair.run_guide).get_trace(batch)
    found = trace.nodes["z"]["value"][:, 0]
    assert torch.allclose(found, torch.tensor([400.0, 100.0]), atol=5)


def test_a_given_value_has_its_density() -> None:
    X = torch.randn(5, 3, generator=torch.manual_seed(0))
    pair = pair_of(supports, X, "normal")
    value = torch.full((5, 1), 0.3)
    with Substitute({"u": value}):
        trace: Any = poutine.trace(pair.run_guide).get_trace(minibatch(X))
    assert torch.isfinite(trace.nodes["u"]["fn"].log_prob(value)).all()


def test_counts_are_read_on_the_log_scale_and_standardised() -> None:
    def story(X: Tensor, batch: Tensor, size: Tensor) -> None:
        with obs_plate():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            rate = (z + batch[:, 0])[:, None].exp() * size
            pyro.sample("X", dist.Poisson(rate).expand(X.shape).to_event(1), obs=X)

    def example(n: int) -> Minibatch:
        tensors = {"X": torch.ones(n, 3), "batch": torch.zeros(n, 1).long()}
        return Minibatch({**tensors, "size": torch.ones(n, 1)}, torch.arange(n), 8)

    pair = Pair(story, AutoAmortized(story, n_categories={"batch": 2}))
    pair.materialise(example)
    read = {i.name: (i.kind, i.n_features) for i in pair.guide.locals.inputs}
    assert read == {"X": ("counts", 3), "batch": ("categorical", 2), "size": ("real", 1)}
    standardise = pair.guide.locals.standardise.train()
    x = torch.randn(40, 6, generator=torch.manual_seed(0)) * 3 + 100
    for part in x.split([7, 1, 32]):
        standardise(part)
    expected = (x - x.mean(0)) / x.std(0, correction=0)
    assert torch.allclose(standardise.eval()(x), expected, atol=1e-4)


def test_an_encoder_that_cannot_be_made_says_so() -> None:
    def no_locals(X: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    X = torch.ones(4, 4)
    with pytest.raises(ModelError, match="has none inside the observation plate"):
        pair_of(no_locals, X, "amortized")
    with pytest.raises(ModelError, match="'Y', which is not registered"):
        pair_of(factors.model, X, "amortized", encoder_inputs=["Y"])
    with pytest.raises(ModelError, match="belongs to the guide 'amortized'"):
        pair_of(factors.model, X, "mvn", encoder_inputs=["X"])


def test_supports_of_single_observations_are_refused() -> None:
    def story(X: Tensor) -> None:
        with obs_plate():
            z = pyro.sample("z", dist.Uniform(0.0, X[:, 0]))
            pyro.sample("X", dist.Normal(z[:, None], 1.0).to_event(1), obs=X)

    with pytest.raises(ModelError, match="support of the local site 'z' depends on the observ"):
        pair_of(story, torch.ones(4, 1), "normal")
