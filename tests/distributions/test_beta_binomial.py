from __future__ import annotations

import pyro
import pytest
import torch

from pyrovi.distributions import BetaBinomial


def test_parametrisations_agree_with_each_other_and_with_pyro():
    alpha = torch.tensor([0.5, 3.0], dtype=torch.float64)
    beta = torch.tensor([2.0, 1.5], dtype=torch.float64)
    by_shape = BetaBinomial(20, alpha=alpha, beta=beta)
    by_mean = BetaBinomial(20, mu=alpha / (alpha + beta), gamma=1 / (alpha + beta + 1))
    theirs = pyro.distributions.BetaBinomial(alpha, beta, 20)
    x = torch.arange(21, dtype=torch.float64)[:, None]
    for other in (by_mean, theirs):
        torch.testing.assert_close(other.log_prob(x), by_shape.log_prob(x))
        for name in ("mean", "variance", "concentration1", "concentration0"):
            torch.testing.assert_close(getattr(other, name), getattr(by_shape, name))


def test_no_trials():
    d = BetaBinomial(torch.tensor([0.0, 3.0]), alpha=1.0, beta=2.0)
    assert d.log_prob(torch.tensor(0.0))[0] == 0
    assert (d.sample((50,))[:, 0] == 0).all()


def test_counts_above_the_total_are_refused():
    with pytest.raises(ValueError, match="support"):
        BetaBinomial(5, alpha=1.0, beta=1.0, validate_args=True).log_prob(torch.tensor(6.0))


@pytest.mark.parametrize("bad", [{"mu": 0.0, "gamma": 0.5}, {"mu": 0.5, "gamma": 1.0}])
def test_degenerate_means_and_dispersions_are_refused(bad):
    with pytest.raises(ValueError, match="OpenInterval"):
        BetaBinomial(5, **bad, validate_args=True)


def test_small_concentrations_draw_the_ends():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = BetaBinomial(9, alpha=torch.tensor(1e-4), beta=1e-4).sample((4000,))
    assert draws.isfinite().all()
    assert ((draws == 0) | (draws == 9)).float().mean() > 0.99
    assert abs((draws == 9).float().mean().item() - 0.5) < 0.05
