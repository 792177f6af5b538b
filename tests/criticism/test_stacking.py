"""Stacking against analytic optima and the optimality conditions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pyrovi.criticism.stacking import stacking_weights
from pyrovi.errors import DataError


def test_recovers_the_analytic_optimum_of_two_densities() -> None:
    # A fraction f of the observations is only possible under one model, the rest under the other:
    # the likelihood f log w + (1 - f) log (1 - w) has its optimum at w = f.
    for fraction in (0.1, 0.37, 0.9):
        first = np.arange(1000) < 1000 * fraction
        table = np.where(np.column_stack([first, ~first]), -1.0, -60.0)
        np.testing.assert_allclose(stacking_weights(table), [fraction, 1 - fraction], atol=1e-6)


def test_recovers_the_mixture_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    x = np.where(
        rng.uniform(size=20_000) < 0.3, rng.normal(-1, 1, 20_000), rng.normal(2, 1, 20_000)
    )
    table = np.column_stack([stats.norm(-1, 1).logpdf(x), stats.norm(2, 1).logpdf(x)])
    np.testing.assert_allclose(stacking_weights(table), [0.3, 0.7], atol=0.015)


@pytest.mark.parametrize("num_models", [2, 5, 12])
def test_no_exchange_of_weight_helps(num_models: int) -> None:
    rng = np.random.default_rng(num_models)
    table = rng.normal(-500, 2, size=(300, num_models)) + rng.normal(0, 0.3, num_models)
    weights = stacking_weights(table)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    density = np.exp(table - table.max(1, keepdims=True))
    gradient = (density / (density @ weights)[:, None]).mean(0)
    # Karush-Kuhn-Tucker: 1 for models in use, at most 1 for the others
    np.testing.assert_allclose(gradient[weights > 1e-4], 1, atol=2e-4)
    assert (gradient < 1 + 2e-4).all()


def test_a_model_that_is_worse_everywhere_gets_nothing_and_twins_share() -> None:
    table = np.random.default_rng(0).normal(-3, 1, size=(100, 1)) + np.array([0.0, -2.0])
    np.testing.assert_allclose(stacking_weights(table), [1, 0], atol=1e-9)
    np.testing.assert_allclose(stacking_weights(table[:, [0, 0]]), [0.5, 0.5])
    np.testing.assert_array_equal(stacking_weights(table[:, :1]), [1])


def test_one_observation_of_huge_weight_does_not_overflow() -> None:
    table = np.array([[-1e5, -1e5 - 800.0], [-3.0, -2.0]])
    weights = stacking_weights(table)
    assert np.isfinite(weights).all()
    # log w + log(e^-3 w + e^-2 (1 - w)): the optimum in closed form
    assert weights[0] == pytest.approx(1 / (2 * (1 - np.exp(-1))), abs=1e-5)


def test_bad_tables() -> None:
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        stacking_weights([1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="1 observations have a log predictive density"):
        stacking_weights([[0.0, -np.inf], [0.0, 0.0]])
