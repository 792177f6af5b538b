"""LDA: its log joint against SciPy, its prior against the Dirichlet, its ELBO over minibatches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyrovi.dataloaders import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.amortizedlda import LDA, laplace_approximation
from pyrovi.module.handlers import Substitute

N, G, K = 6, 5, 3


def minibatch(rows: list[int] | None = None) -> Minibatch:
    X = torch.poisson(torch.full((N, G), 3.0), generator=torch.Generator().manual_seed(0))
    index = torch.arange(N) if rows is None else torch.tensor(rows)
    return Minibatch({"X": X[index]}, index, N)


def lda(**options) -> LDA:
    torch.manual_seed(0)
    module = LDA(G, K, n_hidden=8, **options)
    module.materialise(lambda n: Minibatch({"X": torch.ones(n, G)}, torch.arange(n), N))
    return module.eval()


def values() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"h_beta": (K, G), "h_theta": (N, K)}
    return {k: torch.randn(shape, generator=generator) for k, shape in shapes.items()}


def test_log_joint_is_scipys():
    alpha, eta = [0.5, 1.0, 2.0], 0.3
    module = lda(cell_topic_prior=alpha, topic_feature_prior=eta)
    data, latents = minibatch(), values()
    with Substitute(latents):
        trace = poutine.trace(module.run_model).get_trace(data)
    beta = np.exp(latents["h_beta"].double().numpy())
    beta /= beta.sum(1, keepdims=True)
    theta = np.exp(latents["h_theta"].double().numpy())
    theta /= theta.sum(1, keepdims=True)
    np.testing.assert_allclose(trace.nodes["beta"]["value"], beta, rtol=1e-5)
    np.testing.assert_allclose(trace.nodes["theta"]["value"], theta, rtol=1e-5)
    x, p = data["X"].numpy(), theta @ beta
    likelihood = [
        stats.multinomial(int(r.sum()), q / q.sum()).logpmf(r) for r, q in zip(x, p, strict=True)
    ]
    a = np.array(alpha)
    mean = np.log(a) - np.log(a).mean()
    sd = np.sqrt((1 - 2 / K) / a + (1 / a).sum() / K**2)
    prior = stats.norm(mean, sd).logpdf(latents["h_theta"]).sum()
    sd_beta = np.sqrt((1 - 2 / G) / eta + 1 / (G * eta))
    prior += stats.norm(0, sd_beta).logpdf(latents["h_beta"]).sum()
    assert trace.log_prob_sum().item() == pytest.approx(sum(likelihood) + prior, rel=1e-5)


def test_laplace_approximation_is_that_of_the_dirichlet_density():
    """Mode and curvature of the density of ``softmax(h)``; a weak prior is on the sum of ``h``."""
    a = torch.tensor([0.7, 2.0, 5.0, 1.5], dtype=torch.float64)

    def log_density(h):
        return (a * h.log_softmax(0)).sum() - 0.5e-10 * h.sum() ** 2

    mean, sd = laplace_approximation(a)
    gradient = torch.func.grad(log_density)(mean)
    torch.testing.assert_close(gradient, torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
    # variances in the directions that softmax sees, those of constant sum
    precision = -torch.func.hessian(log_density)(mean)
    exact = torch.linalg.pinv(precision, rtol=1e-8).diagonal()
    torch.testing.assert_close(sd**2, exact, rtol=1e-6, atol=0)


def test_minibatch_elbo_is_unbiased():
    """The mean over three minibatches is the loss of all, up to the noise of 300 draws."""
    module = lda()

    def loss(rows: list[int] | None, seed: int) -> float:
        torch.manual_seed(seed)
        return float(
            module.default_elbo().loss(module.run_model, module.run_guide, minibatch(rows))
        )

    parts = [np.mean([loss([i, i + 1], s) for i in (0, 2, 4)]) for s in range(300)]
    whole = [loss(None, s) for s in range(300, 600)]
    error = np.sqrt((np.var(parts) + np.var(whole)) / 300)
    assert abs(np.mean(parts) - np.mean(whole)) < 4 * error


def test_a_step_moves_every_parameter():
    module = lda().train()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    module.default_elbo().differentiable_loss(
        module.run_model, module.run_guide, minibatch()
    ).backward()
    before = {k: p.detach().clone() for k, p in module.named_parameters()}
    optimiser.step()
    assert all(not torch.equal(before[k], p) for k, p in module.named_parameters())


def test_topics_start_at_the_frequencies():
    frequencies = np.array([0.5, 0.2, 0.1, 0.1, 0.1])
    start = lda(log_frequencies=np.log(frequencies)).h_beta_loc.detach().mean(0)
    even = lda().h_beta_loc.detach().mean(0)
    expected = torch.as_tensor(np.log(frequencies) - np.log(frequencies).mean())
    torch.testing.assert_close((start - even).double(), expected, atol=1e-5, rtol=0)


def test_an_empty_row_and_gradients_are_finite():
    module = lda()
    empty = Minibatch({"X": torch.zeros(2, G)}, torch.arange(2), N)
    elbo = module.default_elbo()
    loss = elbo.differentiable_loss(module.run_model, module.run_guide, empty)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell_topic_prior": [1.0, 2.0]}, "cell_topic_prior has shape"),
        ({"topic_feature_prior": 0.0}, "topic_feature_prior must be positive"),
        ({"topic_feature_prior": float("inf")}, "topic_feature_prior must be positive"),
        ({"n_topics": 1}, "n_topics must be a whole number, at least 2"),
        ({"n_topics": 3.0}, "n_topics must be a whole number"),
        ({"n_vars": 1}, "n_vars must be a whole number, at least 2"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ModelError, match=message):
        LDA(**{"n_vars": G, "n_topics": K, **options})
