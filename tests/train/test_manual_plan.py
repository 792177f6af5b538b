"""ELBOs without a differentiable loss, under the same rules."""

import pyro.optim
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from tests.train.toys import QUIET, Amortised, Mean, assert_same_training, parameters, toy

from pyrovi.errors import TrainingError
from pyrovi.train import ManualSVITrainingPlan, SVITrainingPlan


def fit(elbo, epochs=6, size=5, guide="normal", optim=None, **trainer):
    model = toy(Mean, guide=guide)
    model.train(
        epochs, batch_size=size, lr=0.05,
        plan_kwargs={"loss_fn": elbo, "optim": optim}, **trainer, **QUIET,
    )  # fmt: skip
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2},
        {"optim": lambda: pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.9})},
        {
            "optim": lambda: pyro.optim.ExponentialLR(
                {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.001}, "gamma": 0.5}
            )
        },
    ],
    ids=["plain", "norm", "value", "accumulate", "clipped_adam", "schedule"],
)
def test_both_plans_take_the_same_steps(options):
    """Everything in this model is reparametrised, so TraceGraph_ELBO has Trace_ELBO's gradient."""
    trainer = {k: v for k, v in options.items() if k != "optim"}
    make = options.get("optim", lambda: None)
    manual = fit(TraceGraph_ELBO(), optim=make(), **trainer)
    automatic = fit(Trace_ELBO(), optim=make(), **trainer)
    for name, value in parameters(automatic).items():
        assert torch.allclose(parameters(manual)[name], value, atol=1e-5), name
    for metric, values in automatic._history.items():
        assert manual._history[metric] == pytest.approx(values, rel=1e-4), metric


def test_manual_training_resumes_exactly(tmp_path):
    whole = fit(TraceGraph_ELBO(), 4)
    fit(TraceGraph_ELBO(), 4, enable_checkpointing=True, default_root_dir=str(tmp_path))
    resumed = toy(Mean)
    resumed.train(
        4, batch_size=5, lr=0.05, ckpt_path=next(tmp_path.glob("epoch=*")),
        plan_kwargs={"loss_fn": TraceGraph_ELBO()}, **QUIET,
    )  # fmt: skip
    assert whole._training.epochs == resumed._training.epochs == 4
    assert_same_training(whole, resumed)


def test_renyi_on_full_batches_only():
    with pytest.raises(TrainingError, match="no bound at all"):
        fit(RenyiELBO(alpha=0.5, num_particles=2))
    before = parameters(toy(Mean))
    model = fit(RenyiELBO(alpha=0.5, num_particles=2), size=None)
    assert not torch.equal(before["loc"], parameters(model)["loc"])
    assert "elbo_validation" in model.history


def test_plan_is_chosen_by_the_elbo():
    module = toy(Amortised).module
    with pytest.raises(TrainingError, match="no differentiable loss"):
        SVITrainingPlan(module, loss_fn=TraceGraph_ELBO())
    plan = ManualSVITrainingPlan(module, loss_fn=TraceGraph_ELBO())
    assert not plan.automatic_optimization


def test_several_devices_are_refused():
    plan = ManualSVITrainingPlan(toy(Amortised).module, loss_fn=TraceGraph_ELBO())
    plan._trainer = type("Trainer", (), {"world_size": 2})()
    with pytest.raises(TrainingError, match="devices=1"):
        plan.setup("fit")
