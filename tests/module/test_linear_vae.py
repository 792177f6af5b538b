"""LinearVAE: the decoder is linear, its loadings are what it does, its density is SciPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyrovi.dataloaders import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.handlers import Substitute
from pyrovi.module.linear_vae import LinearVAE

N, G, B, L, K = 6, 5, 2, 3, 2
MOMENTS = {"library_log_means": np.array([1.0, 2.0]), "library_log_vars": np.array([0.3, 0.1])}


def minibatch(n: int = N, n_obs: int = N) -> Minibatch:
    generator = torch.Generator().manual_seed(0)
    X = torch.poisson(torch.full((N, G), 3.0), generator=generator)
    X[:, 0] += 1
    tensors = {
        "X": X[:n],
        "batch": torch.arange(n)[:, None] % B,
        "labels": torch.arange(n)[:, None] % L,
    }
    return Minibatch(tensors, torch.arange(n), n_obs)


def made(**options: Any) -> LinearVAE:
    options = {"gene_likelihood": "nb", **options}
    module = LinearVAE(G, B, L, n_hidden=8, n_latent=K, **options)
    module.materialise(minibatch)
    module.train()
    with torch.no_grad():  # running statistics and gains that are not those of the beginning
        for _ in range(3):
            poutine.trace(module.run_model).get_trace(minibatch())
        for name, parameter in module.named_parameters():
            if "batch_norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return module.eval()


def rho(module: LinearVAE, z: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), Substitute({"z": z}):
        return poutine.trace(module.run_model).get_trace(minibatch()).nodes["rho"]["value"]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_batch_norm": "none"},
    {"gene_likelihood": "zinb"},
    {"gene_likelihood": "poisson"},
    {"dispersion": "gene-batch"},
    {"dispersion": "gene-label"},
    {"batch_representation": "embedding"},
    {"use_observed_lib_size": False, **MOMENTS},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_log_proportions_are_linear_with_the_loadings(options: dict[str, Any]) -> None:
    module = made(**options).double()
    data = minibatch()
    assert module.loadings().shape == (G, K)
    z = torch.randn(N, K, dtype=torch.float64)
    step = torch.randn(N, K, dtype=torch.float64)
    change = rho(module, z + step).log() - rho(module, z).log()
    expected = step @ module.loadings().double().T
    # up to what is common to all genes, which the softmax takes away
    torch.testing.assert_close(change - change[:, :1], expected - expected[:, :1])
    assert data["X"].shape == change.shape


def test_a_number_added_to_a_column_has_no_effect() -> None:
    module = made(use_batch_norm="none")
    z = torch.randn(N, K)
    before, loadings = rho(module, z), module.loadings()
    with torch.no_grad():
        module.decoder.scale_layers.layers[0].linear.weight[:, 0] += 2.0
    torch.testing.assert_close(module.loadings()[:, 0], loadings[:, 0] + 2.0)
    torch.testing.assert_close(rho(module, z), before)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    module = made(**options).train()
    loss = module.default_elbo()(module.run_model, module.run_guide)(minibatch())
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-label"])
def test_log_joint_is_scipys(dispersion: str) -> None:
    module = made(dispersion=dispersion)
    data = minibatch()
    z = torch.randn(N, K)
    with torch.no_grad(), Substitute({"z": z}):
        total = poutine.trace(module.run_model).get_trace(data).log_prob_sum().item()
    x = data["X"].double().numpy()
    mu = x.sum(1, keepdims=True) * rho(module, z).double().numpy()
    assert module.log_theta is not None
    theta = module.log_theta.detach().double().exp().numpy()
    codes = {"gene-batch": data["batch"], "gene-label": data["labels"]}.get(dispersion)
    theta = theta if codes is None else theta[:, codes[:, 0].numpy()].T
    exact = stats.norm.logpdf(z.double().numpy()).sum()
    exact += stats.nbinom(theta, theta / (theta + mu)).logpmf(x).sum()
    assert total == pytest.approx(exact, rel=1e-4)


def test_what_a_linear_decoder_cannot_do() -> None:
    with pytest.raises(ModelError, match=r"dispersion='gene-cell'.*'gene-label'"):
        LinearVAE(G, dispersion="gene-cell", gene_likelihood="nb")
    with pytest.raises(ModelError, match="size factor"):
        LinearVAE(G, use_size_factor_key=True)
