"""Proposals of locals given the globals, against the distributions that drew them."""

from __future__ import annotations

import numpy as np
import torch

from pyrovi.module.local_proposal import WIDER, match, whiten


def test_means_and_scales_follow_the_globals() -> None:
    rng = np.random.default_rng(0)
    count, n = 2000, 6
    g = rng.normal(size=(count, 2)) * np.array([2.0, 0.1]) + 5.0
    slope, level = rng.normal(size=(2, n)), rng.normal(size=n)
    correlation = np.array([[1.0, 0.8], [0.8, 1.0]])
    noise = rng.multivariate_normal(np.zeros(2), correlation, size=(count, n))
    log_scale = 0.3 * (g[:, 0] - 5.0)
    u = level[:, None] + (g @ slope)[..., None] + np.exp(log_scale)[:, None, None] * noise
    proposal = match(whiten(torch.as_tensor(g)), torch.as_tensor(u))
    for draw in (0, 7, 100):
        normal = proposal.given(torch.tensor(draw))
        scale = np.exp(log_scale[draw])
        mean = (level + g[draw] @ slope)[:, None] * np.ones(2)
        assert np.abs(normal.loc.numpy() - mean).max() < 0.25 * scale
        found = normal.covariance_matrix.numpy() / (WIDER * scale) ** 2
        np.testing.assert_allclose(found, np.broadcast_to(correlation, (n, 2, 2)), atol=0.25)


def test_too_many_globals_are_not_regressed_on() -> None:
    rng = np.random.default_rng(0)
    g, u = torch.as_tensor(rng.normal(size=(50, 6))), torch.as_tensor(rng.normal(size=(50, 3, 1)))
    assert whiten(g).shape == (50, 0)
    normal = match(whiten(g), u).given(torch.tensor(3))
    np.testing.assert_allclose(normal.loc, u.mean(0))


def test_whitened_columns_are_uncorrelated_and_constant_ones_are_left_out() -> None:
    g = torch.randn(200, 3, generator=torch.manual_seed(0)).double()
    g = torch.cat([g, g[:, :1] * 2, torch.ones(200, 1).double()], 1)
    white = whiten(g)
    np.testing.assert_allclose(white.T @ white / 200, np.eye(3), atol=1e-10)
