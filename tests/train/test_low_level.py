"""Objectives of one's own."""

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from tests.train.toys import QUIET, Amortised, Mean, toy

from pyrovi.errors import TrainingError
from pyrovi.train import LowLevelTrainingPlan


def test_trains_to_the_minimum_of_the_function():
    """Least squares of the encoder's weight: w = sum x y / sum x^2, with y = 3 x."""

    def squared_error(module, minibatch, kl_weight):
        x = minibatch["X"]
        loss = (module.weight * x - 3 * x).pow(2).sum(-1).mean()
        return loss, {"weight": module.weight.mean()}

    model = toy(Amortised)
    model.train(
        150, training_plan=LowLevelTrainingPlan, plan_kwargs={"objective": squared_error},
        lr=0.1, **QUIET,
    )  # fmt: skip
    np.testing.assert_allclose(model.module.weight.detach(), 3.0, rtol=1e-3)
    assert {"loss_train", "loss_validation", "weight_train"} <= set(model.history)
    assert "elbo_train" not in model.history
    assert model.history["loss_validation"].iloc[-1, 0] < 1e-3


def test_the_negative_elbo_as_objective_is_svi():
    def negative_elbo(module, minibatch, kl_weight):
        guide = poutine.trace(module.run_guide).get_trace(minibatch)
        model = poutine.trace(poutine.replay(module.run_model, trace=guide)).get_trace(minibatch)
        return (guide.log_prob_sum() - model.log_prob_sum()) / minibatch.n_obs

    def trained(**plan):
        model = toy(Mean)
        model.train(5, lr=0.1, plan_kwargs={"n_epochs_kl_warmup": 0} | plan.pop("more", {}),
                    **plan, **QUIET)  # fmt: skip
        return model.module.loc.detach()

    own = trained(training_plan=LowLevelTrainingPlan, more={"objective": negative_elbo})
    torch.testing.assert_close(own, trained(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (3, "objective is 3"),
        (lambda module, minibatch, weight: minibatch["X"], "of shape .*take its mean"),
        (lambda module, minibatch, weight: 1.0, "returned a float"),
        (lambda module, minibatch, weight: minibatch["X"].mean(), "without a gradient"),
    ],
)
def test_bad_objectives(objective, message):
    model = toy(Amortised)
    with pytest.raises(TrainingError, match=message):
        model.train(
            1, training_plan=LowLevelTrainingPlan, plan_kwargs={"objective": objective}, **QUIET
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "LowLevelTrainingPlan needs 'objective'; give it as plan_kwargs={'objective'"),
        ({"objective": len, "loss_fn": Trace_ELBO()}, "loss_fn and objective would both"),
        ({"objective": len, "loss_fn": "elbo"}, "loss_fn and objective would both"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(TrainingError, match=message):
        toy(Amortised).train(1, training_plan=LowLevelTrainingPlan, plan_kwargs=options, **QUIET)


def test_a_loss_that_is_no_elbo_is_refused():
    with pytest.raises(TrainingError, match=r"loss_fn is 'elbo'.*LowLevelTrainingPlan"):
        toy(Amortised).train(1, plan_kwargs={"loss_fn": "elbo"}, **QUIET)


def test_a_plan_that_is_none_is_refused():
    with pytest.raises(TrainingError, match=r"subclass of pyrovi\.train\.SVITrainingPlan"):
        toy(Amortised).train(1, training_plan=dict, **QUIET)
