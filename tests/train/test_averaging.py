"""Tests of iterate averaging, falling learning rates and scaled steps."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from tests.train.regressions import regression
from tests.train.toys import QUIET, Amortised, Mean, assert_same, parameters, scvi, toy

import pyrovi as pv
from pyrovi import settings
from pyrovi.errors import TrainingError
from pyrovi.train.averaging import IterateAveraging
from pyrovi.train.callbacks import ELBOConvergence, block_change
from pyrovi.train.converge import (
    convergence_defaults,
    has_location_scale_guide,
    slow_and_steady,
)
from pyrovi.train.scaled_adam import ScaledAdam
from pyrovi.train.schedulers import GeometricDecay

PLAN = {"lr": 0.05, "n_epochs_kl_warmup": 0}


def distance(model):
    """From the exact posterior mean of the toy, in its standard deviations."""
    X = torch.as_tensor(model.adata.X)
    mean = X.sum(0) / (len(X) + 1)
    return float((model.module.loc.detach() - mean).norm() * (len(X) + 1) ** 0.5)


@pytest.mark.slow
def test_the_average_is_several_times_nearer_to_the_optimum():
    last, averaged = [], []
    for seed in range(2):
        for distances, averaging in ((last, False), (averaged, True)):
            model = toy(Mean, n=40, n_vars=5, seed=seed)
            model.train(
                300,
                batch_size=10,
                train_size=1.0,
                plan_kwargs=PLAN,
                averaging=averaging,
                **QUIET,
            )
            distances.append(distance(model))
    assert np.mean(averaged) < np.mean(last) / 3


def test_weights_of_the_average():
    callback, plan = IterateAveraging(power=3.0), toy(Mean).module
    weights = np.zeros(50)
    for t in range(1, 51):
        weight = min(1.0, 4 / (t + 3))
        weights *= 1 - weight
        weights[t - 1] = weight
    assert weights.sum() == pytest.approx(1)
    assert (weights * np.arange(1, 51)).sum() > 38  # s^3: the mean step is four fifths of the way
    assert callback.power == 3.0
    assert plan is not None
    with pytest.raises(TrainingError, match="power of the iterate average"):
        IterateAveraging(power=-1)


def test_validation_and_the_best_epoch_see_the_average():
    model = toy(Mean, n=40)
    model.train(
        6, batch_size=10, plan_kwargs=PLAN, averaging=True, early_stopping=True,
        restore_best=True, **QUIET,
    )  # fmt: skip
    best = model.history["elbo_validation"]["elbo_validation"].min()
    held_out = -model.get_elbo(indices=model.validation_indices, num_samples=2000)
    plain = toy(Mean, n=40)
    plain.train(6, batch_size=10, plan_kwargs=PLAN, **QUIET)
    assert np.isfinite(best)
    assert np.isfinite(held_out)
    assert not torch.equal(plain.module.loc, model.module.loc)


def test_without_averaging_nothing_changes():
    models = [toy(Mean), toy(Mean)]
    for model in models:
        model.train(3, batch_size=8, averaging=False, **QUIET)
    assert_same(*(parameters(model) for model in models))


def test_learning_rates_fall_to_the_last_and_stay():
    model = toy(Mean, n=20)
    plan = {"lr": 0.1, "lr_decay": 0.01}
    model.train(10, batch_size=10, train_size=1.0, plan_kwargs=plan, **QUIET)
    rates = model.history["lr-Adam"].iloc[:, 0].to_numpy()
    np.testing.assert_allclose(rates, 0.1 * 0.01 ** (np.arange(10) / 10), rtol=1e-6)
    model.train(2, batch_size=10, train_size=1.0, plan_kwargs=plan, **QUIET)
    rates = model.history["lr-Adam"].iloc[:, 0].to_numpy()
    np.testing.assert_allclose(rates[10:], 0.001, rtol=1e-6)
    assert GeometricDecay(0.5, 0)(3) == 0.5
    with pytest.raises(TrainingError, match=r"in \(0, 1\], got 0"):
        model.train(1, plan_kwargs={"lr_decay": 0}, **QUIET)
    with pytest.raises(TrainingError, match="choose one"):
        model.train(1, plan_kwargs={"lr_decay": 0.1, "reduce_lr_on_plateau": True}, **QUIET)


def test_scaled_steps_do_not_depend_on_the_unit():
    steps = []
    for unit in (1.0, 1000.0):
        loc = torch.nn.Parameter(torch.tensor([0.0]))
        log_scale = torch.nn.Parameter(torch.tensor([unit]).log())
        optimizer = ScaledAdam([("a.loc", loc), ("a.log_scale", log_scale)], lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            (((loc / unit - 2) ** 2).sum() + 0 * log_scale.sum()).backward()
            optimizer.step()
        steps.append(float(loc) / unit)
    assert steps[0] == pytest.approx(steps[1], rel=1e-5)
    assert steps[0] == pytest.approx(0.5, rel=0.05)


def test_recipe_is_for_guides_of_locations_and_scales():
    assert has_location_scale_guide(regression(20).module)
    assert not has_location_scale_guide(toy(Amortised).module)
    assert convergence_defaults(scvi().module, 100, 10) == {}
    options = convergence_defaults(regression(20).module, 100, 10)
    assert options["train_size"] == 1.0


def test_other_guides_get_falling_rates_and_encoders_are_not_averaged():
    plain = slow_and_steady(toy(Mean).module, 100, 10)
    assert plain["averaging"]
    assert plain["max_epochs"] * 10 == 6000
    assert plain["plan_kwargs"] == {"lr": 0.05, "lr_decay": 0.02, "n_epochs_kl_warmup": 0}
    assert slow_and_steady(toy(Mean).module, 100, None, near=True)["max_epochs"] == 4000


def test_antithetic_steps_are_for_guides_with_locations_and_scales():
    with pytest.raises(TrainingError, match="locations and scales alone"):
        toy(Amortised).train(1, plan_kwargs={"antithetic": True}, **QUIET)
    with pytest.raises(TrainingError, match="guides by name"):  # whose own code draws the noise
        regression(20).train(1, plan_kwargs={"antithetic": True}, **QUIET)


def straight_line(x, y):
    """Two coefficients whose posterior is normal."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(w[0] + w[1] * x, 0.3), obs=y)


