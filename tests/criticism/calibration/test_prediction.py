"""LOO-PIT against exact leave-one-out predictive distributions."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from tests.module.stories import Factors, Hierarchy, Mean, Pair, given

from pyrovi.criticism.calibration.prediction import loo_pit
from pyrovi.errors import ModelError
from pyrovi.module import obs_plate


def exact_pit(X: np.ndarray, prior_sd: float, sd: float) -> np.ndarray:
    """Transform of each value given the others, under a normal mean with a normal prior."""
    values = []
    for n in range(len(X)):
        others = np.delete(X, n)
        variance = 1 / (1 / prior_sd**2 + len(others) / sd**2)
        mean = variance * others.sum() / sd**2
        values.append(stats.norm(mean, np.sqrt(variance + sd**2)).cdf(X[n]))
    return np.array(values)


def test_transforms_are_those_of_the_exact_leave_one_out_predictions() -> None:
    X = np.random.default_rng(1).normal(1.0, 1.5, (12, 1))
    X[0] = 5.0  # matters to the posterior, so leaving it out does too
    model = given(X, Mean(*Mean.exact_posterior(X)))
    found = loo_pit(model, num_samples=6000, batch_size=5)
    np.testing.assert_allclose(found.values.iloc[:, 0], exact_pit(X[:, 0], 2.0, 1.5), atol=0.03)
    assert list(found.values.index) == [f"cell{i}" for i in range(12)]
    assert (found.khat < found.khat_threshold).all()


def test_local_latents_return_to_their_prior_when_their_observation_is_left_out() -> None:
    X = np.random.default_rng(2).normal(1.0, 1.1, (15, 1))
    model = given(X, Hierarchy(X))
    found = loo_pit(model, num_samples=6000, num_inner=3)
    np.testing.assert_allclose(
        found.values.iloc[:, 0], exact_pit(X[:, 0], 2.0, np.sqrt(1.25)), atol=0.03
    )


@pytest.mark.parametrize(
    ("sd", "verdict", "reading"), [(1.5, "passes", ""), (0.6, "fails", "predictions too wide")]
)
def test_wrong_spread_of_the_data_shows(sd: float, verdict: str, reading: str) -> None:
    X = np.random.default_rng(3).normal(1.0, sd, (120, 1))
    found = loo_pit(given(X, Mean(*Mean.exact_posterior(X))), num_samples=1000)
    row = found.table.iloc[0]
    assert (row["verdict"], row["reading"]) == (verdict, reading)


def test_counts_are_randomised_to_uniform_ones() -> None:
    rng = np.random.default_rng(4)
    X = rng.poisson(0.8, (300, 1)).astype(float)

    def story(X: torch.Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
        with obs_plate():
            pyro.sample("X", dist.Poisson(rate).expand([1]).to_event(1), obs=X)

    def guide() -> None:
        pyro.sample("rate", dist.Gamma(2.0 + X.sum(), 2.0 + len(X)))

    found = loo_pit(given(X, Pair(story, guide, {"X": ("var",)})), num_samples=500)
    assert found.passed
    assert list(found.values) == ["gene0"]
    assert len(np.unique(found.values)) == 300


def test_point_estimates_are_refused() -> None:
    class Trained(Factors):
        def __init__(self) -> None:
            super().__init__()
            self.b = torch.nn.Parameter(torch.zeros(4))

        def model(self, X: torch.Tensor) -> None:
            super().model(X - self.b)

    with pytest.raises(ModelError, match="point estimates"):
        loo_pit(given(np.zeros((10, 4)), Trained()))
