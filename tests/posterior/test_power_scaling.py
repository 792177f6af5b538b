"""Power-scaling against exact scaled posteriors and distances by integration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pyrovi.posterior.power_scaling import cjs_distance, power_scaling_sensitivity


def exact_distance(
    p: stats.rv_continuous, q: stats.rv_continuous, low: float, high: float
) -> float:
    """The distance by numerical integration over the range of the draws."""

    def one(cdf_p, cdf_q, x):
        P, Q = cdf_p(x), cdf_q(x)
        M = (P + Q) / 2
        terms = np.where(P > 0, P * np.log2(P / M), 0) + np.where(Q > 0, Q * np.log2(Q / M), 0)
        return np.sqrt(np.trapezoid(terms, x) / np.trapezoid(P + Q, x))

    x = np.linspace(low, high, 20_001)
    return max(one(p.cdf, q.cdf, x), one(lambda y: p.sf(-y), lambda y: q.sf(-y), -x[::-1]))


def quantile_draws(distribution: stats.rv_continuous, n: int = 4000) -> np.ndarray:
    return distribution.ppf((np.arange(n) + 0.5) / n)


def test_distance_of_weighted_draws_is_that_of_the_distributions() -> None:
    p, q = stats.norm(0, 1), stats.norm(0.3, 0.9)
    x = quantile_draws(p)
    found = cjs_distance(np.stack([x, -x], 1), q.pdf(x) / p.pdf(x))
    exact = exact_distance(p, q, x[0], x[-1])
    np.testing.assert_allclose(found, exact, rtol=0.02)


def test_distance_is_zero_for_equal_weights_and_undefined_without_spread() -> None:
    draws = np.stack([np.arange(50.0), np.zeros(50)], 1)
    found = cjs_distance(draws, np.full(50, 3.0))
    assert found[0] == pytest.approx(0, abs=1e-7)
    assert np.isnan(found[1])
    assert cjs_distance(np.zeros((5, 0)), np.ones(5)).shape == (0,)


def test_distance_does_not_depend_on_the_order_or_scale() -> None:
    rng = np.random.default_rng(0)
    draws, weights = rng.normal(size=(300, 1)), rng.exponential(size=300)
    order = rng.permutation(300)
    one = cjs_distance(draws, weights)
    np.testing.assert_allclose(cjs_distance(draws[order], weights[order]), one, rtol=1e-10)
    np.testing.assert_allclose(cjs_distance(7 + 20 * draws, 5 * weights), one, rtol=1e-6)


@pytest.mark.parametrize("component", ["prior", "likelihood"])
def test_sensitivity_of_a_conjugate_normal_is_the_exact_derivative(component: str) -> None:
    """Scaling a normal factor by alpha divides its variance by alpha: the posterior is known."""
    prior, likelihood = (0.0, 1.0), (2.5, 0.8)  # means and standard deviations of the factors

    def posterior(alpha: float) -> stats.rv_continuous:
        powers = (alpha, 1.0) if component == "prior" else (1.0, alpha)
        precisions = [a / s**2 for a, (_, s) in zip(powers, (prior, likelihood), strict=True)]
        mean = (precisions[0] * prior[0] + precisions[1] * likelihood[0]) / sum(precisions)
        return stats.norm(mean, sum(precisions) ** -0.5)

    x = quantile_draws(posterior(1.0))
    loc, scale = prior if component == "prior" else likelihood
    found, khat = power_scaling_sensitivity(x[:, None], stats.norm(loc, scale).logpdf(x))
    exact = np.mean(
        [
            exact_distance(posterior(1.0), posterior(a), x[0], x[-1]) / abs(np.log2(a))
            for a in (0.99, 1.01)
        ]
    )
    assert found[0] == pytest.approx(exact, rel=0.03)
    assert khat < 0.5
