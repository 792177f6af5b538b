"""Vectorised draws have the distributions of draws one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyrovi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from pyrovi.posterior import vectorise
from pyrovi.posterior.vectorise import DrawMapper, map_draws

t = torch.tensor
S = 20_000

CONTINUOUS: dict[str, tuple[Callable[[], Any], Any]] = {
    "Normal": (lambda: dist.Normal(t(1.0), 0.5), stats.norm(1.0, 0.5)),
    "LogNormal": (lambda: dist.LogNormal(0.3, t(0.5)), stats.lognorm(0.5, scale=np.exp(0.3))),
    "Gamma": (lambda: dist.Gamma(t(0.7), t(2.0)), stats.gamma(0.7, scale=0.5)),
    "Beta": (lambda: dist.Beta(t(0.7), t(2.0)), stats.beta(0.7, 2.0)),
    "Beta, small": (lambda: dist.Beta(t(0.05), t(0.1)), stats.beta(0.05, 0.1)),
    "HalfCauchy": (lambda: dist.HalfCauchy(t(1.5)), stats.halfcauchy(scale=1.5)),
    "HalfNormal": (lambda: dist.HalfNormal(t(1.5)), stats.halfnorm(scale=1.5)),
    "StudentT": (lambda: dist.StudentT(t(3.0), 1.0, 2.0), stats.t(3.0, 1.0, 2.0)),
    "Exponential": (lambda: dist.Exponential(t(2.0)), stats.expon(scale=0.5)),
    "Weibull": (lambda: dist.Weibull(t(1.5), t(2.0)), stats.weibull_min(2.0, scale=1.5)),
    "Laplace": (lambda: dist.Laplace(t(1.0), t(2.0)), stats.laplace(1.0, 2.0)),
    "Uniform": (lambda: dist.Uniform(t(1.0), t(2.0)), stats.uniform(1.0, 1.0)),
}
DISCRETE: dict[str, tuple[Callable[[], Any], Any]] = {
    "Poisson": (lambda: dist.Poisson(t(3.0)), stats.poisson(3.0)),
    "Bernoulli": (lambda: dist.Bernoulli(t(0.3)), stats.bernoulli(0.3)),
    "Binomial": (lambda: dist.Binomial(10, t(0.3)), stats.binom(10, 0.3)),
    "NB": (lambda: NegativeBinomial(mu=t(3.0), theta=t(0.7)), stats.nbinom(0.7, 0.7 / 3.7)),
}


def sampled(make: Callable[[], Any], *, must_vectorise: bool = True) -> np.ndarray:
    mapper = DrawMapper()
    torch.manual_seed(0)
    values = mapper(lambda _: {"x": pyro.sample("x", make())}, {}, S)["x"]
    assert mapper.vectorise == must_vectorise
    return values.double().numpy()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous(name: str) -> None:
    make, exact = CONTINUOUS[name]
    values = sampled(make)
    if name == "Beta, small":  # values closer to one than single precision can tell
        values = values[values < 0.99]
        assert stats.kstest(values, lambda x: exact.cdf(x) / exact.cdf(0.99)).pvalue > 1e-4
    else:
        assert stats.kstest(values, exact.cdf).pvalue > 1e-4


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete(name: str) -> None:
    make, exact = DISCRETE[name]
    assert _chi_square(sampled(make), exact.pmf) > 1e-4


def test_zero_inflated() -> None:
    values = sampled(
        lambda: ZeroInflatedNegativeBinomial(mu=t(3.0), theta=t(0.7), zi_logits=t(0.0))
    )
    plain = stats.nbinom(0.7, 0.7 / 3.7)
    assert _chi_square(values, lambda k: 0.5 * plain.pmf(k) + 0.5 * (k == 0)) > 1e-4


def test_categorical() -> None:
    probabilities = np.array([0.1, 0.2, 0.7])
    values = sampled(lambda: dist.Categorical(t(probabilities)))
    assert _chi_square(values, lambda k: probabilities[k]) > 1e-4


def _chi_square(values: np.ndarray, pmf: Callable[[np.ndarray], np.ndarray]) -> float:
    support = np.arange(int(values.max()) + 1)
    counts = np.bincount(values.astype(int), minlength=len(support)).astype(float)
    expected = np.asarray(pmf(support), dtype=float) * len(values)
    rare = expected < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], max(len(values) - expected[~rare].sum(), 1e-9))
    if expected[-1] < 1:
        counts, expected = counts[:-1], expected[:-1]
    return float(stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1))


def test_dirichlet_marginals_are_beta() -> None:
    alpha = np.array([0.3, 1.0, 2.0])
    values = sampled(lambda: dist.Dirichlet(t(alpha)))
    for k in range(3):
        exact = stats.beta(alpha[k], alpha.sum() - alpha[k])
        assert stats.kstest(values[:, k], exact.cdf).pvalue > 1e-4
    np.testing.assert_allclose(values.sum(1), 1.0)


@pytest.mark.parametrize("a", [1e-2, 1e-3, 1e-4])
def test_tiny_concentrations_do_not_underflow(a: float) -> None:
    values = sampled(lambda: dist.Dirichlet(torch.full((4,), a)))
    assert np.isfinite(values).all()
    assert (values > 0).all()
    assert (values < 1).all()
    mean, variance = 0.25, 0.25 * 0.75 / (4 * a + 1)
    np.testing.assert_allclose(values.mean(0), mean, atol=5 * (variance / S) ** 0.5)
    np.testing.assert_allclose(values.var(0), variance, rtol=0.05)
    beta = sampled(lambda: dist.Beta(t(a), t(3 * a)))
    np.testing.assert_allclose(beta.mean(), 0.25, atol=5 * (variance / S) ** 0.5)


@pytest.mark.parametrize("low_rank", [False, True])
def test_multivariate_normal(low_rank: bool) -> None:
    factor, diagonal = t([[1.0], [0.5]]), t([0.5, 1.0])
    covariance = factor @ factor.T + diagonal.diag()
    loc = t([1.0, -1.0])
    values = sampled(
        lambda: (
            dist.LowRankMultivariateNormal(loc, factor, diagonal)
            if low_rank
            else dist.MultivariateNormal(loc, covariance)
        )
    )
    np.testing.assert_allclose(values.mean(0), loc, atol=5 * 1.3 / S**0.5)
    whitened = np.linalg.solve(np.linalg.cholesky(covariance.numpy()), (values - loc.numpy()).T)
    for row in whitened:
        assert stats.kstest(row, stats.norm.cdf).pvalue > 1e-4
    assert abs(np.corrcoef(whitened)[0, 1]) < 5 / S**0.5


def test_parameters_that_differ_between_draws() -> None:
    rates = torch.linspace(0.5, 4.0, 10).repeat_interleave(2_000)

    def story(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with pyro.plate("p", 2):
            x = pyro.sample("x", dist.Gamma(2.0, values["rate"]))
        return {"x": pyro.deterministic("y", x * values["rate"])}

    found = map_draws(story, {"rate": rates}, len(rates))["x"].numpy()
    assert found.shape == (20_000, 2)
    assert stats.kstest(found.ravel(), stats.gamma(2.0).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(found.T)[0, 1]) < 5 / S**0.5


def test_replayed_deterministics_are_those_of_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = {"w": torch.randn(50, 3, generator=generator), "s": torch.rand(50, generator=generator)}
    x = torch.randn(7, 3, generator=generator)

    def story(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        fn = dist.Normal(x @ values["w"], values["s"] + 0.1)
        return {"mean": fn.mean, "log_prob": fn.log_prob(torch.ones(7))}

    together = map_draws(story, draws, 50)
    for name, value in vectorise._looped(story, draws, 50).items():
        torch.testing.assert_close(together[name], value)


@pytest.mark.parametrize(
    "story",
    [
        lambda v: {"x": v["a"] * 2 if v["a"].item() > 0 else v["a"]},
        lambda v: {"x": v["a"] * 2 if v["a"] > 0 else v["a"]},
        lambda v: {"x": torch.as_tensor(np.where(v["a"].numpy() > 0, 2, 1)) * v["a"]},
    ],
)
def test_control_flow_is_looped_over(story: Any) -> None:
    a = torch.randn(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(map_draws(story, {"a": a}, 20)["x"], torch.where(a > 0, 2 * a, a))


def test_what_cannot_be_vectorised_is_tried_once_and_right() -> None:
    calls = []

    def story(_: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"L": pyro.sample("L", dist.LKJCholesky(2, t(1.0)))}

    mapper = DrawMapper()
    torch.manual_seed(0)
    factors = mapper(story, {}, 500)["L"]
    assert len(calls) == 501
    assert not mapper.vectorise
    mapper(story, {}, 10)
    assert len(calls) == 511
    # with concentration 1 in two dimensions the correlation is uniform
    assert stats.kstest(factors[:, 1, 0].numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4


def test_the_fallback_starts_from_the_same_random_state() -> None:
    def story(_: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        return {"x": x if x > 0 else 1 * x}

    torch.manual_seed(3)
    first = map_draws(story, {}, 5)["x"]
    torch.manual_seed(3)
    torch.testing.assert_close(first, vectorise._looped(story, {}, 5)["x"])


def test_errors_of_the_story_are_raised() -> None:
    def story(_: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        raise ValueError("the story's own")

    with pytest.raises(ValueError, match="the story's own"):
        map_draws(story, {}, 3)


def test_chunks_have_their_own_noise_and_all_draws() -> None:
    def story(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"x": pyro.sample("x", dist.Normal(0.0, 1.0)), "a": values["a"]}

    found = map_draws(story, {"a": torch.arange(10.0)}, 10, chunk=3)
    torch.testing.assert_close(found["a"], torch.arange(10.0))
    assert len(found["x"].unique()) == 10
