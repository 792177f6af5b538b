from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pyrovi.distributions import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    log_nb_positive,
)
from pyrovi.errors import ModelError


def test_parametrisations_agree():
    mu = torch.tensor([0.1, 3.0, 200.0], dtype=torch.float64)
    theta = torch.tensor([5.0, 0.2, 40.0], dtype=torch.float64)
    reference = NegativeBinomial(mu=mu, theta=theta)
    x = torch.tensor([[0.0], [4.0], [150.0]], dtype=torch.float64)
    by_logits = NegativeBinomial(total_count=theta, logits=(mu / theta).log())
    by_probs = NegativeBinomial(total_count=theta, probs=mu / (mu + theta))
    for other in (by_logits, by_probs):
        torch.testing.assert_close(other.log_prob(x), reference.log_prob(x))
        for name in ("mu", "theta", "total_count", "logits", "probs", "mean", "variance"):
            torch.testing.assert_close(getattr(other, name), getattr(reference, name))
    theirs = pyro.distributions.NegativeBinomial(theta, logits=(mu / theta).log())
    torch.testing.assert_close(theirs.log_prob(x), reference.log_prob(x))
    torch.testing.assert_close(theirs.mean, by_logits.mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_zero(dtype):
    mu = torch.zeros(2, dtype=dtype, requires_grad=True)
    theta = torch.full((2,), 3.0, dtype=dtype, requires_grad=True)
    d = NegativeBinomial(mu=mu, theta=theta)
    assert d.log_prob(torch.tensor([0.0, 2.0], dtype=dtype)).tolist() == [0.0, -float("inf")]
    gradient = torch.autograd.grad(d.log_prob(torch.zeros(2, dtype=dtype)).sum(), (mu, theta))
    torch.testing.assert_close(gradient[0], torch.full((2,), -1.0, dtype=dtype))
    torch.testing.assert_close(gradient[1], torch.zeros(2, dtype=dtype))
    assert (d.sample((100,)) == 0).all()
    rate = torch.zeros(1, dtype=dtype, requires_grad=True)
    log_prob = Poisson(rate).log_prob(torch.zeros(1, dtype=dtype))
    assert log_prob.item() == 0
    assert torch.autograd.grad(log_prob.sum(), rate)[0].item() == -1
    inflated = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=torch.zeros(2))
    log_prob = inflated.log_prob(torch.zeros(2, dtype=dtype))
    torch.testing.assert_close(log_prob, torch.zeros(2, dtype=log_prob.dtype))
    assert torch.autograd.grad(log_prob.sum(), mu)[0].isfinite().all()


def exact_log_mass(x: float, mu: float, theta: float) -> float:
    with mpmath.workdps(40):
        x, mu, theta = map(mpmath.mpf, (x, mu, theta))
        gammas = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
        p = mu / (mu + theta)
        return float(gammas + theta * mpmath.log1p(-p) + x * mpmath.log(p))


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_no_inverse_dispersion_costs_digits(dtype, digits):
    thetas = [1e-6, 1e-2, 0.5, 3, 15.9, 16.1, 100, 1e3, 1e4, 1e6, 1e8, 1e12]
    grid = itertools.product([0, 1, 3, 20, 100, 1e4], [1e-6, 0.1, 1, 30, 1e3, 1e5], thetas)
    rows = torch.tensor(list(grid), dtype=dtype)
    x, mu, theta = rows.T
    wanted = np.array([exact_log_mass(*row) for row in rows.tolist()])
    largest = np.maximum(np.abs(wanted), torch.lgamma(x + 1).numpy()).clip(1)
    for found in (
        NegativeBinomial(mu=mu, theta=theta).log_prob(x),
        NegativeBinomial(total_count=theta, logits=mu.log() - theta.log()).log_prob(x),
    ):
        error = np.abs(found.double().numpy() - wanted) / largest
        assert error.max() < digits


def test_small_inverse_dispersion_in_single_precision():
    theta = torch.tensor([1e-3, 1e-8, 1e-20, 1e-30], requires_grad=True)
    mu = torch.full((4,), 50.0, requires_grad=True)
    for count in (0.0, 1.0, 300.0):
        x = torch.full((4,), count)
        log_prob = NegativeBinomial(mu=mu, theta=theta).log_prob(x)
        # theta -> 0: P(0) -> 1 and P(x) -> theta / x
        wanted = log_nb_positive(x.double(), mu.double(), theta.double())
        torch.testing.assert_close(log_prob, wanted.float(), rtol=1e-5, atol=1e-4)
        if count:
            limit = theta[1:].log() - np.log(count)
            torch.testing.assert_close(log_prob[1:], limit, rtol=1e-3, atol=1e-3)
        for gradient in torch.autograd.grad(log_prob.sum(), (mu, theta)):
            assert gradient.isfinite().all()


def test_large_inverse_dispersion_is_the_poisson_limit():
    x = torch.tensor([0.0, 3.0, 20.0], dtype=torch.float64)
    mu = torch.tensor([0.5, 4.0, 15.0], dtype=torch.float64)
    d = NegativeBinomial(mu=mu, theta=torch.tensor(1e8, dtype=torch.float64))
    torch.testing.assert_close(d.log_prob(x), Poisson(mu).log_prob(x), rtol=0, atol=1e-5)


