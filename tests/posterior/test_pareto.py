"""PSIS against ArviZ, and against distributions whose tail shape is known."""

import numpy as np
import pytest

from pyrovi.errors import DataError
from pyrovi.posterior.pareto import EQUAL_WEIGHTS, importance_ess, khat_threshold, psis


def _log_weights(num_draws: int, columns: int = 40) -> np.ndarray:
    rng = np.random.default_rng(num_draws)
    return rng.normal(size=(num_draws, columns)) * np.linspace(0.05, 4, columns)


@pytest.mark.parametrize("num_draws", [21, 100, 333, 4000])
@pytest.mark.parametrize("reff", [1.0, 0.3])
@pytest.mark.parametrize("normalize", [True, False])
def test_equals_arviz(num_draws, reff, normalize):
    arviz_stats = pytest.importorskip("arviz.stats.stats")  # ArviZ 0.x
    log_weights = _log_weights(num_draws)
    smoothed, khat = psis(log_weights, reff=reff, normalize=normalize)
    expected, shapes = arviz_stats.psislw(log_weights.T, reff=reff, normalize=normalize)
    np.testing.assert_allclose(khat, shapes, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(smoothed, expected.T, rtol=1e-9, atol=1e-10)


def test_equals_arviz_where_weights_tie_or_vanish():
    arviz_stats = pytest.importorskip("arviz.stats.stats")
    log_weights = _log_weights(500, 12)
    log_weights[:450, 3] = -np.inf  # tail reaches into weights of zero
    log_weights[:499, 4] = -2000.0  # one weight has it all
    order = np.argsort(log_weights[:, 5])
    log_weights[order[-90:-30], 5] = log_weights[order[-30], 5] - 0.01  # ties at the cutoff
    with np.errstate(divide="ignore", invalid="ignore"):
        expected, shapes = arviz_stats.psislw(log_weights.T)
        smoothed, khat = psis(log_weights)
    assert np.isinf(shapes[4])
    np.testing.assert_allclose(khat, shapes, rtol=1e-9)
    np.testing.assert_allclose(smoothed, expected.T, rtol=1e-9)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_finds_the_shape_of_pareto_tails(shape):
    rng = np.random.default_rng(1)
    uniform = rng.uniform(size=(20_000, 50))
    _, khat = psis(-shape * np.log(uniform))  # a Pareto variable
    assert abs(khat.mean() - shape) < 0.03


def test_trailing_axes_are_separate_sets():
    log_weights = _log_weights(400, 24).reshape(400, 2, 3, 4)
    smoothed, khat = psis(log_weights)
    assert smoothed.shape == (400, 2, 3, 4)
    assert khat.shape == (2, 3, 4)
    one, k = psis(log_weights[:, 1, 2, 3])
    np.testing.assert_allclose(smoothed[:, 1, 2, 3], one, rtol=1e-12)
    np.testing.assert_allclose(khat[1, 2, 3], k, rtol=1e-12)
    np.testing.assert_allclose(np.exp(smoothed).sum(0), 1)


def test_blocks_of_columns_give_the_same(monkeypatch):
    log_weights = _log_weights(300)
    whole = psis(log_weights)
    monkeypatch.setattr("pyrovi.posterior.pareto._BLOCK", 5000)
    parts = psis(log_weights)
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-12)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-12)


def test_equal_weights_have_no_tail():
    noise = np.random.default_rng(0).uniform(size=(300, 2)) * [0.9 * EQUAL_WEIGHTS, 1e-12]
    smoothed, khat = psis(-700 + noise.astype(np.float32))
    np.testing.assert_array_equal(khat, 0)
    np.testing.assert_allclose(np.exp(smoothed), 1 / 300, rtol=2 * EQUAL_WEIGHTS)


def test_what_is_no_weight_is_nan_and_leaves_the_others_alone():
    log_weights = _log_weights(300, 5)
    alone = psis(log_weights[:, 3:])
    log_weights[4, 0], log_weights[5, 1], log_weights[:, 2] = np.nan, np.inf, -np.inf
    smoothed, khat = psis(log_weights)
    assert np.isnan(khat[:3]).all()
    assert np.isnan(smoothed[:, :3]).all()
    np.testing.assert_allclose(khat[3:], alone[1])
    np.testing.assert_allclose(smoothed[:, 3:], alone[0])


def test_input_is_left_alone_and_few_draws_have_no_shape():
    log_weights = _log_weights(20, 3)
    before = log_weights.copy()
    smoothed, khat = psis(log_weights, normalize=False)
    assert np.isinf(khat).all()
    np.testing.assert_allclose(smoothed, before, atol=1e-14)
    np.testing.assert_array_equal(log_weights, before)


def test_bad_input():
    with pytest.raises(DataError, match="first axis has to be the draws"):
        psis(3.0)
    with pytest.raises(DataError, match="reff must be positive"):
        psis(np.zeros(50), reff=0)


def test_threshold():
    assert khat_threshold(200) == pytest.approx(1 - 1 / np.log10(200))
    assert khat_threshold(10_000) == 0.7
    assert khat_threshold(1) == -np.inf


def test_effective_number_of_draws():
    log_weights = np.log([[1.0, 1.0], [1.0, 1e-300], [2.0, 1e-300]]) + 900
    np.testing.assert_allclose(importance_ess(log_weights), [16 / 6, 1.0])
