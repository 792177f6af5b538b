"""Tests of R-hat, effective sample sizes and Monte-Carlo errors, against ArviZ."""

from __future__ import annotations

import time
from importlib.metadata import version

import numpy as np
import pytest

from pyrovi.errors import ModelError
from pyrovi.posterior import convergence as cv

az = pytest.importorskip("arviz")
pytestmark = pytest.mark.skipif(
    int(version("arviz").split(".")[0]) > 0, reason="the reference is ArviZ 0.x"
)


@pytest.fixture(autouse=True)
def _plain_arviz():
    """Its compiled code fails on the error of a standard deviation."""
    before = az.utils.Numba.numba_flag
    az.utils.Numba.numba_flag = False
    yield
    az.utils.Numba.numba_flag = before


def autoregressive(chains=4, draws=250, shape=(), rho=0.0, seed=0):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((chains, draws, *shape))
    values = noise.copy()
    for t in range(1, draws):
        values[:, t] = rho * values[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return values


CASES = {
    "independent": autoregressive(),
    "correlated": autoregressive(rho=0.9, seed=1),
    "antithetic": autoregressive(rho=-0.6, seed=2),
    "odd": autoregressive(draws=101, rho=0.3, seed=3),
    "one chain": autoregressive(chains=1, rho=0.5, seed=4),
    "two short": autoregressive(chains=2, draws=7, seed=5),
    "four draws": autoregressive(chains=3, draws=4, seed=6),
    "five draws": autoregressive(chains=3, draws=5, seed=6),
    "counts": np.random.default_rng(7).poisson(2.0, (4, 100)),
    "heavy": np.random.default_rng(8).standard_cauchy((4, 200)),
    "apart": autoregressive(seed=9) + np.arange(4)[:, None],
    "spreads": autoregressive(seed=10) * np.arange(1, 5)[:, None],
    "constant": np.ones((4, 50)),
    "one NaN": np.where(np.arange(200).reshape(4, 50) == 7, np.nan, 1.0),
}


def of_arviz(kind, draws):
    if kind.startswith("ess"):
        return az.ess(draws, method=kind[4:])
    if kind == "rhat":
        return az.rhat(draws)
    if kind == "rhat_folded":
        return az.rhat(draws, method="folded")
    return az.mcse(draws, method=kind[5:])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "kind", ["rhat", "rhat_folded", "ess_bulk", "ess_tail", "ess_mean", "mcse_mean", "mcse_sd"]
)
def test_equals_arviz(kind, case):
    ours = getattr(cv, kind)(CASES[case])
    np.testing.assert_allclose(ours, of_arviz(kind, CASES[case]), rtol=1e-9)


@pytest.mark.parametrize("probability", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("case", ["independent", "correlated", "odd", "counts", "heavy"])
def test_quantile_errors_equal_arviz(case, probability):
    ours = cv.mcse_quantile(CASES[case], probability)
    expected = az.mcse(CASES[case], method="quantile", prob=probability)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_trailing_axes_are_computed_one_by_one(monkeypatch):
    draws = autoregressive(shape=(3, 5), rho=0.4, seed=11)
    draws[:, :, 1, 2] += np.arange(4)[:, None]
    draws[0, 0, 2, 0] = np.nan
    monkeypatch.setattr(cv, "_CHUNK", 4000)  # several chunks
    together = cv.convergence_statistics(draws)
    for (i, j), r_hat in np.ndenumerate(together["r_hat"]):
        one = cv.convergence_statistics(draws[:, :, i, j])
        assert all(v.shape == () for v in one.values())
        np.testing.assert_allclose(r_hat, one["r_hat"])
        for name in ("ess_bulk", "ess_tail", "mcse_mean", "mcse_sd"):
            np.testing.assert_allclose(together[name][i, j], one[name])
            np.testing.assert_allclose(one[name], getattr(cv, name)(draws[:, :, i, j]))
    assert together["r_hat"][1, 2] > 1.5
    assert np.isnan(together["r_hat"][2, 0])
    assert np.isfinite(together["r_hat"]).sum() == 14


def test_effective_size_of_an_autoregression_is_the_known_one():
    rho = 0.8
    draws = autoregressive(chains=4, draws=4000, shape=(50,), rho=rho, seed=12)
    expected = 16_000 * (1 - rho) / (1 + rho)
    assert cv.ess_mean(draws).mean() == pytest.approx(expected, rel=0.05)
    assert cv.mcse_mean(draws).mean() == pytest.approx(1 / np.sqrt(expected), rel=0.05)


def test_energies_equal_arviz_and_flag_a_random_walk():
    independent = np.random.default_rng(13).standard_normal((3, 400))
    walk = np.cumsum(independent, 1)
    np.testing.assert_allclose(cv.ebfmi(independent), az.bfmi(independent))
    assert (cv.ebfmi(independent) > 1).all()
    assert (cv.ebfmi(walk) < 0.3).all()


def test_one_fit_has_no_rhat():
    one = cv.convergence_statistics(autoregressive(chains=1))
    assert np.isnan(one["r_hat"])
    assert one["ess_bulk"] > 100


def test_messages():
    with pytest.raises(ModelError, match=r"axes \(chain, draw, ...\), got shape \(5,\)"):
        cv.rhat(np.ones(5))
    with pytest.raises(ModelError, match="draws of type complex128"):
        cv.rhat(np.ones((2, 5), complex))
    with pytest.raises(ModelError, match="between 0 and 1, got 95"):
        cv.mcse_quantile(np.ones((2, 5)), 95)


def test_twenty_thousand_quantities_take_seconds():
    draws = np.random.default_rng(14).standard_normal((4, 250, 20_000)).astype(np.float32)
    begin = time.perf_counter()
    table = cv.convergence_statistics(draws)
    assert time.perf_counter() - begin < 30  # some 4 s on one core; ArviZ needs minutes
    assert np.nanmax(table["r_hat"]) < 1.1
