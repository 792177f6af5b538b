"""New observations and groups are predicted with what is theirs drawn from the prior."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi as pv
from pyrovi.errors import ModelError, UnseenCategoryError

N = 40


def effects(x: torch.Tensor, y: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    with pv.obs_plate():
        e = pyro.sample("e", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(mu + x + e, 1.0), obs=y)


def fitted_effects(guide: str | None) -> Any:
    rng = np.random.default_rng(0)
    model = pv.from_pyro(effects, {"x": np.zeros(N), "y": rng.normal(3, 2, N)}, guide=guide)
    if guide is None:
        model.train(method="nuts", num_chains=1, num_warmup=150, num_samples=400)
    else:
        model.train(max_epochs=60)
    return model


@pytest.mark.filterwarnings("ignore:The chains")
@pytest.mark.parametrize("guide", [None, "normal", "amortized"])
def test_new_observations_have_latents_of_their_own(guide: str | None) -> None:
    model = fitted_effects(guide)
    count = 400
    found = model.posterior_predictive(adata={"x": np.full(200, 1.0)}, num_samples=count)["y"]
    globals_ = model.sample_posterior(["mu", "tau"], num_samples=count)
    mean, variance = float(globals_["mu"].mean()) + 1, float(globals_["mu"].var())
    variance += float((globals_["tau"] ** 2).mean()) + 1
    assert found.mean() == pytest.approx(mean, abs=0.05)
    assert found.var() == pytest.approx(variance, rel=0.05)
    # rows share the globals and nothing else
    shared = float(globals_["mu"].var())
    between = float(found.mean("obs").var())
    assert between == pytest.approx(shared + (variance - shared) / 200, rel=0.3)


@pytest.mark.filterwarnings("ignore:The chains")
def test_names_of_the_training_data_make_no_difference_without_outcomes() -> None:
    model = fitted_effects(None)
    names = [f"row {i}" for i in range(N)]
    same = pd.DataFrame({"x": np.zeros(N)})
    options: dict[str, Any] = {"num_samples": 20, "seed": 1}
    found = model.posterior_predictive(adata=same, **options)["y"]
    other = model.posterior_predictive(adata=same.set_axis(names), **options)["y"]
    assert np.array_equal(found.values, other.values)


@pytest.mark.filterwarnings("ignore:The chains")
def test_latents_given_outcomes_are_refused_in_plain_words() -> None:
    model = fitted_effects(None)
    with pytest.raises(ModelError, match="leave what the story observes out") as error:
        model.posterior_predictive(adata={"x": np.zeros(3), "y": np.zeros(3)})
    assert "Trace Shapes" not in str(error.value)


def groups(group: torch.Tensor, y: torch.Tensor, *, n_group: int) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    with pv.plate("group", n_group):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(theta[group], 0.5), obs=y)


def grouped(story: Any = groups) -> tuple[Any, pd.DataFrame]:
    rng = np.random.default_rng(1)
    codes = np.repeat(np.arange(8), 10)
    frame = pd.DataFrame({"group": [f"g{i}" for i in codes]})
    frame["y"] = rng.normal(2, 1.5, 8)[codes] + rng.normal(0, 0.5, 80)
    return pv.from_pyro(story, frame), frame


def test_new_groups_are_drawn_from_their_prior_and_known_ones_are_kept() -> None:
    model, _ = grouped()
    model.train(method="pathfinder")
    new = pd.DataFrame({"group": ["new", "g3", "other", "new"]})
    with pytest.raises(UnseenCategoryError, match="new_levels=True"):
        model.posterior_predictive(adata=new)
    found = model.posterior_predictive(adata=new, new_levels=True)["y"]
    latents = model.sample_posterior(["mu", "tau", "theta"])
    noise = 0.25
    of_new = float(latents["mu"].var() + (latents["tau"] ** 2).mean()) + noise
    of_known = float(latents["theta"].sel(group="g3").var()) + noise
    variances = found.var("draw").values
    assert variances == pytest.approx([of_new, of_known, of_new, of_new], rel=0.2)
    means = found.mean("draw").values
    known = float(latents["theta"].sel(group="g3").mean())
    overall = float(latents["mu"].mean())
    assert means == pytest.approx([overall, known, overall, overall], abs=0.2)
    correlation = np.corrcoef(found.transpose("obs", "draw").values)
    assert correlation[0, 3] > 0.7  # one group
    assert correlation[0, 2] < 0.4  # two groups
    before = model.posterior_predictive(num_samples=5, seed=1)["y"].values
    assert before.shape == (5, 80)  # the model itself has the size that it had


def test_new_levels_need_a_plate_and_a_number_that_is_not_fixed() -> None:
    def vector(group: torch.Tensor, y: torch.Tensor, *, n_group: int) -> None:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(n_group), 1.0).to_event(1))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(theta[group], 1.0), obs=y)

    def fixed(group: torch.Tensor, y: torch.Tensor) -> None:
        with pv.plate("group", 8):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(theta[group], 1.0), obs=y)

    new = pd.DataFrame({"group": ["new"]})
    for story, message in ((vector, "no plate"), (fixed, "keyword-only")):
        model, _ = grouped(story)
        model.train(method="laplace")
        with pytest.raises(ModelError, match=message):
            model.posterior_predictive(adata=new, new_levels=True)
    with pytest.raises(ModelError, match="adata="):
        model.posterior_predictive(new_levels=True)


def test_more_draws_than_memory_holds_are_refused() -> None:
    model = fitted_effects("amortized")
    with pytest.raises(ModelError, match=r"10000000 draws of 'y' for 200 obs.*Ask for a summary"):
        model.posterior_predictive(adata={"x": np.zeros(200)}, num_samples=10_000_000)
