"""Automatic guides: right with minibatches, or refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide
from tests.module.stories import Mean, Pair, example, given, materialised
from torch import Tensor

from pyrovi.errors import ModelError
from pyrovi.module import obs_plate


def local(X: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with obs_plate():
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("X", dist.Normal(z[..., None], 0.5).to_event(1), obs=X)


def only_global(X: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, Mean.prior_sd))
    with obs_plate():
        pyro.sample("X", dist.Normal(mu, Mean.sd).expand([1]).to_event(1), obs=X)


def mixed(story: Any, globals_: type) -> autoguide.AutoGuideList:
    guide = autoguide.AutoGuideList(story)
    guide.append(globals_(poutine.block(story, expose=["mu"])))
    guide.append(autoguide.AutoNormal(poutine.block(story, expose=["z"])))
    return guide


@pytest.mark.parametrize(
    "make",
    [
        lambda: autoguide.AutoNormal(local),
        lambda: autoguide.AutoDelta(local),
        lambda: mixed(local, autoguide.AutoNormal),
        lambda: mixed(local, autoguide.AutoDiagonalNormal),
    ],
    ids=["AutoNormal", "AutoDelta", "list of AutoNormal", "AutoDiagonalNormal for the globals"],
)
@pytest.mark.parametrize("batch_size", [9, 20])
def test_local_sites_are_paired_with_their_rows(make: Any, batch_size: int) -> None:
    """Shuffled minibatches, also a full one: every row must find its own observation."""
    X = np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32) * 3
    model = given(X, Pair(local, make()))
    rows = model.module.row_parameters
    assert rows
    assert all("z" in name for name in rows)
    assert all(dict(model.module.named_parameters())[name].shape[0] == 20 for name in rows)
    model.train(
        max_epochs=60, batch_size=batch_size, train_size=1.0, lr=0.2, enable_progress_bar=False
    )
    z = model.sample_posterior("z", num_samples=50, reduce="mean", batch_size=7)["z"].values
    assert np.corrcoef(z, X[:, 0])[0, 1] > 0.97


@pytest.mark.parametrize(
    "guide",
    ["AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal"],
)
def test_joint_guides_are_refused_for_local_sites(guide: str) -> None:
    make = getattr(autoguide, guide)
    with pytest.raises(ModelError, match=rf"{guide} cannot be used for the local site\(s\) 'z'"):
        materialised(local, make(local), n_vars=1)
    parts = autoguide.AutoGuideList(local)
    parts.append(make(local))
    with pytest.raises(ModelError, match=rf"{guide} cannot be used for the local site\(s\) 'z'"):
        materialised(local, parts, n_vars=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "guide",
    ["AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal"],
)
def test_joint_guides_find_the_exact_posterior_of_globals(guide: str) -> None:
    X = np.random.default_rng(1).normal(1.0, 2.0, size=(30, 1)).astype(np.float32)
    model = given(X, Pair(only_global, getattr(autoguide, guide)(only_global)))
    model.train(max_epochs=400, batch_size=30, train_size=1.0, lr=0.03, enable_progress_bar=False)
    draws = model.sample_posterior("mu", num_samples=4_000)["mu"].values
    loc, scale = Mean.exact_posterior(X)
    assert draws.mean() == pytest.approx(loc, abs=0.35 * scale)
    assert draws.std() == pytest.approx(scale, rel=0.3)
    bound = model.get_elbo(num_samples=4_000) * 30
    assert bound == pytest.approx(Mean.log_evidence(X), abs=0.15)


def test_parameters_exist_before_any_data_is_seen() -> None:
    first = materialised(local, autoguide.AutoNormal(local), n_vars=1)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.normal_()
    second = materialised(local, autoguide.AutoNormal(local), n_vars=1)
    second.load_state_dict(first.state_dict())
    assert set(first.state_dict()) == {
        f"guide.{part}.{site}_unconstrained" for part in ("locs", "scales") for site in ("mu", "z")
    }


def test_a_copy_is_independent_and_the_original_still_works() -> None:
    pair = materialised(local, autoguide.AutoNormal(local), n_vars=1)
    other = copy.deepcopy(pair)
    with torch.no_grad():
        other.guide.locs.mu_unconstrained += 1
    assert pair.guide.locs.mu.item() != other.guide.locs.mu.item()
    for module in (pair, other):
        poutine.trace(module.run_guide).get_trace(example(1)(2))
        module.materialise(example(1))


def test_a_guide_that_has_run_elsewhere_is_refused() -> None:
    def story() -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    guide = autoguide.AutoNormal(story)
    guide()
    try:
        with pytest.raises(ModelError, match="has run before, outside of pyrovi"):
            Pair(story, guide)
    finally:
        pyro.clear_param_store()


def test_a_plate_of_the_guides_own_is_refused() -> None:
    """Pyro lets its random indices override the minibatch's (pyro#3468)."""

    def guide(X: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", 10, subsample_size=len(X)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ModelError, match="The guide opens a plate of its own named 'obs'"):
        materialised(local, guide, n_vars=1)


def test_an_automatic_guide_inside_a_guide_needs_the_plate() -> None:
    class Inner(Pair):
        def __init__(self, **options: Any) -> None:
            super().__init__(local)
            del self.guide
            self.part = autoguide.AutoNormal(local, **options)
            self.guide = self.run_part

        def run_part(self, X: Tensor) -> None:
            self.part(X)

    with pytest.raises(ModelError, match="create_plates"):
        Inner().materialise(example(1))
    Inner(create_plates=lambda *_: obs_plate()).materialise(example(1))
