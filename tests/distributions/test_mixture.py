from __future__ import annotations

import torch

from pyrovi.distributions import NegativeBinomial, NegativeBinomialMixture


def test_shared_dispersion_is_two_equal_dispersions():
    mu1, mu2, theta = torch.tensor([1.0, 5.0]), torch.tensor([9.0, 4.0]), torch.tensor([2.0, 0.3])
    x = torch.arange(20.0)[:, None]
    logits = torch.tensor([-1.0, 3.0])
    shared = NegativeBinomialMixture(mu1, mu2, theta, logits)
    separate = NegativeBinomialMixture(mu1, mu2, theta, logits, theta2=theta)
    torch.testing.assert_close(shared.log_prob(x), separate.log_prob(x))
    torch.testing.assert_close(shared.variance, separate.variance)


def test_logits_weigh_the_first_component():
    x = torch.arange(10.0)
    always_first = NegativeBinomialMixture(1.0, 8.0, 2.0, mixture_logits=100.0, theta2=5.0)
    torch.testing.assert_close(
        always_first.log_prob(x), NegativeBinomial(mu=1.0, theta=2.0).log_prob(x)
    )
    always_second = NegativeBinomialMixture(1.0, 8.0, 2.0, mixture_logits=-100.0, theta2=5.0)
    torch.testing.assert_close(
        always_second.log_prob(x), NegativeBinomial(mu=8.0, theta=5.0).log_prob(x)
    )


def test_extreme_logits_have_finite_gradients():
    logits = torch.tensor([-400.0, 0.0, 400.0], requires_grad=True)
    mu = torch.full((3,), 3.0, requires_grad=True)
    log_prob = NegativeBinomialMixture(mu, 2 * mu, 1.0, logits).log_prob(torch.tensor(2.0))
    assert log_prob.isfinite().all()
    for gradient in torch.autograd.grad(log_prob.sum(), (logits, mu)):
        assert gradient.isfinite().all()
