"""Bands of distribution functions have the stated probability, and notice other shapes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pyrovi.errors import ModelError
from pyrovi.posterior.ecdf import ecdf_bands, ecdf_values, uniformity


def simulated_coverage(bands, values: np.ndarray) -> float:
    return float(np.mean([bands.contains(ecdf_values(v, bands.points)) for v in values]))


@pytest.mark.parametrize("n", [20, 250])
@pytest.mark.parametrize("probability", [0.5, 0.95])
def test_simulated_coverage_of_uniform_values(n: int, probability: float) -> None:
    bands = ecdf_bands(n, probability)
    values = np.random.default_rng(n).random((2000, n))
    coverage = simulated_coverage(bands, values)
    # exact, but for the steps of counts (which make the band wider) and simulation noise
    noise = 3 * math.sqrt(probability * (1 - probability) / 2000)
    assert probability - noise <= coverage <= probability + noise + (0.05 if n == 20 else 0.02)


def test_probability_equals_enumeration() -> None:
    # all 4^3 ways to put three values into the four parts of the interval
    bands = ecdf_bands(3, 0.6, points=4)
    inside = sum(
        bands.contains(ecdf_values((np.array(cells) + 0.5) / 4, bands.points))
        for cells in itertools.product(range(4), repeat=3)
    )
    found = inside / 4**3
    assert found >= 0.6
    # the narrowest: at any higher level the band loses data sets and falls below
    lower = stats.binom.ppf(bands.level * 1.01 / 2, 3, bands.points)
    upper = stats.binom.isf(bands.level * 1.01 / 2, 3, bands.points)
    narrower = 0
    for cells in itertools.product(range(4), repeat=3):
        counts = ecdf_values((np.array(cells) + 0.5) / 4, bands.points) * 3
        narrower += bool(((counts >= lower) & (counts <= upper)).all())
    assert narrower / 4**3 < 0.6


def test_one_point_is_the_binomial_interval() -> None:
    bands = ecdf_bands(100, 0.9, points=[0.3])
    low, high = bands.lower[0] * 100, bands.upper[0] * 100
    assert stats.binom.cdf(high, 100, 0.3) - stats.binom.cdf(low - 1, 100, 0.3) >= 0.9
    assert low == stats.binom.ppf(0.05, 100, 0.3) or low == stats.binom.ppf(0.05, 100, 0.3) + 1


def test_simulated_level_agrees_with_the_exact_one(monkeypatch) -> None:
    from pyrovi.posterior import ecdf

    exact = ecdf._level(300, 0.9, tuple(np.arange(1, 30) / 30))
    ecdf._level.cache_clear()
    monkeypatch.setattr(ecdf, "_EXACT_WORK", 0)
    simulated = ecdf._level(300, 0.9, tuple(np.arange(1, 30) / 30))
    ecdf._level.cache_clear()
    assert simulated == pytest.approx(exact, rel=0.15)
    assert simulated != exact


def test_many_values_have_a_band_soon() -> None:
    bands = ecdf_bands(200_000)
    # a little wider than twice the pointwise standard deviation, and far from the DKW bound
    sd = np.sqrt(bands.points * (1 - bands.points) / bands.n)
    assert ((bands.upper - bands.points) / sd > 2.3).all()
    assert ((bands.upper - bands.points) / sd < 3.8).all()


@pytest.mark.parametrize("num_ranks", [8, 100, 251])
def test_coverage_of_uniform_ranks(num_ranks: int) -> None:
    rng = np.random.default_rng(num_ranks)
    inside = [
        uniformity(rng.integers(num_ranks, size=60), 0.9, num_ranks=num_ranks).inside
        for _ in range(1000)
    ]
    assert 0.9 - 0.03 <= np.mean(inside) <= 0.97


def test_p_values_are_uniform_under_the_null() -> None:
    rng = np.random.default_rng(3)
    p = np.array([uniformity(rng.random(80), points=40).p_value for _ in range(400)])
    for quantile in (0.05, 0.2, 0.5, 0.8):  # discrete, so at most the nominal rate
        rate = (p <= quantile).mean()
        assert quantile - 0.07 <= rate <= quantile + 0.06


@pytest.mark.parametrize("values", [np.random.default_rng(0).beta(2, 2, 200),
                                    np.random.default_rng(0).beta(0.5, 0.5, 200),
                                    np.random.default_rng(0).beta(1, 1.5, 200)])  # fmt: skip
def test_other_shapes_leave_the_band(values: np.ndarray) -> None:
    found = uniformity(values)
    assert not found.inside
    assert found.p_value < 0.01
    assert found.bands.n == 200


def test_inside_and_p_value_agree() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        found = uniformity(rng.beta(1, 1.25, 90), 0.9, points=30)
        if abs(found.p_value - 0.1) > 0.02:
            assert found.inside == (found.p_value > 0.1)


def test_wrong_arguments_are_explained() -> None:
    with pytest.raises(ModelError, match="at least one value"):
        ecdf_bands(0)
    with pytest.raises(ModelError, match="between 0 and 1, got 95"):
        ecdf_bands(10, 95)
    with pytest.raises(ModelError, match="increasing order"):
        ecdf_bands(10, points=[0.5, 0.2])
    with pytest.raises(ModelError, match=r"multiples of 1/7"):
        ecdf_bands(10, points=[0.5], num_ranks=7)
    with pytest.raises(ModelError, match="between 0 and 1, found 3"):
        uniformity([0.2, 3.0])
    with pytest.raises(ModelError, match="between 0 and 4, found 5"):
        uniformity([1, 5], num_ranks=5)


def test_p_value_of_values_that_no_uniform_sample_would_be() -> None:
    # the probability of so many equal values underflows to 0
    assert uniformity(np.full(500, 0.999)).p_value < 1e-9
    assert uniformity(np.repeat([0, 99], 1000), num_ranks=100).p_value < 1e-9
