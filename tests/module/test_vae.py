"""VAE: every option builds, learns and has the density that its story says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import special, stats
from torch.distributions import kl_divergence

from pyrovi.dataloaders import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.handlers import Substitute
from pyrovi.module.vae import VAE

N, G, B, L = 6, 5, 2, 3


def minibatch(n: int = N, **more: torch.Tensor) -> Minibatch:
    generator = torch.Generator().manual_seed(0)
    X = torch.poisson(torch.full((n, G), 3.0), generator=generator)
    X[:, 0] += 1
    tensors = {
        "X": X,
        "batch": torch.arange(n)[:, None] % B,
        "labels": torch.arange(n)[:, None] % L,
        "size_factor": torch.linspace(0.5, 2.0, n)[:, None],
        "extra_categorical_covs": torch.stack([torch.arange(n) % 2, torch.arange(n) % 3], 1),
        "extra_continuous_covs": torch.randn(n, 2, generator=generator),
    }
    return Minibatch(tensors | more, torch.arange(n), n)


def vae(drop: tuple[str, ...] = (), **options: Any) -> VAE:
    module = VAE(G, n_batch=B, n_labels=L, n_hidden=8, n_latent=2, **options)
    full = minibatch()

    def example(n: int) -> Minibatch:
        made = {k: v[:n] for k, v in full.tensors.items() if k not in drop}
        return Minibatch(made, torch.arange(n), N)

    module.materialise(example)
    return module.eval()


PLAIN = ("size_factor", "extra_categorical_covs", "extra_continuous_covs")
MOMENTS = {"library_log_means": np.array([1.0, 2.0]), "library_log_vars": np.array([0.3, 0.1])}
OPTIONS: list[dict[str, Any]] = [
    *({"gene_likelihood": k} for k in ("zinb", "nb", "poisson", "normal")),
    *({"dispersion": k} for k in ("gene-batch", "gene-label", "gene-cell")),
    {"dispersion": "gene-cell", "gene_likelihood": "normal"},
    {"latent_distribution": "ln"},
    {"log_variational": False},
    {"deeply_inject_covariates": False, "n_layers": 2},
    {"batch_representation": "embedding"},
    {"batch_representation": "embedding", "encode_covariates": True},
    {"use_batch_norm": "none", "use_layer_norm": "both"},
    {"use_batch_norm": "encoder", "use_layer_norm": "decoder"},
    {"use_observed_lib_size": False, **MOMENTS},
]
COVARIATES = {"n_cats_per_cov": [2, 3], "n_continuous_cov": 2, "encode_covariates": True}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_takes_a_step(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = vae(PLAIN, **options).train()
    trace = poutine.trace(module.run_model).get_trace(minibatch())
    shapes = {k: tuple(trace.nodes[k]["value"].shape) for k in ("z", "library", "rho", "mu", "X")}
    assert shapes == {"z": (N, 2), "library": (N, 1), "rho": (N, G), "mu": (N, G), "X": (N, G)}
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    loss = module.default_elbo()(module.run_model, module.run_guide)
    value = loss(minibatch())
    value.backward()
    assert torch.isfinite(value)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
    before = [p.detach().clone() for p in module.parameters()]
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


def log_pmf(name: str, x: np.ndarray, mu: np.ndarray, theta: Any, logits: Any) -> np.ndarray:
    if name == "normal":
        return stats.norm(mu, theta).logpdf(x)
    if name == "poisson":
        return stats.poisson(mu).logpmf(x)
    nb = stats.nbinom(theta, theta / (theta + mu)).logpmf(x)
    if name == "nb":
        return nb
    zero = np.where(x == 0, np.log(special.expit(logits)), -np.inf)
    return np.logaddexp(zero, np.log(special.expit(-logits)) + nb)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-label", "gene-cell"])
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson", "normal"])
def test_log_joint_is_scipys(likelihood: str, dispersion: str) -> None:
    module = vae(PLAIN, gene_likelihood=likelihood, dispersion=dispersion)
    data = minibatch()
    z = torch.randn(N, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), Substitute({"z": z}):
        trace = poutine.trace(module.run_model).get_trace(data)
        total = trace.log_prob_sum().item()
        out = module.decoder(z, data["X"].sum(-1, keepdim=True).log(), data["batch"])
    x = data["X"].double().numpy()
    rho = out.scale.double().numpy()
    np.testing.assert_allclose(rho.sum(1), 1.0, rtol=1e-5)
    mu = x.sum(1, keepdims=True) * rho
    theta = None
    if likelihood != "poisson":
        columns = {"gene-batch": data["batch"], "gene-label": data["labels"]}
        if dispersion == "gene-cell":
            theta = np.exp(out.r.double().numpy())
        else:
            log_theta = module.log_theta.detach().double().numpy()
            column = columns.get(dispersion)
            theta = np.exp(log_theta if column is None else log_theta[:, column[:, 0]].T)
    logits = None if out.dropout is None else out.dropout.double().numpy()
    exact = stats.norm.logpdf(z.double().numpy()).sum()
    exact += log_pmf(likelihood, x, mu, theta, logits).sum()
    assert total == pytest.approx(exact, rel=1e-4)


def test_library_prior_and_its_closed_form_kl() -> None:
    module = vae(PLAIN, use_observed_lib_size=False, **MOMENTS)
    data = minibatch()
    guide = poutine.trace(module.run_guide).get_trace(data)
    model = poutine.trace(poutine.replay(module.run_model, trace=guide)).get_trace(data)
    prior = model.nodes["l"]["fn"]
    means = torch.tensor([1.0, 2.0])[data["batch"]]
    sds = torch.tensor([0.3, 0.1]).sqrt()[data["batch"]]
    torch.testing.assert_close(prior.mean, means)
    torch.testing.assert_close(prior.stddev, sds)
    for name in ("z", "l"):
        q, p = guide.nodes[name]["fn"], model.nodes[name]["fn"]
        draws = q.sample((20_000,))
        difference = q.log_prob(draws) - p.log_prob(draws)
        error = difference.std(0) / 20_000**0.5
        exact = kl_divergence(q, p)
        assert ((difference.mean(0) - exact).abs() < 5 * error).all()


def test_size_factors_scale_a_softplus_mean() -> None:
    module = vae(PLAIN[1:], use_size_factor_key=True)
    trace = poutine.trace(module.run_model).get_trace(minibatch())
    rho, mu = trace.nodes["rho"]["value"], trace.nodes["mu"]["value"]
    assert (rho.sum(-1) - 1).abs().min() > 1e-3
    torch.testing.assert_close(mu, minibatch()["size_factor"] * rho)


def test_logistic_normal_keeps_z_gaussian() -> None:
    module = vae(PLAIN, latent_distribution="ln")
    trace = poutine.trace(module.run_model).get_trace(minibatch())
    z, latent = trace.nodes["z"]["value"], trace.nodes["latent"]["value"]
    torch.testing.assert_close(latent, z.softmax(-1))
    assert (z < 0).any()


def test_covariates_alter_the_output_and_the_encoder_only_if_asked() -> None:
    data = minibatch()
    z = torch.zeros(N, 2)
    changes = {
        "batch": 1 - data["batch"],
        "extra_categorical_covs": data["extra_categorical_covs"].flip(0),
        "extra_continuous_covs": data["extra_continuous_covs"] + 1,
    }
    for encode in (True, False):
        module = vae(("size_factor",), **COVARIATES | {"encode_covariates": encode})
        with torch.no_grad():
            for name, value in changes.items():
                changed = minibatch(**{name: value})
                rho = []
                loc = []
                for seen in (data, changed):
                    with Substitute({"z": z}):
                        trace = poutine.trace(module.run_model).get_trace(seen)
                    rho.append(trace.nodes["rho"]["value"])
                    guide = poutine.trace(module.run_guide).get_trace(seen)
                    loc.append(guide.nodes["z"]["fn"].mean)
                assert not torch.allclose(*rho), name
                assert torch.allclose(*loc) != encode, name


def test_a_batch_of_one_cell_in_both_modes() -> None:
    module = vae(PLAIN)
    elbo = module.default_elbo()
    for mode in (True, False):
        module.train(mode)
        assert np.isfinite(elbo.loss(module.run_model, module.run_guide, minibatch(1)))


@pytest.mark.parametrize("options", OPTIONS[:7], ids=str)
def test_double_precision(options: dict[str, Any]) -> None:
    module = vae(PLAIN, **options).double()
    given = {k: v for k, v in minibatch().tensors.items() if k not in PLAIN}
    full = Minibatch(given | {"X": given["X"].double()}, torch.arange(N), N)
    trace = poutine.trace(module.run_model).get_trace(full)
    assert trace.nodes["X"]["fn"].mean.dtype == torch.float64
    assert trace.log_prob_sum().dtype == torch.float64


def test_options_that_do_not_exist() -> None:
    with pytest.raises(ModelError, match=r"gene_likelihood must be one of 'zinb', 'nb'.*'gamma'"):
        VAE(G, gene_likelihood="gamma")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="library_log_means"):
        VAE(G, use_observed_lib_size=False)
