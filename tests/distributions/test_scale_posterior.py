"""The posterior of a standard deviation is Bayes' rule, and its draws are of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pyrovi.distributions.scale_posterior import ScalePosterior

CASES = [(0.5, 8, -1.4, 0.4), (1e-6, 8, -1.4, 0.4), (50.0, 3, -1.4, 0.1), (0.0, 2, -1.0, 0.3),
         (4000.0, 100, 0.0, 1.5), (1e-4, 1, -1.0, 3.0)]  # fmt: skip


def distribution(case: tuple[float, int, float, float]) -> ScalePosterior:
    squares, count, loc, spread = case
    return ScalePosterior(torch.tensor(squares), count, torch.tensor(loc), torch.tensor(spread))


@pytest.mark.parametrize("case", CASES)
def test_density_and_draws(case: tuple[float, int, float, float]) -> None:
    squares, count, loc, spread = case
    q = distribution(case)

    def log_joint(t: np.ndarray) -> np.ndarray:  # of the logarithm, by SciPy
        effects = -count * t - 0.5 * squares * np.exp(-2 * t)
        return stats.norm(loc, spread).logpdf(t) + effects

    grid = np.linspace(loc - 12 * spread - 6, loc + 12 * spread + 6, 200_001)
    values = log_joint(grid)
    density = np.exp(values - values.max())
    density /= integrate.trapezoid(density, grid)
    inside = grid[density > 1e-3 * density.max()][::500]
    expected = np.interp(inside, grid, density) / np.exp(inside)
    sigma = torch.as_tensor(np.exp(inside), dtype=torch.float32)
    np.testing.assert_allclose(q.log_prob(sigma).exp(), expected, rtol=2e-3)

    torch.manual_seed(0)
    draws = np.sort(q.rsample((20_000,)).log().double().numpy())
    cdf = np.interp(draws, grid, integrate.cumulative_trapezoid(density, grid, initial=0))
    assert stats.kstest(cdf, "uniform").pvalue > 0.01


def test_gradient_of_the_evidence_is_exact() -> None:
    """Joint density over posterior: the same at every draw, and so is its gradient."""
    parameters = [torch.tensor(x, dtype=torch.float64) for x in (0.5, -1.4, 0.4)]

    def evidence(squares: torch.Tensor, loc: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        q = ScalePosterior(squares, 8, loc, spread)
        sigma = q.rsample((5,))
        prior = torch.distributions.LogNormal(loc, spread).log_prob(sigma)
        effects = -8 * sigma.log() - 0.5 * squares / sigma**2
        return prior + effects - q.log_prob(sigma)

    values = evidence(*parameters)
    np.testing.assert_allclose(values, values[0], atol=1e-10)
    wanting = [p.requires_grad_() for p in parameters]
    assert torch.autograd.gradcheck(lambda *p: evidence(*p).mean(), wanting, atol=1e-6)


def test_shapes() -> None:
    q = ScalePosterior(torch.rand(3, 1), 4, torch.zeros(2), torch.tensor(0.5))
    assert q.batch_shape == (3, 2)
    assert q.rsample((7,)).shape == (7, 3, 2)
    assert q.expand((5, 3, 2)).log_prob(torch.ones(5, 3, 2)).shape == (5, 3, 2)
    drawn = torch.func.vmap(
        lambda s: ScalePosterior(s, 4, torch.zeros(2), torch.ones(2)).rsample(),
        randomness="different",
    )(torch.rand(6, 2))
    assert drawn.shape == (6, 2)
    assert (drawn > 0).all()
