"""CellAssignModule: its density is what the story says, summed over the types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import special, stats
from torch import Tensor

from pyrovi.dataloaders import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.cellassign import CellAssignModule
from pyrovi.module.handlers import Substitute

N, MAX_COUNT, ALPHA = 6, 20.0, 0.5
RHO = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 1]])
"""Five genes, three types; genes 3 and 4 mark two types each."""
COVARIATES = {"n_batch": 2, "n_cats_per_cov": [3], "n_continuous_cov": 1}


def minibatch(n: int = N, n_obs: int = N, drop: tuple[str, ...] = ()) -> Minibatch:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "X": torch.poisson(torch.full((N, len(RHO)), 4.0), generator=generator),
        "total": torch.linspace(50.0, 200.0, N)[:, None],
        "size_factor": torch.linspace(0.5, 2.0, N)[:, None],
        "batch": torch.arange(N)[:, None] % 2,
        "extra_categorical_covs": torch.arange(N)[:, None] % 3,
        "extra_continuous_covs": torch.randn(N, 1, generator=generator),
    }
    kept = {name: t[:n] for name, t in tensors.items() if name not in drop}
    return Minibatch(kept, torch.arange(n), n_obs)


def cellassign(drop: tuple[str, ...] = (), **options: Any) -> CellAssignModule:
    options = {"dirichlet_concentration": ALPHA, **options}
    module = CellAssignModule(RHO, MAX_COUNT, **options)
    module.materialise(lambda n: minibatch(n, drop=drop))
    return module.eval()


def draw(module: CellAssignModule, seed: int = 0) -> dict[str, Tensor]:
    """Values of the global sites, in the support of each."""
    generator = np.random.default_rng(seed)
    values = {
        "pi": generator.dirichlet([2.0, 2.0, 2.0]),
        "delta_bar": np.array(1.1),
        "sigma": np.array(0.4),
        "log_delta": generator.uniform(0.75, 1.2, int(RHO.sum())),
        "beta_0": generator.normal(size=len(RHO)),
        "log_a": generator.normal(size=module.n_basis),
    }
    if module.n_covariates:
        values["beta"] = 0.3 * generator.normal(size=(module.n_covariates, len(RHO)))
    return {name: torch.as_tensor(value, dtype=torch.float32) for name, value in values.items()}


def design(data: Minibatch) -> np.ndarray:
    batch, code = data["batch"].numpy(), data["extra_categorical_covs"].numpy()
    columns = [batch == 1, code == 1, code == 2, data["extra_continuous_covs"].numpy()]
    return np.concatenate([np.asarray(column, dtype=float) for column in columns], 1)


def log_density(
    values: dict[str, Tensor], data: Minibatch, s: np.ndarray, n_basis: int = 10
) -> np.ndarray:
    """log p(x_n | c) in SciPy, shape (n, types), written as in the paper."""
    v = {name: value.double().numpy() for name, value in values.items()}
    delta = np.zeros(RHO.shape)
    delta[RHO > 0] = np.exp(v["log_delta"])
    log_mu = np.log(s)[:, None, None] + v["beta_0"][:, None] + delta
    if "beta" in v:
        log_mu = log_mu + (design(data) @ v["beta"])[:, :, None]
    mu = np.exp(log_mu)
    centres = np.linspace(0, MAX_COUNT, n_basis)
    b = 1 / (2 * (centres[1] - centres[0]) ** 2)
    distance = np.minimum(mu, MAX_COUNT)[..., None] - centres
    phi = (np.exp(v["log_a"]) * np.exp(-b * distance**2)).sum(-1)
    x = data["X"].double().numpy()[:, :, None]
    return stats.nbinom(phi, phi / (phi + mu)).logpmf(x).sum(1)


def log_prior(values: dict[str, Tensor], delta_min: float = 2.0) -> float:
    v = {name: value.double().numpy() for name, value in values.items()}
    low = (np.log(delta_min) - v["delta_bar"]) / v["sigma"]
    total = stats.dirichlet.logpdf(v["pi"] / v["pi"].sum(), [ALPHA] * 3)
    total += stats.norm.logpdf(v["delta_bar"], 1.0, 0.5)
    total += stats.lognorm.logpdf(v["sigma"], 0.5, scale=np.exp(-1.0))
    truncated = stats.truncnorm(low, np.inf, v["delta_bar"], v["sigma"])
    total += truncated.logpdf(v["log_delta"]).sum()
    total += stats.norm.logpdf(v["beta_0"], 0, 3).sum() + stats.norm.logpdf(v["log_a"], 0, 2).sum()
    return float(total + stats.norm.logpdf(v.get("beta", 0.0), 0, 1).sum() * ("beta" in v))


CASES: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("size_factor", "batch", "extra_categorical_covs", "extra_continuous_covs"), {}),
    (("size_factor", "batch", "extra_categorical_covs", "extra_continuous_covs"),
     {"mean_size_factor": 100.0, "n_basis": 14}),
    (("total",), COVARIATES),
]  # fmt: skip


@pytest.mark.parametrize(("drop", "options"), CASES)
def test_log_joint_is_scipys(drop: tuple[str, ...], options: dict[str, Any]) -> None:
    module, data = cellassign(drop, **options), minibatch(drop=drop)
    values = draw(module)
    c = torch.tensor([0, 1, 2, 2, 1, 0])
    with torch.no_grad(), Substitute({**values, "c": c}):
        found = poutine.trace(module.run_model).get_trace(data).log_prob_sum().item()
    s = (
        data["size_factor"]
        if "total" in drop
        else data["total"] / options.get("mean_size_factor", 1.0)
    )
    of_types = log_density(values, data, s[:, 0].double().numpy(), options.get("n_basis", 10))
    of_types = of_types + np.log(values["pi"].double().numpy())
    exact = log_prior(values) + of_types[np.arange(N), c.numpy()].sum()
    assert found == pytest.approx(exact, rel=1e-5)


def test_types_are_summed_out_exactly() -> None:
    """The ELBO of a guide that is a point is the joint density, summed over all 3^6 assignments."""
    drop = CASES[0][0]
    module = cellassign(drop, guide="delta")
    data, values = minibatch(drop=drop), draw(module)
    for site in module.guide.globals.sites:
        loc = site.transform.inv(values[site.name])
        getattr(module.guide.globals, f"{site.key}_loc").data.copy_(loc)
    elbo = -module.default_elbo().loss(module.run_model, module.run_guide, data)
    of_types = log_density(values, data, data["total"][:, 0].double().numpy())
    of_types = of_types + np.log(values["pi"].double().numpy())
    exact = log_prior(values) + special.logsumexp(of_types, axis=1).sum()
    assert elbo == pytest.approx(exact, rel=1e-5)


def test_minibatch_elbo_is_unbiased() -> None:
    drop = CASES[0][0]
    module = cellassign(drop)
    whole = minibatch(drop=drop)

    def elbo(data: Minibatch) -> Tensor:
        pyro.set_rng_seed(3)
        return module.default_elbo().differentiable_loss(module.run_model, module.run_guide, data)

    pieces = []
    for i in range(0, N, 2):
        tensors = {name: tensor[i : i + 2] for name, tensor in whole.tensors.items()}
        pieces.append(elbo(Minibatch(tensors, torch.arange(i, i + 2), N)))
    torch.testing.assert_close(torch.stack(pieces).mean(), elbo(whole), rtol=1e-5, atol=1e-3)


def test_dispersion_stays_beyond_the_last_centre() -> None:
    module = cellassign(CASES[0][0])
    log_a = torch.linspace(-1.0, 1.0, 10)
    phi = module._phi(torch.tensor([MAX_COUNT, 2 * MAX_COUNT, 1e12]), log_a)
    torch.testing.assert_close(phi, phi[:1].expand(3))
    assert phi[0] > 1.0


def test_over_expression_has_a_bound() -> None:
    for delta_min in (0.5, 3.0):
        module = cellassign(CASES[0][0], delta_min=delta_min)
        with torch.no_grad():
            trace = poutine.trace(module.run_guide).get_trace(minibatch(drop=CASES[0][0]))
        assert (trace.nodes["log_delta"]["value"].exp() > delta_min).all()


def test_means_stay_finite() -> None:
    module, data = cellassign(CASES[0][0]), minibatch(drop=CASES[0][0])
    values = draw(module) | {"log_delta": torch.full((7,), 6.0)}
    with torch.no_grad(), Substitute({**values, "c": torch.zeros(N, dtype=torch.int64)}):
        trace = poutine.trace(module.run_model).get_trace(data)
    assert torch.isfinite(trace.nodes["mu"]["value"]).all()
    assert torch.isfinite(trace.log_prob_sum())


def test_begins_with_the_means_of_the_data() -> None:
    """Means over equally common types, each of whose markers is over-expressed as expected."""
    means = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    module = cellassign(CASES[0][0], base_expression=means)
    start = module.guide.init
    assert (start["log_delta"] > np.log(2.0)).all()
    assert (start["log_a"] == 0).all()
    beta_0 = start["beta_0"].numpy()
    expected = np.exp(beta_0[:, None] + np.e * RHO).mean(1)  # delta = exp(1), the prior's centre
    np.testing.assert_allclose(expected, means, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta_min": 0.0}, "delta_min must be a positive number, got 0.0"),
        ({"dirichlet_concentration": -1.0}, "dirichlet_concentration must be a positive"),
        ({"n_basis": 1}, "n_basis must be between 2 and 14, got 1"),
        ({"n_basis": 20}, "n_basis must be between 2 and 14, got 20"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        CellAssignModule(RHO, MAX_COUNT, **options)