def test_the_noise_of_antithetic_pairs_cancels():
    """Of plain gradient steps, two mirrored ones move a normal posterior's mean without noise."""
    x = np.linspace(-1, 1, 20)
    data = {"x": x, "y": 2 * x + 1}
    spread = {}
    for antithetic in (False, True):
        ends = []
        for seed in range(4):
            settings.seed = 0  # of the values to start from
            model = pv.from_pyro(straight_line, data)
            settings.seed = seed
            plan = {
                "optim": torch.optim.SGD, "lr": 1e-4, "n_epochs_kl_warmup": 0, "weight_decay": 0.0,
                "antithetic": antithetic,
            }  # fmt: skip
            model.train(40, start=None, averaging=False, plan_kwargs=plan, **QUIET)
            locations = [p for n, p in model.module.named_parameters() if n.endswith("loc")]
            ends.append(torch.cat([p.detach().reshape(-1) for p in locations]))
        spread[antithetic] = float(torch.stack(ends).std(0).max())
    assert spread[True] < 0.2 * spread[False]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 100])
def test_badly_scaled_regression_comes_to_its_optimum(batch_size):
    model = regression(correlation=0.3)
    options = convergence_defaults(model.module, 500, batch_size)
    model.train(batch_size=batch_size, **options, **QUIET)
    means, log_sds = model.distance()
    assert means < 0.1
    assert log_sds < 0.1


def test_blocks_tell_a_trend_from_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=200)
    flat = block_change(list(noise), 100)
    assert abs(flat.improvement) < 3 * flat.error
    assert flat.error == pytest.approx(np.sqrt(2 / 100), rel=0.2)
    falling = block_change(list(noise - 0.05 * np.arange(200)), 100)
    assert falling.improvement == pytest.approx(5, rel=0.2)
    assert falling.error == pytest.approx(flat.error, rel=0.02)
    with pytest.raises(TrainingError, match="at least 3 epochs"):
        ELBOConvergence(window=2)


def test_early_stopping_on_the_training_elbo_needs_no_validation():
    model = toy(Mean, n=40)
    model.train(
        2000, batch_size=20, train_size=1.0, early_stopping="elbo", plan_kwargs=PLAN,
        averaging=True, **QUIET,
    )  # fmt: skip
    assert 40 <= model._training.epochs < 2000
    assert "within its noise" in model._training.stopping_reason
    assert distance(model) < 0.5
    with pytest.raises(TrainingError, match="True, False or 'elbo', got 'loss'"):
        model.train(1, early_stopping="loss", **QUIET)
