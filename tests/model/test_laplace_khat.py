"""Laplace's approximation says where it is none."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi as pv
from pyrovi.model.methods import all_at_once
from pyrovi.model.modes import normal_khat
from pyrovi.posterior.compiled import ValueAndGradient
from pyrovi.posterior.potential import Potential

DATA = pd.DataFrame({"y": np.random.default_rng(0).normal(1.0, 1.0, 40)})


def normal(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_a_normal_posterior_is_exact_and_silent() -> None:
    model = pv.from_pyro(normal, DATA)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.train(method="laplace")
    potential = Potential(model.module, all_at_once(model)[1])
    mean = np.array([DATA.y.sum() / 41])
    factor = np.array([[41**-0.5]])
    assert normal_khat(ValueAndGradient(potential), mean, factor) == 0.0
    assert normal_khat(ValueAndGradient(potential), mean, factor / 4) > 0.7


def test_a_ridge_of_scale_and_effects_warns() -> None:
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(12), 5)
    counts = rng.poisson(np.exp(1.5 + 0.5 * rng.normal(size=12)[group]))
    data = pd.DataFrame({"group": [f"g{i}" for i in group], "y": counts})

    def grouped(group, y, *, n_group):
        level = pyro.sample("level", dist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        with pv.plate("group", n_group):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Poisson(torch.exp(level + scale * effect[group])), obs=y)

    model = pv.from_pyro(grouped, data)
    with pytest.warns(UserWarning, match=r"Laplace's approximation is .* \(reliable below 0\.7\)"):
        model.train(method="laplace")
    assert pv.criticism.diagnose(model).checks[0].verdict != "pass"