def test_large_counts_in_single_precision():
    x = torch.tensor([1e4, 1e5, 1e6])
    mu = torch.tensor([2e4, 1e5, 7e5], requires_grad=True)
    theta = torch.tensor([0.5, 10.0, 200.0], requires_grad=True)
    found = NegativeBinomial(mu=mu, theta=theta).log_prob(x)
    wanted = stats.nbinom.logpmf(
        x.numpy(), theta.detach().numpy(), (theta / (theta + mu)).detach().double().numpy()
    )
    scale = torch.lgamma(x.double()).numpy()  # the promise of the docstring: 1e-7 of the log-gamma
    assert (np.abs(found.detach().numpy() - wanted) < 4e-7 * scale + 1e-3).all()
    for gradient in torch.autograd.grad(found.sum(), (mu, theta)):
        assert gradient.isfinite().all()


def test_dispersion_stays_compact_and_gets_its_summed_gradient():
    mu = torch.rand(7, 4, dtype=torch.float64) + 0.1
    theta = torch.rand(4, dtype=torch.float64, requires_grad=True)
    x = torch.poisson(mu)
    d = NegativeBinomial(mu=mu, theta=theta)
    assert d._parameters["theta"].shape == (4,)
    assert d.theta.shape == (7, 4)
    compact = torch.autograd.grad(d.log_prob(x).sum(), theta)[0]
    wide = theta.detach().expand(7, 4).clone().requires_grad_()
    full = torch.autograd.grad(NegativeBinomial(mu=mu, theta=wide).log_prob(x).sum(), wide)[0]
    torch.testing.assert_close(compact, full.sum(0))


def test_numbers_integers_and_carried_scale():
    d = NegativeBinomial(mu=2, theta=3.0)
    assert d.batch_shape == ()
    assert d.log_prob(torch.tensor(1)).dtype == torch.float32
    double = NegativeBinomial(mu=torch.ones(2, dtype=torch.float64), theta=3)
    assert double.theta.dtype == torch.float64
    assert double.log_prob(torch.tensor([1, 2])).dtype == torch.float64
    scale = torch.tensor([0.25, 0.75])
    d = NegativeBinomial(mu=8 * scale, theta=1.0, scale=scale).expand((3, 2))
    torch.testing.assert_close(d.scale, scale.expand(3, 2))
    torch.testing.assert_close(d.get_normalized("scale"), scale.expand(3, 2))
    torch.testing.assert_close(d.get_normalized("mu"), (8 * scale).expand(3, 2))
    assert NegativeBinomial(mu=1.0, theta=1.0).scale is None
    with pytest.raises(ModelError, match=r"'scale'; it has \['mu'\]"):
        NegativeBinomial(mu=1.0, theta=1.0).get_normalized("scale")
    torch.testing.assert_close(
        Poisson(8 * scale, scale=scale).expand((3, 2)).get_normalized("scale"), scale.expand(3, 2)
    )


def test_probs_zero_is_the_count_zero():
    d = NegativeBinomial(total_count=2.0, probs=0.0)
    assert d.log_prob(torch.tensor([0.0, 1.0])).tolist() == [0.0, -float("inf")]


def test_validation_follows_the_setting_and_survives_expand():
    d = NegativeBinomial(mu=1.0, theta=1.0, validate_args=False).expand((2,))
    d.log_prob(torch.tensor([-0.5, 1.0]))
    with pyro.validation_enabled(False):
        follows = NegativeBinomial(mu=-1.0, theta=1.0)
        follows.log_prob(torch.tensor(0.5))
    with pytest.raises(ModelError), pyro.validation_enabled(True):
        NegativeBinomial(mu=-1.0, theta=1.0)


@settings(max_examples=60, deadline=None)
@given(
    x=st.integers(0, 10_000),
    mu=st.floats(1e-6, 1e5),
    theta=st.floats(1e-4, 1e4),
    zi_logits=st.floats(-60, 60),
)
def test_any_parameters_agree_with_scipy(x, mu, theta, zi_logits):
    count = torch.tensor(float(x), dtype=torch.float64)
    tensors = [torch.tensor(v, dtype=torch.float64) for v in (mu, theta, zi_logits)]
    # digits lost by large terms (ours and SciPy's), and by SciPy's input p when p is close to one
    tolerance = 1e-10 * (1 + abs(float(torch.lgamma(count + theta + 1))) + theta + x)
    tolerance += 4e-16 * x * (theta + mu) / mu
    nb = float(stats.nbinom.logpmf(x, theta, theta / (theta + mu)))
    found = NegativeBinomial(mu=tensors[0], theta=tensors[1]).log_prob(count).item()
    assert abs(found - nb) < tolerance + 1e-9 * abs(nb)
    log_pi, log_rest = -np.logaddexp(0, -zi_logits), -np.logaddexp(0, zi_logits)
    wanted = np.logaddexp(log_pi, log_rest + nb) if x == 0 else log_rest + nb
    inflated = ZeroInflatedNegativeBinomial(
        mu=tensors[0], theta=tensors[1], zi_logits=tensors[2]
    ).log_prob(count)
    assert abs(inflated.item() - wanted) < tolerance + 1e-9 * abs(wanted)
