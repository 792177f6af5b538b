"""TOTALVAE: every option learns, and the story has the density that it says."""

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
from pyrovi.module.handlers import AnnealKL, Substitute
from pyrovi.module.totalvae import TOTALVAE
from pyrovi.train import SVITrainingPlan

N, G, P, B = 8, 6, 4, 2
MEASURED = np.array([[True] * P, [True, False, True, False]])
MOMENTS = {"library_log_means": np.array([1.0, 2.0]), "library_log_vars": np.array([0.3, 0.1])}
OPTIONAL = ("panel", "size_factor", "extra_categorical_covs", "extra_continuous_covs")


def minibatch(drop: tuple[str, ...] = OPTIONAL, n: int = N) -> Minibatch:
    generator = torch.Generator().manual_seed(0)
    X = torch.poisson(torch.full((n, G), 3.0), generator=generator)
    X[:, 0] += 1
    codes = torch.arange(n)[:, None]
    tensors = {
        "X": X,
        "proteins": torch.poisson(torch.full((n, P), 9.0), generator=generator),
        "batch": codes % B,
        "panel": codes // 2 % B,
        "size_factor": torch.linspace(0.5, 2.0, n)[:, None],
        "extra_categorical_covs": torch.cat([codes % 2, codes % 3], 1),
        "extra_continuous_covs": torch.randn(n, 2, generator=generator),
    }
    return Minibatch({k: v for k, v in tensors.items() if k not in drop}, torch.arange(n), n)


def totalvae(drop: tuple[str, ...] = OPTIONAL, **options: Any) -> TOTALVAE:
    torch.manual_seed(0)
    module = TOTALVAE(G, P, B, n_hidden=8, n_latent=3, **{"measured": MEASURED, **options})
    full = minibatch(drop)

    def example(n: int) -> Minibatch:
        return Minibatch({k: v[:n] for k, v in full.tensors.items()}, torch.arange(n), N)

    module.materialise(example)
    return module.eval()


OPTIONS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (OPTIONAL, {}),
    (OPTIONAL, {"measured": None}),
    (OPTIONAL, {"gene_likelihood": "zinb"}),
    (OPTIONAL, {"gene_dispersion": "gene-batch", "protein_dispersion": "protein-batch"}),
    (OPTIONAL, {"latent_distribution": "ln"}),
    (OPTIONAL, {"log_variational": False}),
    (OPTIONAL, {"encode_covariates": False}),
    (OPTIONAL, {"use_batch_norm": "none", "use_layer_norm": "both"}),
    (OPTIONAL, {"n_layers_encoder": 1, "n_layers_decoder": 2}),
    (OPTIONAL, {"use_observed_lib_size": False, **MOMENTS}),
    (OPTIONAL[1:], {}),
    (("panel", *OPTIONAL[2:]), {"use_size_factor_key": True}),
    (OPTIONAL[:2], {"n_cats_per_cov": [2, 3], "n_continuous_cov": 2}),
]


@pytest.mark.parametrize(("drop", "options"), OPTIONS, ids=str)
def test_every_option_takes_a_step(drop: tuple[str, ...], options: dict[str, Any]) -> None:
    module, data = totalvae(drop, **options).train(), minibatch(drop)
    trace = poutine.trace(module.run_model).get_trace(data)
    shapes = {k: tuple(trace.nodes[k]["value"].shape) for k in ("z", "mu", "beta", "pi")}
    assert shapes == {"z": (N, 3), "mu": (N, G), "beta": (N, P), "pi": (N, P)}
    value = module.default_elbo()(module.run_model, module.run_guide)(data)
    value.backward()
    assert torch.isfinite(value)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_log_joint_is_scipys(likelihood: str) -> None:
    """Including which proteins of which cells have no terms, and the sum over v."""
    module, data = totalvae(gene_likelihood=likelihood), minibatch()
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(N, 3, generator=generator)
    beta = torch.rand(N, P, generator=generator) * 9 + 1
    with torch.no_grad(), Substitute({"z": z, "beta": beta}):
        trace = poutine.trace(module.run_model).get_trace(data)
    nodes: Any = trace.nodes
    b = data["batch"][:, 0].numpy()
    has = MEASURED[b]
    x, y = data["X"].double().numpy(), data["proteins"].double().numpy()

    def value(site: str) -> np.ndarray:
        return nodes[site]["value"].double().numpy()

    def nb(k: np.ndarray, mu: np.ndarray, size: np.ndarray) -> np.ndarray:
        return stats.nbinom(size, size / (size + mu)).pmf(k)

    np.testing.assert_allclose(value("mu"), x.sum(1, keepdims=True) * value("rho"), rtol=1e-5)
    assert (value("alpha") >= 1).all()
    theta, phi, c, d = (
        p.detach().double().numpy()
        for p in (module.log_theta.exp(), module.log_phi.exp(), module.c, module.log_d.exp())
    )
    genes = nb(x, value("mu"), theta)
    if likelihood == "zinb":
        latent = nodes["latent"]["value"]
        with torch.no_grad():
            zero = special.expit(module.pi_decoder(latent, data["batch"])[1].double().numpy())
        genes = zero * (x == 0) + (1 - zero) * genes
    pi, back = value("pi"), value("beta")
    mixture = pi * nb(y, back, phi) + (1 - pi) * nb(y, back * value("alpha"), phi)
    prior = stats.lognorm(d.T[b], scale=np.exp(c.T[b])).logpdf(back)
    exact = stats.norm.logpdf(value("z")).sum() + np.log(genes).sum()
    exact += (has * (np.log(mixture) + prior)).sum()
    assert float(trace.log_prob_sum()) == pytest.approx(exact, rel=1e-4)


