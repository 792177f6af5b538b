"""Guides by name on models with an exact posterior: what each family must find."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from tests.module.guides.fitting import draws, elbo_of, fit, pair_of
from torch import Tensor

from pyrovi.module import obs_plate

SD = 0.5


def regression(X: Tensor) -> None:
    """The last column given the others, which overlap: a posterior with correlations."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with obs_plate():
        mean = X[:, :2] @ w + b
        pyro.sample("y", dist.Normal(mean[:, None], SD).to_event(1), obs=X[:, 2:])


def data() -> Tensor:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1] + 0.5
    y = x @ [0.7, -0.3] + 0.4 + SD * rng.normal(size=40)
    return torch.tensor(np.column_stack([x, y]), dtype=torch.float32)


def exact(X: Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and precision of (w0, w1, b), and the log evidence."""
    table = X.double().numpy()
    design = np.column_stack([table[:, :2], np.ones(len(table))])
    precision = np.eye(3) + design.T @ design / SD**2
    mean = np.linalg.solve(precision, design.T @ table[:, 2] / SD**2)
    covariance = design @ design.T + SD**2 * np.eye(len(table))
    evidence = stats.multivariate_normal(np.zeros(len(table)), covariance).logpdf(table[:, 2])
    return mean, precision, float(evidence)


def coordinates(values: dict[str, Tensor]) -> np.ndarray:
    return np.column_stack([values["w"].numpy(), values["b"].numpy()])


def mean_field_elbo(precision: np.ndarray, evidence: float) -> float:
    """KL of the best independent normal distribution: half of log det over log of the diagonal."""
    logdet = np.linalg.slogdet(precision)[1]
    return evidence - 0.5 * (np.log(np.diag(precision)).sum() - logdet)


@pytest.mark.parametrize("batch_size", [None, 16])
def test_normal_is_the_mean_field_optimum(batch_size: int | None) -> None:
    X = data()
    mean, precision, evidence = exact(X)
    pair = pair_of(regression, X, "normal")
    fit(pair, X, steps=600, batch_size=batch_size, antithetic=True)
    found = coordinates(draws(pair, X))
    sd = np.diag(precision) ** -0.5
    assert np.abs(found.mean(0) - mean).max() < 0.3 * sd.min()
    assert found.std(0) == pytest.approx(sd, rel=0.12)
    assert elbo_of(pair, X) == pytest.approx(mean_field_elbo(precision, evidence), abs=0.15)


@pytest.mark.parametrize(
    ("guide", "batch_size", "nats"),
    [
        ("mvn", None, 0.01),  # exact in the limit, where its gradient has no noise
        ("lowrank", None, 0.05),
        pytest.param("flow", None, 0.3, marks=pytest.mark.slow),
        ("mvn", 16, 0.2),
        pytest.param("lowrank", 16, 0.3, marks=pytest.mark.slow),
        pytest.param("flow", 16, 0.4, marks=pytest.mark.slow),
    ],
)
def test_joint_families_find_the_covariance(
    guide: str, batch_size: int | None, nats: float
) -> None:
    X = data()
    mean, precision, evidence = exact(X)
    pair = pair_of(regression, X, guide)
    steps = 400 if guide == "flow" and batch_size is None else 800
    fit(pair, X, steps=steps, batch_size=batch_size, lr=0.03)
    found = coordinates(draws(pair, X))
    covariance = np.linalg.inv(precision)
    sd = np.sqrt(np.diag(covariance))
    assert np.abs((found.mean(0) - mean) / sd).max() < 0.3
    assert found.std(0) == pytest.approx(sd, rel=0.1 if nats < 0.1 else 0.25)
    correlation = covariance / np.outer(sd, sd)
    assert np.corrcoef(found.T) == pytest.approx(correlation, abs=0.25 if guide == "flow" else 0.15)
    assert evidence - nats < elbo_of(pair, X) < evidence + 0.05
    assert mean_field_elbo(precision, evidence) < evidence - 0.5


def skewed(X: Tensor) -> None:
    """One observation of a scale: the posterior of its logarithm is skewed."""
    s = pyro.sample("s", dist.Gamma(1.0, 1.0))
    with obs_plate():
        pyro.sample("X", dist.Normal(torch.zeros(1), s).to_event(1), obs=X)


def skewed_evidence(x: float) -> float:
    from scipy.integrate import quad

    return float(np.log(quad(lambda s: np.exp(-s) * stats.norm(0, s).pdf(x), 0, 60, limit=200)[0]))


@pytest.mark.slow
def test_a_flow_bends_where_a_normal_distribution_cannot() -> None:
    X = torch.tensor([[0.3]])
    found = {}
    for guide in ("normal", "flow"):
        pair = pair_of(skewed, X, guide)
        fit(pair, X, steps=800, lr=0.03)
        found[guide] = elbo_of(pair, X, 2_000)
    evidence = skewed_evidence(0.3)
    assert found["normal"] < found["flow"] <= evidence + 0.02
    assert evidence - found["flow"] < 0.5 * (evidence - found["normal"])


RATE = 2.0


def poisson(X: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(3.0, RATE))
    with obs_plate():
        pyro.sample("X", dist.Poisson(rate).expand([1]).to_event(1), obs=X)


@pytest.mark.parametrize(("guide", "shift"), [("delta", -1), ("laplace", 0)])
def test_points_are_modes(guide: str, shift: int) -> None:
    """Gamma(a, b) has its mode at (a - 1) / b, and that of its logarithm at a / b."""
    X = torch.tensor([[2.0], [0.0], [1.0]])
    pair = pair_of(poisson, X, guide)
    fit(pair, X, steps=300)
    a, b = 3.0 + float(X.sum()), RATE + len(X)
    assert draws(pair, X, 2)["rate"][0].item() == pytest.approx((a + shift) / b, rel=1e-3)
    assert pair.guide.method == ("laplace" if guide == "laplace" else "svi")


def flat(X: Tensor) -> None:
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    with obs_plate():
        pyro.sample("X", dist.Normal(mu, 1.0).expand([1]).to_event(1), obs=X)


def test_flat_priors_and_initial_values() -> None:
    X = torch.tensor([[50.0], [52.0]])
    pair = pair_of(flat, X, "normal")
    assert draws(pair, X, 100)["mu"].mean().item() == pytest.approx(0.0, abs=0.1)
    pair = pair_of(flat, X, "normal", init={"mu": 50.5}, init_scale=0.01)
    assert draws(pair, X, 100)["mu"].mean().item() == pytest.approx(50.5, abs=0.01)
    fit(pair, X, steps=900)
    found = draws(pair, X)["mu"]
    assert found.mean().item() == pytest.approx(51.0, abs=0.2)
    assert found.std().item() == pytest.approx(0.5**0.5, rel=0.15)


def test_sites_start_in_the_middle_of_their_prior() -> None:
    def story(X: Tensor) -> None:
        far = pyro.sample("far", dist.Normal(1000.0, 1.0))
        pyro.sample("near_it", dist.Normal(far, 0.1))
        pyro.sample("scale", dist.LogNormal(7.0, 0.1))
        with obs_plate():
            pyro.sample("X", dist.Normal(far, 1.0).expand([1]).to_event(1), obs=X)

    X = torch.ones(4, 1)
    for guide in ("normal", "mvn", "delta"):
        found = draws(pair_of(story, X, guide), X, 2)
        assert found["far"][0].item() == pytest.approx(1000, abs=3)
        assert found["near_it"][0].item() == pytest.approx(found["far"][0].item(), abs=2)
        assert found["scale"][0].log().item() == pytest.approx(7, abs=0.5)


def test_lowrank_starts_at_a_factor_analysis_of_the_approximation() -> None:
    """A covariance of the family is taken as it is, however strong its correlations."""
    rng = np.random.default_rng(3)
    loadings = rng.normal(size=(9, 2))
    sd = np.exp(rng.normal(size=9))
    covariance = sd[:, None] * (loadings @ loadings.T + 0.02 * np.eye(9)) * sd

    def story(X: Tensor) -> None:
        pyro.sample("u", dist.Normal(torch.zeros(9), 1.0).to_event(1))

    pair = pair_of(story, torch.zeros(3, 1), "lowrank", rank=2)
    family = pair.guide.globals
    family.start_at(torch.arange(9.0), torch.tensor(covariance, dtype=torch.float32))
    started = family.distribution()._drawn
    np.testing.assert_allclose(started.mean.detach(), np.arange(9.0))
    found = started.covariance_matrix.detach().numpy() / np.outer(sd, sd)
    np.testing.assert_allclose(found, covariance / np.outer(sd, sd), atol=0.02 * found.max())
