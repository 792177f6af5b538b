"""What must hold for every distribution of the package."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from pyro import poutine
from tests.distributions.families import FAMILIES, Family
from torch.func import vmap

from pyrovi import distributions as dist
from pyrovi.errors import ModelError

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@every_family
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_prob_is_scipys(family: Family, dtype):
    x = family.values()
    wanted = np.log(
        family.density(x.numpy(), **{k: v.numpy() for k, v in family.parameters.items()})
    )
    d = family.make(**{k: v.to(dtype) for k, v in family.parameters.items()})
    found = d.log_prob(x.to(dtype))
    assert found.dtype == dtype
    tolerance = 1e-10 if dtype == torch.float64 else 3e-5
    np.testing.assert_allclose(found.numpy(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.discrete], ids=lambda f: f.name)
def test_mass_sums_to_one_and_gives_mean_and_variance(family: Family):
    d = family.build()
    last = 12 if family.name == "beta_binomial" else 3000
    x = torch.arange(last + 1, dtype=torch.float64)[:, None]
    first = {k: v[:1] for k, v in family.parameters.items()}
    if family.name == "beta_binomial":  # the supports differ by element: look at the first
        d = family.make(**first)
    mass = d.log_prob(x).exp()
    torch.testing.assert_close(mass.sum(0), torch.ones_like(mass[0]))
    mean = (x * mass).sum(0)
    torch.testing.assert_close(mean, d.mean)
    torch.testing.assert_close(((x - mean).square() * mass).sum(0), d.variance)


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.discrete], ids=lambda f: f.name)
def test_density_integrates_to_one_and_gives_mean_and_variance(family: Family):
    d = family.build(validate_args=False)
    atom = "zi_logits" in family.parameters
    # z = log(x - low) on an even grid: x = low + exp(z) covers many orders of magnitude
    low = -1.0 if family.name == "log1p_normal" else 0.0
    if family.name == "normal":
        x = torch.linspace(-60, 60, 400_001, dtype=torch.float64)[:, None]
        weight = torch.full_like(x, 120 / 400_000)
    else:
        z = torch.linspace(-120, 12, 400_001, dtype=torch.float64)[:, None]
        x = low + z.exp()
        weight = (x - low) * (132 / 400_000)
        keep = x[:, 0] > low  # exp(-120) is lost next to -1
        x, weight = x[keep], weight[keep]
    mass = d.log_prob(x).exp() * weight
    zero = d.log_prob(torch.zeros(1, 1, dtype=torch.float64)).exp()[0] if atom else 0.0
    torch.testing.assert_close(mass.sum(0) + zero, torch.ones_like(mass[0]), rtol=1e-7, atol=1e-7)
    mean = (x * mass).sum(0)
    torch.testing.assert_close(mean, d.mean, rtol=1e-6, atol=1e-7)
    second = (x.square() * mass).sum(0)
    torch.testing.assert_close(second - mean.square(), d.variance, rtol=1e-6, atol=1e-7)


@every_family
def test_moments_of_draws(family: Family):
    d = family.build()
    n = 100_000
    draws = d.sample((n,))
    assert d.support.check(draws).all()
    z = (draws.mean(0) - d.mean) / (d.variance / n).sqrt()
    assert z.abs().max() < 5
    deviation = (draws - d.mean).square()
    z = (deviation.mean(0) - d.variance) / (deviation.std(0) / n**0.5)
    assert z.abs().max() < 5
    if "zi_logits" in family.parameters and not family.discrete:
        p = d.zi_probs
        z = ((draws == 0).double().mean(0) - p) / (p * (1 - p) / n).sqrt()
        assert z.abs().max() < 5


@every_family
def test_gradients_are_finite_differences(family: Family):
    x = family.values()
    fixed = {
        k: v
        for k, v in family.parameters.items()
        if k == "total_count" and "alpha" in family.parameters
    }
    free = {k: v.clone().requires_grad_() for k, v in family.parameters.items() if k not in fixed}

    def log_prob(*values):
        return family.make(
            **dict(zip(free, values, strict=True)), **fixed, validate_args=False
        ).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, tuple(free.values()))
    assert torch.autograd.gradgradcheck(log_prob, tuple(free.values()))


@every_family
def test_shapes(family: Family):
    d = family.build()
    assert isinstance(
        d, pyro_dist.TorchDistribution | pyro_dist.torch_distribution.TorchDistributionMixin
    )
    assert d.batch_shape == (3,)
    assert d.event_shape == ()
    assert d().shape == (3,)
    assert d.sample((2, 4)).shape == d.shape((2, 4)) == (2, 4, 3)
    wide = d.expand((5, 4, 3))
    assert type(wide) is type(d)
    assert wide.batch_shape == wide.mean.shape == wide.variance.shape == (5, 4, 3)
    assert wide.sample((2,)).shape == (2, 5, 4, 3)
    draw = wide.sample()
    assert (draw[0] != draw[1]).any()  # an expanded distribution draws independently
    torch.testing.assert_close(wide.log_prob(draw), d.log_prob(draw))
    one = family.values()[2]
    assert wide.log_prob(one).shape == (5, 4, 3)
    event = wide.to_event(1)
    assert event.event_shape == (3,)
    assert event.log_prob(draw).shape == (5, 4)
    masked = d.mask(torch.tensor([True, False, True]))
    assert masked.log_prob(one)[1] == 0
    assert masked.log_prob(one)[0] == d.log_prob(one)[0]
    assert not d.has_enumerate_support


@every_family
def test_in_a_pyro_model(family: Family):
    x = family.values().expand(6, 3)

    def model(observed=None):
        with pyro.plate("obs", 6):
            return pyro.sample("x", family.build().to_event(1), obs=observed)

    drawn = poutine.trace(model).get_trace()
    assert drawn.nodes["x"]["value"].shape == (6, 3)
    trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (6,)
    torch.testing.assert_close(trace.log_prob_sum(), family.build().log_prob(x).sum())


@every_family
def test_vmapped_log_prob_is_the_loop(family: Family):
    x = family.values()
    stacked = {k: torch.stack([v, v.flip(0)]) for k, v in family.parameters.items()}

    def log_prob(parameters):
        return family.make(**parameters, validate_args=False).expand((6, 3)).log_prob(x)

    looped = torch.stack([log_prob({k: v[i] for k, v in stacked.items()}) for i in range(2)])
    torch.testing.assert_close(vmap(log_prob)(stacked), looped)


@every_family
@pytest.mark.parametrize("batched", ["parameters", "one parameter", "nothing"])
def test_vmapped_draws_differ_and_have_the_right_moments(family: Family, batched):
    n = 20_000
    names = list(family.parameters)
    chosen = {"parameters": names, "one parameter": names[-1:], "nothing": []}[batched]
    given = {k: v.expand(n, 3) if k in chosen else v for k, v in family.parameters.items()}
    dims = {k: 0 if k in chosen else None for k in names}

    def sample(parameters, _):
        return family.make(**parameters, validate_args=False).sample()

    draws = vmap(sample, in_dims=(dims, 0), randomness="different")(given, torch.zeros(n))
    assert draws.shape == (n, 3)
    d = family.build()
    assert ((draws.mean(0) - d.mean) / (d.variance / n).sqrt()).abs().max() < 5


@every_family
def test_validation_names_the_parameter(family: Family):
    for name in family.parameters:
        bad = dict(family.parameters)
        bad[name] = torch.tensor([1.0, float("nan"), 1.0], dtype=torch.float64)
        with pytest.raises(ValueError, match=name):
            family.make(**bad, validate_args=True)
        family.make(**bad, validate_args=False)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.discrete], ids=lambda f: f.name)
@pytest.mark.parametrize("value", [-1.0, 0.5])
def test_counts_outside_the_support_are_refused(family: Family, value):
    x = torch.full((3,), value, dtype=torch.float64)
    with pytest.raises(ValueError, match="support"):
        family.build(validate_args=True).log_prob(x)


@every_family
def test_draws_depend_on_torchs_generator_only(family: Family):
    d = family.build()
    torch.manual_seed(3)
    first = d.sample((4,))
    np.random.seed(1)
    torch.manual_seed(3)
    assert torch.equal(first, d.sample((4,)))


def test_messages():
    with pytest.raises(
        ModelError, match=r"NegativeBinomial: parameter `mu`.* -1\.0 at index \(1,\)"
    ):
        dist.NegativeBinomial(mu=torch.tensor([1.0, -1.0]), theta=1.0, validate_args=True)
    with pytest.raises(ModelError, match=r"theta \(3,\)"):
        dist.NegativeBinomial(mu=torch.ones(2), theta=torch.ones(3))
    with pytest.raises(ModelError, match=r"`mu` and `theta`; .* found `mu`"):
        dist.NegativeBinomial(mu=1.0)
    with pytest.raises(ModelError, match="none of them"):
        dist.ZeroInflatedNegativeBinomial(zi_logits=0.0)
    with pytest.raises(ModelError, match="found `mu`, `total_count`"):
        dist.NegativeBinomial(total_count=1.0, mu=1.0)
    with pytest.raises(ModelError, match="`mu` and `gamma`"):
        dist.BetaBinomial(10.0)
    with pytest.raises(ModelError, match="str"):
        dist.Poisson("1")
    with pytest.raises(ModelError, match="cannot expand"):
        dist.Poisson(torch.ones(3)).expand((2,))
