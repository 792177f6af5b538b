"""Log-likelihoods of observations are SciPy's, whatever stands around the sites."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from tests.module.stories import Factors, Pair, given
from torch import Tensor

from pyrovi.errors import ModelError
from pyrovi.module import obs_plate, plate

X = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
LOG = stats.norm(0.5, 2.0).logpdf(X)


def likelihood(story: object, **options: object) -> np.ndarray:
    return given(X, Pair(story)).log_likelihood("X", num_samples=2, **options)["X"].values


def event(X: Tensor) -> None:
    with obs_plate():
        pyro.sample("X", dist.Normal(torch.full((3,), 0.5), 2.0).to_event(1), obs=X)


def crossed(X: Tensor) -> None:
    with obs_plate(dim=-2), plate("var", 3, dim=-1):
        pyro.sample("X", dist.Normal(0.5, 2.0), obs=X)


def crossed_other_way(X: Tensor) -> None:
    with plate("var", 3, dim=-2), obs_plate(dim=-1):
        pyro.sample("X", dist.Normal(0.5, 2.0), obs=X.T)


def scaled(X: Tensor) -> None:
    with obs_plate(), poutine.scale(scale=7.0):
        pyro.sample("X", dist.Normal(torch.full((3,), 0.5), 2.0).to_event(1), obs=X)


@pytest.mark.parametrize("story", [event, crossed, crossed_other_way, scaled])
@pytest.mark.parametrize("batch_size", [2, 9])
def test_plates_and_scales(story: object, batch_size: int) -> None:
    """Neither the plate's scale N / n nor poutine.scale is part of an observation's density."""
    found = likelihood(story, batch_size=batch_size)
    np.testing.assert_allclose(found, np.tile(LOG.sum(1), (2, 1)), rtol=1e-5)


def test_masks_are_honoured() -> None:
    def masked(X: Tensor) -> None:
        with obs_plate(dim=-2), plate("var", 3, dim=-1), poutine.mask(mask=X > 0):
            pyro.sample("X", dist.Normal(0.5, 2.0), obs=X)

    expected = np.where(X > 0, LOG, 0).sum(1)
    np.testing.assert_allclose(likelihood(masked), np.tile(expected, (2, 1)), rtol=1e-5)

    def rows(X: Tensor) -> None:
        with obs_plate(), poutine.mask(mask=X[:, 0] > 0):
            pyro.sample("X", dist.Normal(torch.full((3,), 0.5), 2.0).to_event(1), obs=X)

    expected = np.where(X[:, 0] > 0, LOG.sum(1), 0)
    np.testing.assert_allclose(likelihood(rows), np.tile(expected, (2, 1)), rtol=1e-5)


def test_labels_and_agreement_with_the_loop() -> None:
    module = Factors(n_vars=3)
    model = given(X, module)
    data = model.log_likelihood(num_samples=5)
    assert data["X"].dims == ("draw", "obs")
    assert list(data["obs"].values) == [f"cell{i}" for i in range(9)]
    draws = model.sample_posterior("z", num_samples=5)["z"].values
    loc = draws @ module.W.numpy()
    exact = stats.norm(loc, module.sd).logpdf(X).sum(-1)
    np.testing.assert_allclose(data["X"], exact, rtol=1e-4, atol=1e-4)


def test_only_observed_sites_have_a_likelihood() -> None:
    model = given(X, Factors(n_vars=3))
    with pytest.raises(ModelError, match="'z' is not observed"):
        model.log_likelihood("z")
