"""The regression's density is that of its story, and its guide's that of its docstring."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy import stats

from pyrovi.dataloaders import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.guides.distributions import PathDerivative
from pyrovi.module.hierarchical_glm import NegativeBinomialGLMM

N, G, D = 12, 4, 3
SIZES: dict[str, Any] = {
    "n_condition": 3, "n_donor": D, "n_batch": 2, "n_cats_per_cov": [3], "n_continuous_cov": 1,
}  # fmt: skip
K = 2 + 1 + 2 + 1


def minibatch(n: int = N) -> Minibatch:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "X": torch.poisson(torch.full((n, G), 2.0), generator=generator),
        "condition": torch.arange(n)[:, None] % 3,
        "donor": torch.arange(n)[:, None] * 5 % 7 % D,
        "batch": torch.arange(n)[:, None] // 2 % 2,
        "size_factor": torch.linspace(0.5, 2.0, n)[:, None],
        "extra_categorical_covs": torch.arange(n)[:, None] // 3 % 3,
        "extra_continuous_covs": torch.randn(n, 1, generator=generator),
    }
    return Minibatch(tensors, torch.arange(n), n)


def glmm(**options: Any) -> NegativeBinomialGLMM:
    options = SIZES | options
    drop = () if options["n_continuous_cov"] else ("extra_continuous_covs",)
    drop += () if options["n_cats_per_cov"] else ("extra_categorical_covs",)
    module = NegativeBinomialGLMM(G, **options)
    full = minibatch()

    def example(n: int) -> Minibatch:
        made = {k: v[:n] for k, v in full.tensors.items() if k not in drop}
        made["batch"] = made["batch"] % options["n_batch"]
        return Minibatch(made, torch.arange(n), N)

    module.materialise(example)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a guide without symmetries
        for parameter in (*module.parameters(), module.shared_origin, module.genes_origin):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def draw(module: NegativeBinomialGLMM) -> tuple[dict[str, np.ndarray], Any]:
    torch.manual_seed(3)
    guide = poutine.trace(module.run_guide).get_trace(minibatch())
    values = {k: v["value"].detach() for k, v in guide.nodes.items() if v["type"] == "sample"}
    return {k: v.double().numpy() for k, v in values.items()}, guide


@pytest.mark.parametrize("effect_df", [3.0, math.inf])
@pytest.mark.parametrize("reference", [0, 1])
def test_log_joint_is_scipys(effect_df: float, reference: int) -> None:
    module = glmm(
        effect_df=effect_df, reference=reference, size_factor_mean=1.3,
        continuous_means=np.array([0.4]), continuous_sds=np.array([2.0]),
    )  # fmt: skip
    data = minibatch()
    v, guide = draw(module)
    with torch.no_grad():
        replayed = poutine.replay(module.run_model, trace=guide)
        total = poutine.trace(replayed).get_trace(data).log_prob_sum().item()

    def lognormal(name: str, median: Any, spread: Any) -> Any:
        return stats.norm(np.log(median), spread).logpdf(np.log(v[name])) - np.log(v[name])

    exact = stats.norm(0, 3).logpdf(v["mu_alpha"])
    for name, median, spread in [
        ("sigma_alpha", 1.5, 0.5), ("theta_0", 5, 1.5), ("kappa", 0.7, 0.5), ("tau", 0.2, 1),
        ("sigma_0", 0.2, 1), ("omega", 0.4, 0.5), ("theta", v["theta_0"], v["kappa"]),
        ("sigma", v["sigma_0"], v["omega"]),
    ]:  # fmt: skip
        exact = exact + lognormal(name, median, spread).sum()
    exact += stats.norm(v["mu_alpha"], v["sigma_alpha"]).logpdf(v["alpha"]).sum()
    prior = stats.norm if math.isinf(effect_df) else stats.t(effect_df)
    scaled = v["beta"] / v["tau"]
    assert scaled.shape == (K, G)
    exact += (prior.logpdf(scaled) - np.log(v["tau"])).sum()
    exact += stats.norm(0, v["sigma"]).logpdf(v["u"]).sum()

    t = {k: x.double().numpy() for k, x in data.tensors.items()}
    eta = np.tile(v["alpha"], (N, 1))
    for n in range(N):
        others = [level for level in range(3) if level != reference]
        c, b, e = (int(t[k][n, 0]) for k in ("condition", "batch", "extra_categorical_covs"))
        if c != reference:
            eta[n] += v["beta"][others.index(c)]
        if b:
            eta[n] += v["beta"][2]
        if e:
            eta[n] += v["beta"][2 + e]
        eta[n] += v["beta"][5] * (t["extra_continuous_covs"][n, 0] - 0.4) / 2.0
        eta[n] += v["u"][int(t["donor"][n, 0])]
    mu = t["size_factor"] / 1.3 * np.exp(eta)
    exact += stats.nbinom(v["theta"], v["theta"] / (v["theta"] + mu)).logpmf(t["X"]).sum()
    assert total == pytest.approx(exact, rel=1e-5)


def test_guide_has_the_density_of_its_docstring() -> None:
    """Coordinates of the shared sites, and those of every gene given them, are jointly normal."""
    module = glmm()
    v, guide = draw(module)
    guide.compute_log_prob()
    total = sum(n["log_prob_sum"].item() for n in guide.nodes.values() if n["type"] == "sample")
    p = {k: x.detach().double().numpy() for k, x in module.state_dict().items()}

    def factor(log_scale: np.ndarray, lower: np.ndarray) -> np.ndarray:
        size = len(log_scale)
        unit = np.tril(lower, -1) / np.sqrt(size) + np.eye(size)
        return np.exp(log_scale)[:, None] * unit

    tau, logs = np.log(v["tau"][:, 0]), {k: np.log(v[k]) for k in v if (v[k] > 0).all()}
    phi = np.concatenate(
        [[v["mu_alpha"], logs["sigma_alpha"], logs["theta_0"], logs["kappa"]], tau,
         [logs["sigma_0"], logs["omega"]]]
    )  # fmt: skip
    L = factor(p["shared_log_scale"], p["shared_lower"])
    exact = stats.multivariate_normal(p["shared_loc"], L @ L.T).logpdf(phi) - phi[1:].sum()
    z = (phi - p["shared_loc"]) / np.exp(p["shared_log_scale"])
    for g in range(G):
        away = phi - p["shared_origin"]  # mu_alpha, sigma_alpha, theta_0, kappa, tau, ...
        log_theta = np.log(v["theta"][g])
        stretch = (log_theta - p["genes_origin"][g, 0]) * p["rho_theta"][:, g]
        stretch[1 : 1 + K] += p["rho_tau"][:, g] * away[4:-2]
        stretch[1 + K :] += p["rho_sigma"][:, g] * away[-2]
        stretch = np.concatenate([[p["rho_kappa"][g] * away[3]], stretch])
        centre = np.concatenate(
            [p["shared_origin"][[2]], p["centres"][:, g] * p["genes_origin"][g, 1:]]
        )
        own = np.concatenate([[log_theta, v["alpha"][g]], v["beta"][:, g], v["u"][:, g]])
        own = centre + (own - centre) / np.exp(stretch)
        base = p["genes_base"][g]
        mean = p["genes_origin"][g] + base @ (p["genes_loc"][g] + p["genes_slope"][g] @ z)
        L = base @ factor(p["genes_log_scale"][g], p["genes_lower"][g])
        exact += stats.multivariate_normal(mean, L @ L.T).logpdf(own)
        exact -= log_theta + stretch.sum()

        def joint(sigma: Any, u: np.ndarray = v["u"][:, g]) -> Any:  # of sigma and u
            prior = stats.norm(np.log(v["sigma_0"]), v["omega"]).logpdf(np.log(sigma))
            return prior - np.log(sigma) + stats.norm(0, sigma).logpdf(u[:, None]).sum(0)

        grid = np.exp(np.linspace(-9, 6, 20_001))
        highest = joint(grid).max()
        evidence = np.trapezoid(np.exp(joint(grid) - highest) * grid, np.log(grid))
        exact += joint(v["sigma"][g])[0] - highest - np.log(evidence)
    assert total == pytest.approx(exact, rel=1e-5)


def test_gradients_of_the_elbo_are_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Genes are drawn given what they share: the path through that has to be there, too."""
    module = NegativeBinomialGLMM(G, 2, 2)
    keep = ("X", "condition", "donor", "batch", "size_factor")
    tensors = {k: v for k, v in minibatch().tensors.items() if k in keep}
    for name, levels in {"condition": 2, "donor": 2, "batch": 1}.items():
        tensors[name] = tensors[name] % levels
    data = Minibatch(tensors, torch.arange(N), N)
    module.materialise(
        lambda n: Minibatch({k: v[:n] for k, v in tensors.items()}, torch.arange(n), N)
    )
    torch.manual_seed(0)
    with torch.no_grad():
        module.genes_slope.normal_(0, 0.3)
        module.genes_origin.normal_(0, 0.3)
    parameters = dict(module.named_parameters())
    directions = {name: torch.randn_like(p) for name, p in parameters.items()}

    def gradients(seeds: range) -> np.ndarray:
        """Along random directions, one row for each seed."""
        rows = []
        for seed in seeds:
            torch.manual_seed(seed)
            module.zero_grad()
            Trace_ELBO().differentiable_loss(module.run_model, module.run_guide, data).backward()
            rows.append([float((p.grad * directions[n]).sum()) for n, p in parameters.items()])
        return np.array(rows)

    ours = gradients(range(120))
    # the whole density of the guide, with the score that has mean 0 and is left out
    monkeypatch.setattr(PathDerivative, "log_prob", lambda self, x: self._drawn.log_prob(x))
    whole = gradients(range(1000, 1120))
    error = np.sqrt((ours.var(0) + whole.var(0)) / 120)
    assert (np.abs(ours.mean(0) - whole.mean(0)) < 4 * error).all()
    differences = []
    for seed in range(1000, 1010):  # of the same draws, by finite differences
        row = []
        for name, parameter in parameters.items():
            losses = []
            for step in (1e-2, -1e-2):
                with torch.no_grad():
                    parameter.add_(step * directions[name])
                    torch.manual_seed(seed)
                    losses.append(Trace_ELBO().loss(module.run_model, module.run_guide, data))
                    parameter.sub_(step * directions[name])
            row.append((losses[0] - losses[1]) / 2e-2)
        differences.append(row)
    np.testing.assert_allclose(whole[:10], differences, rtol=0.1, atol=0.2)


