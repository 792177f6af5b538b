"""Every reference posterior as a custom model through the public door, by NUTS and by SVI.

Tolerances: NUTS by the Monte-Carlo error of both sides; SVI against the Gaussian optimum that the
reference draws predict (an exact mean-field fit has the sd ``1 / sqrt(precision_ii)``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.acceptance.posteriordb import Reference, constrained, skewness, unconstrained
from tests.acceptance.stories import CASES, REGRESSIONS

import pyrovi as pv
from pyrovi.posterior.convergence import ess_bulk, rhat

pytestmark = [pytest.mark.acceptance, pytest.mark.filterwarnings("ignore")]

NEARLY_GAUSSIAN = 0.5
"""Coordinates whose skewness is larger are not compared with a Gaussian optimum."""

_FITS: dict[tuple[str, str], Any] = {}


@pytest.fixture(params=sorted(CASES))
def reference(request: Any, posteriordb: Path) -> Reference:
    folder = posteriordb / request.param
    if not folder.is_dir():
        pytest.skip(f"{request.param} is not among the reference posteriors")
    return Reference(request.param, folder)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_nuts_matches_the_reference_draws(reference: Reference, table: list[Any]) -> None:
    model = pv.from_pyro(*reference.story())
    start = time.perf_counter()
    model.train(
        method="nuts", num_chains=4, num_warmup=1000, num_samples=1000,
        target_accept=0.95 if "_centered" in reference.name else 0.8, enable_progress_bar=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    truth = reference.summary
    names = list(truth.index)
    sites = list(dict.fromkeys(name.partition("[")[0] for name in names))
    draws = constrained(model.to_arviz(sites).posterior, names)
    ess = ess_bulk(draws)
    error = np.abs(draws.mean((0, 1)) - truth["mean"]) / truth["sd"]
    z = error / np.sqrt(1 / ess + 1e-4)
    ratio = draws.std((0, 1)) / truth["sd"]
    allowed = 4 / np.sqrt(2 * np.minimum(ess, 10_000)) + 0.15
    table.append(
        {
            "case": reference.name, "fit": "nuts", "seconds": round(seconds, 1),
            "max |mean - ref| / sd": round(error.max(), 3), "max z": round(z.max(), 2),
            "sd ratio": f"{ratio.min():.2f}-{ratio.max():.2f}",
            "r_hat": round(rhat(draws).max(), 3),
            "min ess": int(ess.min()),
        }
    )  # fmt: skip
    assert rhat(draws).max() < 1.05
    assert z.max() < 4
    assert (error[ess >= 400] < 0.15).all()
    assert (np.abs(ratio - 1) < allowed).all()


def svi_draws(reference: Reference, guide: str, **train: Any) -> tuple[Any, np.ndarray, float]:
    model = pv.from_pyro(*reference.story(), guide=guide)
    start = time.perf_counter()
    model.train(enable_progress_bar=False, **train)
    seconds = time.perf_counter() - start
    labels = reference.gaussian["labels"]
    draws = model.sample_posterior(num_samples=4000, batch_size=10**6)
    return model, unconstrained(model, draws, labels), seconds


def judge(
    reference: Reference, fit: str, draws: np.ndarray, sd_target: np.ndarray, seconds: float,
    elbo: float, table: list[Any],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Errors of mean (in sd) and ratios of sd, of the coordinates that are nearly Gaussian."""
    target = reference.gaussian
    near = np.abs(_reference_skew(reference)) < NEARLY_GAUSSIAN
    error = np.abs(draws.mean(0) - target["mean"]) / np.array(target["sd"])
    ratio = draws.std(0) / sd_target
    table.append(
        {
            "case": reference.name, "fit": fit, "seconds": round(seconds, 1),
            "max |mean - ref| / sd": round(error[near].max(), 3),
            "sd ratio": f"{ratio[near].min():.2f}-{ratio[near].max():.2f}", "elbo": round(elbo, 2),
        }
    )  # fmt: skip
    return error[near], ratio[near]


