"""An ELBO that cannot be true fails the diagnosis, and one that can does not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from tests.train.toys import QUIET, Mean, scvi, toy

import pyrovi as pv
from pyrovi.criticism.diagnosis import diagnose

LATE = "ELBO lost since its best quarter of the epochs"
ABOVE = "ELBO above the expected log-likelihood"
COLLAPSED = "log density per observed value above that of a normal of the data's spread"
IMPOSSIBLE = "log probability of an observed discrete value"


def fitted(epochs: int = 40):
    model = toy(Mean, n=60)
    plan = {"lr": 0.05, "n_epochs_kl_warmup": 0}
    model.train(epochs, batch_size=30, plan_kwargs=plan, **QUIET)
    return model


def test_a_fit_that_is_thrown_away_at_the_end_fails() -> None:
    model = fitted()
    assert diagnose(model).table.loc[LATE, "verdict"] == "pass"
    with torch.no_grad():
        model.module.loc += 30.0
    assert LATE in diagnose(model).failed


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_history_that_is_not_finite_fails(bad: float) -> None:
    model = fitted(4)
    model._history["elbo_train"][2] = bad
    assert diagnose(model).failed == ["ELBO values that are not finite"]


class Wrong(dist.Normal):
    """A density that is not normalised: its logarithm is too small by 50."""

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return super().log_prob(value) - 50.0


class Certain(dist.Poisson):
    """Probabilities above 1."""

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return super().log_prob(value) + 20.0


def test_an_elbo_above_the_likelihood_fails() -> None:
    def story(y: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    class Guide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = torch.nn.Parameter(torch.tensor(0.0))

        def forward(self, y: torch.Tensor) -> None:
            pyro.sample("mu", Wrong(self.loc, 0.3))

    data = pd.DataFrame({"y": np.random.default_rng(0).normal(size=40)})
    for kind, verdict in ((Guide(), "fail"), ("normal", "pass")):
        model = pv.from_pyro(story, data, guide=kind)
        model.train(20, lr=0.05, **QUIET)
        assert diagnose(model).table.loc[ABOVE, "verdict"] == verdict


def test_a_scale_that_collapses_fails() -> None:
    x = np.random.default_rng(0).normal(size=60)
    data = pd.DataFrame({"x": x, "y": x})

    class Story(torch.nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.log_scale = torch.nn.Parameter(torch.tensor(scale).log())

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> None:
            shift = pyro.sample("shift", dist.Normal(0.0, 1e-7))
            with pv.obs_plate():
                pyro.sample("y", dist.Normal(x + shift, self.log_scale.exp()), obs=y)

    for scale, verdict in ((1e-6, "fail"), (0.1, "pass")):
        model = pv.from_pyro(Story(scale), data)
        model.train(2, lr=1e-9, **QUIET)
        assert diagnose(model).table.loc[COLLAPSED, "verdict"] == verdict


def test_probabilities_above_one_fail() -> None:
    data = pd.DataFrame({"y": np.random.default_rng(0).poisson(3.0, 40)})
    for kind, verdict in ((Certain, "fail"), (dist.Poisson, "pass")):

        def story(y: torch.Tensor, kind: type = kind) -> None:
            rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
            with pv.obs_plate():
                pyro.sample("y", kind(rate), obs=y)

        model = pv.from_pyro(story, data)
        model.train(5, **QUIET)
        assert diagnose(model).table.loc[IMPOSSIBLE, "verdict"] == verdict


def test_an_ordinary_count_model_is_not_suspected() -> None:
    model = scvi()
    model.train(15, **QUIET)
    table = diagnose(model, max_observations=40).table
    assert {ABOVE, IMPOSSIBLE} <= set(table.index)
    assert (table.loc[[ABOVE, IMPOSSIBLE], "verdict"] == "pass").all()
