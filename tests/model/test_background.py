"""Initial background: mixtures of two normal distributions that are known."""

from __future__ import annotations

import numpy as np

from pyrovi.model.background import background_moments, two_normals


def test_two_normals_are_found() -> None:
    rng = np.random.default_rng(0)
    weight, mean, sd = (
        [0.7, 0.3, 0.5],
        [(1.0, 4.0), (0.0, 6.0), (3.0, 5.5)],
        [(0.5, 0.8), (0.3, 1.0), (0.4, 0.4)],
    )
    lower = rng.random((8000, 3)) < weight
    m, s = np.array(mean), np.array(sd)
    x = np.where(
        lower, rng.normal(m[:, 0], s[:, 0], lower.shape), rng.normal(m[:, 1], s[:, 1], lower.shape)
    )
    found = two_normals(x)
    np.testing.assert_allclose(found[0][0], weight, atol=0.03)
    np.testing.assert_allclose(found[1], m.T, atol=0.08)
    np.testing.assert_allclose(found[2], s.T, atol=0.08)


def test_columns_without_spread_do_not_collapse() -> None:
    weight, mean, sd = two_normals(np.zeros((50, 1)))
    assert np.isfinite([weight, mean, sd]).all()
    assert (sd >= 0.1).all()


def test_background_of_panels() -> None:
    rng = np.random.default_rng(1)
    panel = np.repeat([0, 1], 3000)
    log_mean = np.where(rng.random((6000, 3)) < 0.5, 2.0, 5.0) + np.array([0.0, 1.0])[panel, None]
    counts = np.round(np.exp(rng.normal(log_mean, 0.3)))
    counts[panel == 1, 2] = 0
    measured = np.array([[True, True, False], [True, True, False]])
    measured[0, 2] = True
    means, sds = background_moments(counts, panel, measured)
    np.testing.assert_allclose(means[:2], [[2.0, 3.0], [2.0, 3.0]], atol=0.15)
    np.testing.assert_allclose(sds[:2], 0.3, atol=0.1)
    np.testing.assert_allclose(means[2, 1], means[2, 0])  # that of the panel that has it
    means, sds = background_moments(counts[:5], panel[:5], np.zeros((2, 3), dtype=bool))
    np.testing.assert_array_equal(means, 3.0)  # nowhere measured
    np.testing.assert_array_equal(sds, 1.0)
