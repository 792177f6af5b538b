"""The model/guide pair of scANVI: densities, the sum over types, recovery of simulated cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch.distributions import Categorical, Normal, kl_divergence

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.closed_forms import closed_form_sites
from pyrovi.module.handlers import Substitute
from pyrovi.module.scanvae import SCANVAE
from pyrovi.train import SVITrainingPlan
from pyrovi.train.metrics import run_pair

N, G, B, C, D = 12, 5, 2, 3, 2
MOMENTS = {"library_log_means": np.array([1.0, 2.0]), "library_log_vars": np.array([0.3, 0.1])}


def minibatch(labels: Any = None, n: int = N) -> Minibatch:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "X": torch.poisson(torch.full((n, G), 3.0), generator=generator) + 1,
        "batch": torch.arange(n)[:, None] % B,
        "labels": torch.arange(n)[:, None] % (C + 1) if labels is None else labels,
        "extra_categorical_covs": torch.arange(n)[:, None] % 2,
    }
    return Minibatch(tensors, torch.arange(n), n)


def scanvae(drop: tuple[str, ...] = ("extra_categorical_covs",), **options: Any) -> SCANVAE:
    torch.manual_seed(0)
    module = SCANVAE(G, C, n_batch=B, n_hidden=8, n_latent=D, **options)
    full = minibatch()

    def example(n: int) -> Minibatch:
        made = {k: v[:n] for k, v in full.tensors.items() if k not in drop}
        return Minibatch(made, torch.arange(n), N)

    module.materialise(example)
    return module.eval()


def traces(module: PyroBaseModule, data: Minibatch) -> Any:
    ((model, guide),) = run_pair(module.default_elbo(), module, data)
    return model.nodes, guide.nodes


OPTIONS: list[dict[str, Any]] = [
    {},
    {"linear_classifier": True},
    {"dispersion": "gene-label"},
    {"latent_distribution": "ln", "n_layers": 2},
    {"use_batch_norm": "none", "use_layer_norm": "both"},
    {"use_observed_lib_size": False, **MOMENTS},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_takes_a_step(options: dict[str, Any]) -> None:
    module = scanvae(**options).train()
    assert module.summed_by_guide == ("c",)
    plan = SVITrainingPlan(module)
    loss = plan.objective(minibatch(), 0.7)[0] + module.run("classify", minibatch()).square().sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
    hidden = [name for name, _ in module.c_given_z.named_parameters() if "hidden" in name]
    assert (not hidden) == options.get("linear_classifier", False)


def test_covariates_reach_encoder_and_decoder() -> None:
    module = scanvae((), n_cats_per_cov=[2], encode_covariates=True)
    one, two = minibatch(), minibatch()
    two.tensors["extra_categorical_covs"][:] = 1 - two["extra_categorical_covs"]
    nodes = []
    for data in (one, two):
        torch.manual_seed(0)
        nodes.append(traces(module, data))
    assert not torch.allclose(nodes[0][1]["z"]["fn"].mean, nodes[1][1]["z"]["fn"].mean)
    torch.manual_seed(0)
    first = module.run("classify", one)
    torch.manual_seed(0)
    assert not torch.allclose(first, module.run("classify", two))


def test_log_joint_is_scipys() -> None:
    module = scanvae(gene_likelihood="nb", label_rate=0.3)
    data = minibatch()
    generator = torch.Generator().manual_seed(1)
    u, z = torch.randn(2, N, D, generator=generator)
    labels = data["labels"][:, 0]
    c = torch.where(labels < C, labels, torch.arange(N) % C)
    with torch.no_grad(), Substitute({"u": u, "z": z, "c": c}):
        trace = poutine.trace(module.run_model).get_trace(data)
        total = trace.log_prob_sum().item()
        loc, scale = module.z_given_u_c(u, c[:, None])
        out = module.decoder(z, data["X"].sum(-1, keepdim=True).log(), data["batch"])
    x, rho = data["X"].double().numpy(), out.scale.double().numpy()
    mu, theta = x.sum(1, keepdims=True) * rho, module.log_theta.detach().double().exp().numpy()
    exact = -N * np.log(C) + stats.norm.logpdf(u.double().numpy()).sum()
    exact += stats.norm(loc.double().numpy(), scale.double().numpy()).logpdf(z.numpy()).sum()
    exact += stats.nbinom(theta, theta / (theta + mu)).logpmf(x).sum()
    n_labelled = int((labels < C).sum())
    exact += n_labelled * np.log(0.3) + (N - n_labelled) * np.log(0.7)
    assert total == pytest.approx(exact, rel=1e-4)


def test_labels_of_another_type_cannot_be() -> None:
    module = scanvae(label_rate=0.3)
    fn = module._labelling(torch.arange(C))  # one cell of each type
    probabilities = torch.stack([fn.log_prob(torch.full((C, 1), y)).exp() for y in range(C + 1)])
    expected = torch.cat([0.3 * torch.eye(C), torch.full((1, C), 0.7)])
    torch.testing.assert_close(probabilities, expected)


@pytest.mark.parametrize("options", [{}, {"dispersion": "gene-label"}], ids=str)
def test_the_sum_over_types_is_brute_force(options: dict[str, Any]) -> None:
    """Type by type: the terms of the bound at the noise that the summed one has."""
    module, data = scanvae(**options), minibatch()
    plan = SVITrainingPlan(module, n_epochs_kl_warmup=0)
    torch.manual_seed(3)
    loss, parts = plan.objective(data, 0.4)
    torch.manual_seed(3)
    model, guide = traces(module, data)
    likelihood = model["X"]["fn"].batch_shape
    assert likelihood == ((C, N) if options else (N,))  # genes are decoded once for all types
    z, u = guide["z"]["value"], guide["u"]["value"]
    assert u.shape == (C, N, D)
    q_c = guide["c"]["fn"]
    kl, log_x = torch.zeros(N), torch.zeros(N)
    for c in range(C):
        weight = q_c.probs[:, c]
        codes = torch.full((N,), c)
        q_u = Normal(*module.u_given_z_c(z, codes[:, None]))
        p_z = Normal(*module.z_given_u_c(u[c], codes[:, None]))
        terms = kl_divergence(q_u, Normal(0.0, 1.0)).sum(-1)
        terms = terms + guide["z"]["fn"].log_prob(z) - p_z.log_prob(z).sum(-1)
        kl = kl + weight * terms
        with Substitute({"z": z, "u": u[c], "c": codes}):
            one = poutine.trace(module.run_model).get_trace(data).nodes
        log_x = log_x + weight * one["X"]["fn"].log_prob(data["X"])
        log_x = log_x + weight * one["labels"]["fn"].log_prob(data["labels"])
    kl = kl + kl_divergence(q_c, Categorical(logits=torch.zeros(C)))
    assert parts["kl_local"].item() == pytest.approx(kl.mean().item(), rel=1e-5)
    assert parts["reconstruction_loss"].item() == pytest.approx(-log_x.mean().item(), rel=1e-5)
    assert loss.item() == pytest.approx((0.4 * kl - log_x).mean().item(), rel=1e-5)


def test_closed_forms_but_that_of_z() -> None:
    module = scanvae(use_observed_lib_size=False, **MOMENTS)
    ((model, guide),) = run_pair(module.default_elbo(), module, minibatch())
    assert closed_form_sites(model, guide) == {"c", "u", "l"}


def test_labels_are_evidence() -> None:
    """Labelled cells have no part in the classifier, and the type of their label for certain."""
    module = scanvae()
    data = minibatch(torch.arange(N)[:, None] % C)
    loss, _ = SVITrainingPlan(module).objective(data, 1.0)
    loss.backward()
    moved = [p.grad for p in module.c_given_z.parameters() if p.grad is not None]
    assert all((grad == 0).all() for grad in moved)
    c = poutine.trace(module.run_guide).get_trace(data).nodes["c"]
    assert torch.equal(c["value"], data["labels"][:, 0])
    prior = Categorical(logits=torch.zeros(C))
    closed = kl_divergence(c["fn"], prior)
    torch.testing.assert_close(closed, torch.full((N,), np.log(C)).float())


def test_minibatches_are_unbiased() -> None:
    module = scanvae()
    whole = minibatch()
    halves = [
        Minibatch({k: v[i] for k, v in whole.tensors.items()}, i, N)
        for i in torch.arange(N).reshape(2, -1)
    ]
    plan = SVITrainingPlan(module)
    torch.manual_seed(0)
    with torch.no_grad():
        full = torch.stack([plan.objective(whole, 1.0)[0] for _ in range(60)])
        parts = torch.stack(
            [torch.stack([plan.objective(h, 1.0)[0] for h in halves]).mean() for _ in range(60)]
        )
    error = (full.var() / 60 + parts.var() / 60).sqrt()
    assert abs(full.mean() - parts.mean()) < 4 * error


def test_options_that_cannot_be() -> None:
    with pytest.raises(ModelError, match="n_labels must be at least 1, got 0"):
        SCANVAE(G, 0)
    with pytest.raises(ModelError, match=r"label_rate must be between 0 and 1, got 1\.0"):
        SCANVAE(G, C, label_rate=1.0)
    with pytest.raises(ModelError, match="use_batch_norm must be one of"):
        SCANVAE(G, C, use_batch_norm="all")