def test_minibatch_elbo_is_unbiased() -> None:
    module = glmm()
    full = minibatch()

    def mean_loss(size: int) -> float:
        losses = []
        for rows in torch.arange(N).split(size):
            tensors = {k: v[rows] for k, v in full.tensors.items()}
            part = full.replace(tensors=tensors, indices=rows)
            torch.manual_seed(7)  # the same globals
            losses.append(Trace_ELBO().loss(module.run_model, module.run_guide, part))
        return float(np.mean(losses))

    for size in (1, 3, 4):
        assert mean_loss(size) == pytest.approx(mean_loss(N), rel=1e-4)


def test_without_donors_there_are_no_donor_sites() -> None:
    module = glmm(n_donor=0)
    assert not {"u", "sigma", "sigma_0", "omega"} & set(module.ledger)
    rows = module.run("design", minibatch())
    assert rows.shape == (N, 1 + K)
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(
        module.run_model, module.run_guide, minibatch())))  # fmt: skip


def test_new_donors_for_a_while() -> None:
    module = glmm()
    with module.with_constants({"n_donor": D + 2}):
        u = poutine.trace(module.run_model).get_trace(minibatch()).nodes["u"]["value"]
        assert u.shape == (D + 2, G)
    assert module.n_donor == D
    with (
        pytest.raises(ModelError, match="n_condition=4"),
        module.with_constants({"n_condition": 4}),
    ):
        pass


def test_options_out_of_range() -> None:
    with pytest.raises(ModelError, match="1 level"):
        NegativeBinomialGLMM(G, 1)
    with pytest.raises(ModelError, match="effect_df=0"):
        NegativeBinomialGLMM(G, 2, effect_df=0.0)