def test_what_was_not_measured_makes_no_difference() -> None:
    """Not to the ELBO, nor to its gradients, but through what the encoder sees."""
    module, data = totalvae(), minibatch()
    with torch.no_grad():
        guide = poutine.trace(module.run_guide).get_trace(data)
    fixed = {k: guide.nodes[k]["value"] for k in ("z", "beta")}
    other = data.tensors | {
        "proteins": data["proteins"] + 50 * ~torch.as_tensor(MEASURED)[data["batch"][:, 0]]
    }
    changed = {
        **fixed,
        "beta": torch.where(torch.as_tensor(MEASURED)[data["batch"][:, 0]], fixed["beta"], 77.0),
    }
    totals = []
    for tensors, values in ((data.tensors, fixed), (other, changed)):
        with torch.no_grad(), Substitute(values):
            trace = poutine.trace(module.run_model).get_trace(data.replace(tensors=tensors))
            totals.append(float(trace.log_prob_sum()))
    assert totals[0] == totals[1]


def test_panels_say_what_was_measured() -> None:
    module, data = totalvae(OPTIONAL[1:]), minibatch(OPTIONAL[1:])
    trace = poutine.trace(module.run_model).get_trace(data)
    mask = trace.nodes["proteins"]["fn"].base_dist._mask
    np.testing.assert_array_equal(mask.numpy(), MEASURED[data["panel"][:, 0].numpy()])


def test_closed_form_kl_of_the_background() -> None:
    module, data = totalvae(), minibatch()
    guide = poutine.trace(module.run_guide).get_trace(data)
    model = poutine.trace(poutine.replay(module.run_model, trace=guide)).get_trace(data)
    q, p = guide.nodes["beta"]["fn"], model.nodes["beta"]["fn"]
    draws = q.sample((20_000,))
    difference = q.log_prob(draws) - p.log_prob(draws)
    error = difference.std(0) / 20_000**0.5
    assert ((difference.mean(0) - kl_divergence(q, p)).abs() < 5 * error).all()


def test_minibatch_elbo_is_unbiased() -> None:
    """At the same draws, the ELBOs of the parts of the data have that of all as their mean."""
    module, data = totalvae(), minibatch()
    plan = SVITrainingPlan(module)
    with torch.no_grad():
        guide = poutine.trace(module.run_guide).get_trace(data)

    def elbo(rows: torch.Tensor) -> float:
        part = Minibatch({k: v[rows] for k, v in data.tensors.items()}, rows, N)
        values = {k: guide.nodes[k]["value"][rows] for k in ("z", "beta")}
        with torch.no_grad(), Substitute(values):
            return float(plan.evaluate(part, 1.0)[0])

    parts = [elbo(torch.arange(start, start + 2)) for start in range(0, N, 2)]
    assert np.mean(parts) == pytest.approx(elbo(torch.arange(N)), rel=1e-5)


def test_unknown_options_and_missing_moments() -> None:
    for name in ("gene_dispersion", "protein_dispersion", "gene_likelihood"):
        with pytest.raises(ModelError, match=name):
            TOTALVAE(G, P, **{name: "cell"})
    with pytest.raises(ModelError, match="library_log_means"):
        TOTALVAE(G, P, use_observed_lib_size=False)


def test_proteins_are_warmed_up_with_the_kl_terms() -> None:
    """By the sum of parts as by Pyro's own sum under the handler; metrics do not see the weight."""
    module, data = totalvae(), minibatch()
    plan = SVITrainingPlan(module)
    found = []
    for weight in (0.0, 0.25, 1.0):
        torch.manual_seed(5)
        loss, parts, traces = plan.evaluate(data, weight)
        torch.manual_seed(5)
        with AnnealKL(weight, (), module.warmed_up):
            whole = plan.elbo.differentiable_loss(module.run_model, module.run_guide, data) / N
        assert float(loss) == pytest.approx(float(whole), rel=1e-5)
        genes = -float(traces[0][0].nodes["X"]["fn"].log_prob(data["X"]).sum()) / N
        found.append((float(loss), {k: float(v) for k, v in parts.items()}))
    assert found[0][0] == pytest.approx(genes, rel=1e-5)
    assert found[0][1] == pytest.approx(found[2][1], rel=1e-5)
    assert found[2][0] == pytest.approx(found[2][1]["elbo"], rel=1e-5)
    assert found[1][0] == pytest.approx(0.75 * genes + 0.25 * found[2][0], rel=1e-5)
