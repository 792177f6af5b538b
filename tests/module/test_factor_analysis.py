"""Linear Gaussian factors: the guide is the posterior, so the ELBO is the marginal likelihood."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy import stats

from pyrovi.dataloaders import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.factor_analysis import FactorAnalysisModule

N, D, K = 40, 6, 2


def made(noise: Any, seed: int = 0) -> tuple[FactorAnalysisModule, Minibatch]:
    rng = np.random.default_rng(seed)
    module = FactorAnalysisModule(D, K, noise=noise)
    X = torch.as_tensor(rng.normal(size=(N, D)) * 2 + 1, dtype=torch.float32)
    full = Minibatch({"X": X}, torch.arange(N), N)
    module.materialise(lambda n: Minibatch({"X": X[:n]}, torch.arange(n), N))
    psi = rng.gamma(2.0, 0.5, D) if noise == "diagonal" else np.full(D, 0.7)
    values = (rng.normal(size=(D, K)), rng.normal(size=D), psi)
    module.set_values(*(torch.as_tensor(v, dtype=torch.float32) for v in values))
    return module.double(), full.replace(tensors={"X": X.double()})


def marginal(module: FactorAnalysisModule) -> Any:
    W, mu, psi = (v.detach().numpy() for v in module.values())
    return stats.multivariate_normal(mu, W @ W.T + np.diag(psi))


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_every_draw_has_the_elbo_of_the_marginal_likelihood(noise: str) -> None:
    module, full = made(noise)
    exact = marginal(module).logpdf(full["X"].numpy()).sum()
    for _ in range(3):
        value = -Trace_ELBO().loss(module.run_model, module.run_guide, full)
        assert value == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_guide_is_bayes_rule(noise: str) -> None:
    """Conditioning of the joint normal of (z, x), without the module's formula."""
    module, full = made(noise)
    W, mu, psi = (v.detach().numpy() for v in module.values())
    gain = W.T @ np.linalg.inv(W @ W.T + np.diag(psi))
    q = poutine.trace(module.run_guide).get_trace(full).nodes["z"]["fn"]
    np.testing.assert_allclose(q.mean.detach(), (full["X"].numpy() - mu) @ gain.T, rtol=1e-8)
    covariance = q.covariance_matrix.detach().expand(N, K, K)
    np.testing.assert_allclose(covariance, np.tile(np.eye(K) - gain @ W, (N, 1, 1)), atol=1e-10)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_gradient_of_any_draw_is_that_of_maximum_likelihood(noise: str) -> None:
    module, full = made(noise)
    loss = Trace_ELBO()(module.run_model, module.run_guide)(full)
    found = torch.autograd.grad(loss, list(module.parameters()))
    W, mu, psi = module.values()
    covariance = W @ W.mT + psi.diag()
    exact = torch.distributions.MultivariateNormal(mu, covariance).log_prob(full["X"]).sum()
    expected = torch.autograd.grad(-exact, list(module.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_minibatches_differ_by_their_observations_alone() -> None:
    module, full = made("diagonal")
    exact = marginal(module).logpdf(full["X"].numpy())
    total = 0.0
    for rows in torch.arange(N).split(10):
        batch = Minibatch({"X": full["X"][rows]}, rows, N)
        value = -Trace_ELBO().loss(module.run_model, module.run_guide, batch)
        assert value == pytest.approx(N / 10 * exact[rows].sum(), rel=1e-10)
        total += value / 4
    assert total == pytest.approx(exact.sum(), rel=1e-10)


def test_principal_axes_leave_the_likelihood() -> None:
    module, full = made("diagonal")
    before = marginal(module).logpdf(full["X"].numpy())
    module.use_principal_axes()
    np.testing.assert_allclose(marginal(module).logpdf(full["X"].numpy()), before, rtol=1e-10)
    W = module.values()[0].detach().numpy()
    gram = W.T @ W
    assert np.allclose(gram, np.diag(np.diag(gram)))
    assert gram[0, 0] > gram[1, 1]
    assert (W[np.abs(W).argmax(0), [0, 1]] > 0).all()


def test_units_and_values() -> None:
    scale, centre = torch.tensor([1.0, 10.0, 0.1]), torch.tensor([5.0, 0.0, -1.0])
    module = FactorAnalysisModule(3, 1, noise="diagonal", centre=centre, scale=scale)
    _, mu, psi = module.values()
    torch.testing.assert_close(mu, centre)
    torch.testing.assert_close(psi, scale**2)
    wanted = (torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 3.0]), scale)
    module.set_values(*wanted)
    torch.testing.assert_close(module.values(), wanted)
    same = FactorAnalysisModule(3, 1, noise="isotropic", centre=centre, scale=scale)
    assert len(same.values()[2].unique()) == 1
    same.set_values(*wanted)
    torch.testing.assert_close(same.values()[2], scale.mean().expand(3))
    torch.testing.assert_close(same.values()[0], wanted[0])


def test_options_that_do_not_exist() -> None:
    with pytest.raises(ModelError, match=r"noise must be 'isotropic' or 'diagonal', got 'full'"):
        FactorAnalysisModule(3, 1, noise="full")  # type: ignore[arg-type]
    for n_latent, fault in ((0, "at least 1, got 0"), (3, "less than the 3 variables, got 3")):
        with pytest.raises(ModelError, match=fault):
            FactorAnalysisModule(3, n_latent)
