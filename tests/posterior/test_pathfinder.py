"""Pathfinder's normals against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pyrovi.posterior.pathfinder import _normals


def bfgs_path(precision: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and gradients of exact line searches along conjugate directions."""
    x = np.ones(len(precision))
    path, direction = [x], -(precision @ x)
    for _ in range(steps):
        gradient = precision @ x
        x = x - (direction @ gradient) / (direction @ precision @ direction) * direction
        path.append(x)
        new = precision @ x
        direction = -new + (new @ new) / (gradient @ gradient) * direction
    positions = np.stack(path)
    return positions, positions @ precision


def test_normals_fulfil_the_secant_equation_and_have_their_density() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    precision = root @ root.T + np.eye(5)
    path, gradients = bfgs_path(precision, 3)
    normal = _normals(path, gradients, history=6)[-1]
    count = 200_000
    draws, density = normal.draw(count, np.random.default_rng(1))
    lowered = np.eye(5) + (normal.basis @ (normal.factor - np.eye(len(normal.factor)))) @ (
        normal.basis.T
    )
    scale = normal.root[:, None] * lowered
    covariance = scale @ scale.T
    s, y = path[3] - path[2], gradients[3] - gradients[2]
    np.testing.assert_allclose(covariance @ y, s, rtol=1e-6, atol=1e-9)
    exact = stats.multivariate_normal(normal.mean, covariance).logpdf(draws[:50])
    np.testing.assert_allclose(density[:50], exact, rtol=1e-8)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.02)
    np.testing.assert_allclose(normal.mean, path[3] - covariance @ gradients[3], atol=1e-9)


def test_after_as_many_steps_as_dimensions_it_is_the_target() -> None:
    root = np.random.default_rng(0).normal(size=(4, 4))
    precision = root @ root.T + np.eye(4)
    path, gradients = bfgs_path(precision, 4)
    normal = _normals(path, gradients, history=6)[-1]
    draws, density = normal.draw(100, np.random.default_rng(1))
    target = stats.multivariate_normal(np.zeros(4), np.linalg.inv(precision)).logpdf(draws)
    assert np.std(target - density) == pytest.approx(0.0, abs=1e-6)
