"""Refits repeat the inference that a model was trained by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi as pv
from pyrovi.model.refit import effective_method, inference_name, refit, refit_options
from pyrovi.module.stored import StoredDraws

DATA = {"y": np.linspace(-1, 1, 12)}


def story(y: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def mean_model(guide: Any = None) -> Any:
    return pv.from_pyro(story, DATA, guide=guide)


def test_an_untrained_model_is_refitted_as_its_guide_asks_for() -> None:
    assert refit_options(mean_model()) == {"train_size": 1.0}
    assert effective_method(mean_model("laplace")) == "laplace"
    assert refit_options(mean_model("laplace")) == {}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("nuts", {"num_chains": 1, "num_warmup": 20, "num_samples": 30}),
        ("laplace", {}),
        ("pathfinder", {"num_samples": 70}),
        ("map", {}),
    ],
)
def test_method_and_options_are_repeated(method: str, options: dict, tmp_path: Path) -> None:
    model = mean_model()
    model.train(method=method, **options, indices=range(10), enable_progress_bar=False)
    expected = {"method": method, **options}  # the positions belong to these data alone
    assert refit_options(model) == expected
    assert inference_name(model, expected).startswith(f"method={method!r}")
    model.save(tmp_path / "saved")
    assert refit_options(pv.load(tmp_path / "saved", DATA, story=story)) == expected
    copy = refit(model, model.adata.copy(), seed=1)
    assert copy._training.method == method
    if isinstance(held := model.module.posterior, StoredDraws):
        assert copy.module.posterior.value("mu").shape == held.value("mu").shape


def test_arguments_replace_what_was_recorded() -> None:
    model = mean_model()
    model.train(method="nuts", num_chains=1, num_warmup=20, num_samples=30)
    assert refit_options(model, {"num_samples": 9})["num_samples"] == 9
    assert refit_options(model, {"num_samples": 9})["num_warmup"] == 20
    assert refit_options(model, {"method": "laplace"}) == {"method": "laplace"}
    assert refit_options(model, {"method": "svi"}) == {"method": "svi", "train_size": 1.0}


def test_a_run_that_went_on_is_repeated_as_a_whole() -> None:
    model = mean_model()
    model.train(max_epochs=3, lr=0.1, train_size=0.9)
    model.train(max_epochs=2, lr=0.1)
    assert refit_options(model) == {"max_epochs": 5, "lr": 0.1, "train_size": 1.0}
    model.train(method="laplace")
    assert refit_options(model) == {"method": "laplace"}


def test_training_that_held_out_observations_to_stop_holds_them_out_again() -> None:
    model = mean_model()
    model.train(max_epochs=3, train_size=0.8, early_stopping=True)
    assert refit_options(model) == {"max_epochs": 3, "train_size": 0.8, "early_stopping": True}


def test_objects_that_a_file_cannot_hold_are_missed(tmp_path: Path) -> None:
    model = mean_model()
    model.train(max_epochs=2, plan_kwargs={"optim": torch.optim.Adam})
    model.save(tmp_path / "saved")
    with pytest.warns(UserWarning, match="plan_kwargs"):
        assert refit_options(pv.load(tmp_path / "saved", DATA, story=story)) == {
            "max_epochs": 2,
            "train_size": 1.0,
        }
