"""Multinomial with a total for each row: mass against SciPy's, draws against their moments."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from scipy import stats

from pyrovi.distributions import Multinomial, log_multinomial_coefficient
from pyrovi.errors import ModelError

TOTALS = torch.tensor([0.0, 7.0, 30.0])
PROBS = torch.tensor([[0.2, 0.5, 0.3, 0.0, 0.0], [0.1, 0.2, 0.3, 0.2, 0.2], [0.9, 0.1, 0, 0, 0]])


def draws(n: int, probs: torch.Tensor = PROBS, totals: torch.Tensor = TOTALS) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Multinomial(totals, probs).sample((n,))


def test_log_prob_is_scipys():
    x = draws(20)
    found = Multinomial(TOTALS, PROBS.double()).log_prob(x)
    for row in range(3):
        p = PROBS[row].double().numpy()
        exact = stats.multinomial(int(TOTALS[row]), p / p.sum()).logpmf(x[:, row].numpy())
        np.testing.assert_allclose(found[:, row], exact, rtol=1e-6, atol=1e-10)


def test_one_total_agrees_with_torch():
    theirs = torch.distributions.Multinomial(12, PROBS[1].double())
    x = theirs.sample((8,))
    ours = Multinomial(12, PROBS[1].double())
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)


def test_probabilities_are_divided_by_their_sum():
    x = draws(5)
    scaled = Multinomial(TOTALS, 3 * PROBS.double())
    torch.testing.assert_close(scaled.log_prob(x), Multinomial(TOTALS, PROBS.double()).log_prob(x))
    torch.testing.assert_close(scaled.probs.sum(-1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("n_vars", [1, 2, 3, 5, 8, 13])
def test_draws_have_the_totals_and_moments(n_vars):
    probs = torch.arange(1.0, n_vars + 1).roll(2).expand(3, -1)
    x, d = draws(20_000, probs), Multinomial(TOTALS, probs)
    assert (x.sum(-1) == TOTALS).all()
    error = (d.variance / 20_000).sqrt()
    assert ((x.mean(0) - d.mean).abs() <= 5 * error + 1e-6).all()
    torch.testing.assert_close(x.var(0), d.variance, rtol=0.08, atol=1e-6)
    if n_vars > 1:  # of the same row: negative covariance -n p q
        covariance = torch.cov(x[:, 2].T)[0, -1]
        exact = -30 * d.probs[2, 0] * d.probs[2, -1]
        assert abs(covariance - exact) < 0.1 * abs(exact) + 0.05


def test_all_values_of_a_small_case_sum_to_one():
    values = torch.tensor([[i, j, 4 - i - j] for i in range(5) for j in range(5 - i)])
    assert Multinomial(4, torch.tensor([0.2, 0.3, 0.5])).log_prob(values).exp().sum().item() == (
        pytest.approx(1.0, abs=1e-6)
    )


def test_impossible_variables_are_never_drawn_and_have_finite_gradients():
    assert (draws(200)[..., 2, 2:] == 0).all()
    probs = PROBS.clone().requires_grad_()
    Multinomial(TOTALS, probs).log_prob(draws(1)[0]).sum().backward()
    assert probs.grad.isfinite().all()


def test_it_is_a_pyro_distribution():
    d = Multinomial(TOTALS, PROBS).expand([2, 3])
    assert d.batch_shape == (2, 3)
    assert d.event_shape == (5,)
    with pyro.plate("rows", 3):
        x = pyro.sample("x", Multinomial(TOTALS, PROBS))
    assert x.shape == (3, 5)
    vectorised = torch.func.vmap(lambda p: Multinomial(TOTALS, p, validate_args=False).log_prob(x))
    stacked = torch.stack([PROBS, PROBS.flip(0)])
    torch.testing.assert_close(vectorised(stacked)[0], Multinomial(TOTALS, PROBS).log_prob(x))


@pytest.mark.parametrize(
    "x", [[[1.0, 0, 0, 0, 0]] * 3, [[0, 0, 0, 0, 0], [8, -1, 0, 0, 0], [30, 0, 0, 0, 0]]]
)
def test_values_outside_the_support_are_refused(x):
    with pytest.raises(ValueError, match="support"):
        Multinomial(TOTALS, PROBS, validate_args=True).log_prob(torch.tensor(x))


def test_bad_parameters_are_refused():
    with pytest.raises(ModelError, match="probs"):
        Multinomial(3, torch.tensor([0.5, -0.1]), validate_args=True)
    with pytest.raises(ModelError, match="total_count"):
        Multinomial(torch.tensor([2.0, 1.5]), torch.ones(2, 4), validate_args=True)
    with pytest.raises(ModelError, match="broadcast"):
        Multinomial(torch.ones(3), torch.ones(2, 4))
    with pytest.raises(ModelError, match="last dimension"):
        Multinomial(3, torch.tensor(0.5))


def test_coefficient_counts_the_orders():
    counts = torch.tensor([[3.0, 0.0], [2.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(log_multinomial_coefficient(counts).exp(), torch.tensor([1.0, 3, 1]))
