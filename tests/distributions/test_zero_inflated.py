from __future__ import annotations

import pytest
import torch

from pyrovi.distributions import (
    NegativeBinomial,
    ZeroInflatedGamma,
    ZeroInflatedLogNormal,
    ZeroInflatedNegativeBinomial,
)


def test_no_inflation_is_the_negative_binomial():
    mu, theta = torch.tensor([1.0, 30.0]), torch.tensor([0.5, 2.0])
    x = torch.tensor([[0.0], [5.0]])
    never = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=-200.0)
    plain = NegativeBinomial(mu=mu, theta=theta)
    torch.testing.assert_close(never.log_prob(x), plain.log_prob(x))
    torch.testing.assert_close(never.mean, plain.mean)
    torch.testing.assert_close(never.variance, plain.variance)


@pytest.mark.parametrize("logit", [-500.0, 0.0, 500.0])
def test_extreme_inflation_is_finite_with_finite_gradients(logit):
    zi_logits = torch.full((3,), logit, requires_grad=True)
    mu = torch.tensor([1e-8, 1.0, 1e5], requires_grad=True)
    theta = torch.tensor([1e-3, 1.0, 100.0], requires_grad=True)
    d = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=zi_logits)
    for count in (0.0, 4.0):
        log_prob = d.log_prob(torch.full((3,), count))
        assert log_prob.isfinite().all()
        for gradient in torch.autograd.grad(log_prob.sum(), (mu, theta, zi_logits)):
            assert gradient.isfinite().all()
    if logit == 500:
        torch.testing.assert_close(d.log_prob(torch.zeros(3)), torch.zeros(3))
        torch.testing.assert_close(d.log_prob(torch.ones(3)) + logit, plain_log_prob(mu, theta))


def plain_log_prob(mu, theta):
    return NegativeBinomial(mu=mu, theta=theta).log_prob(torch.ones(3)).round(decimals=4)


def test_counts_are_inflated_in_any_parametrisation():
    mu, theta, zi_logits = torch.tensor(2.0), torch.tensor(0.7), torch.tensor(-0.3)
    x = torch.arange(6.0)
    by_mean = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=zi_logits)
    by_logits = ZeroInflatedNegativeBinomial(theta, logits=(mu / theta).log(), zi_logits=zi_logits)
    torch.testing.assert_close(by_mean.log_prob(x), by_logits.log_prob(x))
    torch.testing.assert_close(by_mean.variance, by_logits.variance)


def test_underflow_is_not_the_atom():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        d = ZeroInflatedGamma(torch.tensor(1e-4), 1.0, zi_logits=-100.0)
        assert (d.sample((1000,)) > 0).all()
        d = ZeroInflatedLogNormal(torch.tensor(-300.0), 1.0, zi_logits=-100.0)
        assert (d.sample((1000,)) > 0).all()


def test_gradient_at_the_atom_reaches_the_logits_only():
    concentration = torch.tensor(2.0, requires_grad=True)
    zi_logits = torch.tensor(0.0, requires_grad=True)
    log_prob = ZeroInflatedGamma(concentration, 1.0, zi_logits=zi_logits).log_prob(torch.zeros(()))
    gradients = torch.autograd.grad(log_prob, (concentration, zi_logits))
    assert [float(g) for g in gradients] == [0.0, 0.5]
