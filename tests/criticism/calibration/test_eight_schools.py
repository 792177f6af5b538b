"""Eight schools: NUTS on the non-centred story passes, mean-field on the centred one is flagged."""

from __future__ import annotations

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi as pv
from pyrovi.criticism.calibration.refits import sbc

DATA = pd.DataFrame(
    {"y": [28.0, 8, -3, 7, -1, 1, 18, 12], "sigma": [15.0, 10, 16, 11, 9, 11, 10, 18]}
)


def noncentred(y: torch.Tensor, sigma: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pv.obs_plate():
        e = pyro.sample("e", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * e, sigma), obs=y)


def centred(y: torch.Tensor, sigma: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pv.obs_plate():
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@pytest.mark.slow
def test_noncentred_by_nuts_passes() -> None:
    training = {"method": "nuts", "num_chains": 1, "num_warmup": 150, "num_samples": 100}
    found = sbc(
        pv.from_pyro(noncentred, DATA),
        20,
        train_kwargs={**training, "num_workers": 1},
        num_draws=19,
        num_workers=2,
        seed=1,
    )
    assert found.passed, found.summary()


@pytest.mark.slow
def test_centred_by_mean_field_is_flagged() -> None:
    training = {"max_epochs": 120, "batch_size": None, "lr": 0.1, "accelerator": "cpu"}
    found = sbc(
        pv.from_pyro(centred, DATA, guide="normal"),
        24,
        train_kwargs=training,
        num_draws=19,
        num_workers=2,
        seed=1,
    )
    assert not found.passed
    assert found.table.loc["mu", "verdict"] == "fails"
    assert found.table.loc["mu", "reading"] == "draws too narrow"