def _reference_skew(reference: Reference) -> np.ndarray:
    """Skewness of the reference draws in unconstrained space."""
    model = pv.from_pyro(*reference.story())
    names, values = reference.draws
    labels = reference.gaussian["labels"]
    columns = dict(zip(names, values.T, strict=True))
    result = []
    for label in labels:
        x = _unconstrained_column(model, label, columns)
        result.append(skewness(x[:, None])[0])
    return np.array(result)


def _unconstrained_column(model: Any, label: str, columns: dict[str, np.ndarray]) -> np.ndarray:
    from torch.distributions import biject_to

    site, _, index = label.rstrip("]").partition("[")
    if site == "mu0":
        return _log_if_positive(model, "mu0", columns["mu[1]"])
    if site == "gap":
        return np.log(columns["mu[2]"] - columns["mu[1]"])
    if site == "theta_trans":
        theta = columns[f"theta[{int(index) + 1}]"]
        return (theta - columns["mu"]) / columns["tau"]
    if str(model.sites[site].support).startswith("Simplex"):
        first = columns[f"{site}[1]"]
        return np.log(first) - np.log1p(-first)
    column = columns[f"{site}[{int(index) + 1}]" if index else site]
    support = model.sites[site].support
    support = getattr(support, "base_constraint", support)
    return biject_to(support).inv(torch.as_tensor(column)).numpy()


def _log_if_positive(model: Any, site: str, column: np.ndarray) -> np.ndarray:
    return column if str(model.sites[site].support).startswith("Real") else np.log(column)


def test_mean_field_svi_is_the_predicted_optimum(reference: Reference, table: list[Any]) -> None:
    model, draws, seconds = svi_draws(reference, "normal")
    predicted = np.array(reference.gaussian["sd_meanfield"])
    elbo = _total_elbo(model)
    _FITS[reference.name, "normal"] = elbo
    error, ratio = judge(reference, "svi normal", draws, predicted, seconds, elbo, table)
    if reference.gaussian["max_abs_skew"] > 1:  # the optimum is not that of a Gaussian
        assert error.max() < 0.6
        return
    assert error.max() < 0.3
    assert np.abs(ratio - 1).max() < 0.1


def test_full_rank_svi_matches_mean_and_sd(reference: Reference, table: list[Any]) -> None:
    model, draws, seconds = svi_draws(reference, "mvn")
    truth = np.array(reference.gaussian["sd"])
    elbo = _total_elbo(model)
    error, ratio = judge(reference, "svi mvn", draws, truth, seconds, elbo, table)
    if reference.gaussian["max_abs_skew"] > 1:  # the optimum is not that of a Gaussian
        assert error.max() < 0.6
    else:
        assert error.max() < 0.2
        assert np.abs(ratio - 1).max() < 0.1
    if (reference.name, "normal") in _FITS:
        gap = elbo - _FITS[reference.name, "normal"]
        predicted = reference.gaussian["elbo_gap_fullrank_minus_meanfield"]
        table[-1]["elbo gap (predicted)"] = f"{gap:.2f} ({predicted:.2f})"
        assert gap > -0.05
        if reference.gaussian["max_abs_skew"] < NEARLY_GAUSSIAN:
            assert gap == pytest.approx(predicted, abs=max(0.15, 0.1 * predicted))


@pytest.mark.parametrize("name", REGRESSIONS)
def test_minibatches_give_the_same_answer(name: str, posteriordb: Path, table: list[Any]) -> None:
    if not (posteriordb / name).is_dir():
        pytest.skip(f"{name} is not among the reference posteriors")
    reference = Reference(name, posteriordb / name)
    n = len(reference.story()[1]["X"])
    model, draws, seconds = svi_draws(reference, "mvn", batch_size=max(16, n // 4))
    truth = np.array(reference.gaussian["sd"])
    error, ratio = judge(
        reference, "svi mvn, minibatches", draws, truth, seconds, _total_elbo(model), table
    )
    assert error.max() < 0.25
    assert np.abs(ratio - 1).max() < 0.12


def _total_elbo(model: Any) -> float:
    """ELBO of all data in nats."""
    return model.get_elbo(num_samples=2000, batch_size=10**6) * model.summary_stats.n_obs
