"""Going on: what a checkpoint holds beside Lightning's state, and what the next call takes up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyrovi._rng import derive_seed
from pyrovi.errors import TrainingError
from pyrovi.train.checkpoint import KEY

if TYPE_CHECKING:
    from pyrovi.train.plan import SVITrainingPlan
    from pyrovi.train.trainer import Trainer


def training_state(plan: SVITrainingPlan) -> dict[str, Any]:
    """What the next call of ``train`` needs to go on as if there had been no stop."""
    assert plan.optimizer_plan is not None
    return {
        "epochs": plan.current_epoch,
        "steps": plan.global_step,
        "optimizer": plan.optimizer_plan.optimizer.state_dict(),
        "own": _own(plan),
        **_schedules(plan),
    }


def _own(plan: SVITrainingPlan) -> dict[str, Any]:
    """Parameters and buffers of networks of the plan that are not the module's."""
    return {k: v.clone() for k, v in plan.state_dict().items() if not k.startswith("module.")}


def _schedules(plan: SVITrainingPlan) -> dict[str, Any]:
    return {
        "warmup": [
            plan.warmup.n_epochs,
            plan.warmup.n_steps,
            plan.warmup.first_epoch,
            plan.warmup.first_step,
        ],
        "schedule": None if plan.schedule is None else plan.schedule.state_dict(),
    }


def take_up(plan: SVITrainingPlan, trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Let a training begin where :func:`training_state` was taken.

    Without an optimiser's state in it, the KL warm-up counts as done unless the plan asks for one,
    which then begins with this training.
    """
    trainer.fast_forward(state["epochs"], state["steps"])
    if "optimizer" in state:
        plan.pending_state = state
    elif plan.warmup.is_open:
        plan.warmup = replace(plan.warmup, n_epochs=0)
    else:
        plan.warmup = replace(plan.warmup, first_epoch=state["epochs"], first_step=state["steps"])


def checkpoint_state(plan: SVITrainingPlan, checkpoint: dict[str, Any]) -> None:
    """Add to a checkpoint what Lightning does not know of; plain values only."""
    assert plan.optimizer_plan is not None
    checkpoint[KEY] = {
        "seed": derive_seed("train"),
        "optimizer": _signature(plan),
        "history": plan.history.values,
        "train_means": plan.means["train"].totals(),
        **_schedules(plan),
    }


def check_checkpoint(plan: SVITrainingPlan, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """State in a checkpoint that belongs to this training.

    Raises
    ------
    TrainingError
        If it is of another model or seed, or was taken where going on would not be exact.
    """
    state: dict[str, Any] = checkpoint[KEY]
    own, theirs = plan.state_dict(), checkpoint["state_dict"]
    if differing := sorted(set(own) ^ set(theirs)):
        place = "the checkpoint" if differing[0] in theirs else "this model"
        raise TrainingError(
            "The checkpoint is of another model: parameter "
            f"{differing[0].removeprefix('module.')!r} is only in {place} (and "
            f"{len(differing) - 1} more). Make the model with the arguments it was trained with."
        )
    for name, value in own.items():
        if value.shape != theirs[name].shape:
            raise TrainingError(
                "The checkpoint is of another model: parameter "
                f"{name.removeprefix('module.')!r} has shape {tuple(theirs[name].shape)} there and "
                f"{tuple(value.shape)} here. Make the model with the arguments, and from the data, "
                "it was trained with."
            )
    if state["seed"] != derive_seed("train"):
        raise TrainingError(
            "The checkpoint was made under another seed; set pyrovi.settings.seed to that one to "
            "go on with the same minibatches and noise."
        )
    _refuse_inexact(plan, checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"])
    return state


def _refuse_inexact(plan: SVITrainingPlan, progress: Mapping[str, Any]) -> None:
    current = progress["current"]
    inside_hook = current["completed"] < current["processed"]
    if progress["is_last_batch"] and inside_hook:
        raise TrainingError(
            "The checkpoint was written after the last minibatch of an epoch but before the epoch "
            "was closed; its metrics and validation would be lost. Resume from another one, and "
            "write them with pyrovi.train.SaveCheckpoint, which waits for the end of the epoch."
        )
    if not progress["is_last_batch"] and current["processed"] % plan.accumulated_batches:
        raise TrainingError(
            f"The checkpoint was written between two steps of the optimiser: the gradients of "
            f"{current['processed'] % plan.accumulated_batches} accumulated minibatches are not in "
            "it. Resume from another one."
        )


def restore(plan: SVITrainingPlan, state: Mapping[str, Any]) -> None:
    """Take up a state once the optimiser exists.

    Raises
    ------
    TrainingError
        If the state is of another optimiser or scheduler.
    """
    assert plan.optimizer_plan is not None
    n_epochs, n_steps, first_epoch, first_step = state["warmup"]
    plan.warmup = replace(
        plan.warmup,
        n_epochs=n_epochs,
        n_steps=n_steps,
        first_epoch=first_epoch,
        first_step=first_step,
    )
    if (state["schedule"] is None) != (plan.schedule is None):
        raise TrainingError(
            "The checkpoint was made with"
            f"{'out' if state['schedule'] is None else ''} a learning-rate scheduler; resume with "
            "the plan_kwargs that it was made with."
        )
    if "seed" not in state:  # of the previous call, in memory
        plan.optimizer_plan.optimizer.load_state_dict(state["optimizer"])
        plan.load_state_dict(state["own"], strict=False)
    else:
        if state["optimizer"] != _signature(plan):
            raise TrainingError(
                f"The checkpoint was made with the optimiser {state['optimizer']}, this training "
                f"has {_signature(plan)}; resume with the plan_kwargs that it was made with."
            )
        plan.history.values = {name: dict(values) for name, values in state["history"].items()}
        # the totals are those of all ranks, so one of them takes them up
        if plan.global_rank == 0:
            plan.means["train"].restore(state["train_means"], plan.device)
    if plan.schedule is not None:
        plan.schedule.load_state_dict(state["schedule"])


def _signature(plan: SVITrainingPlan) -> list[Any]:
    assert plan.optimizer_plan is not None
    optimizer = plan.optimizer_plan.optimizer
    return [type(optimizer).__name__, *(len(group["params"]) for group in optimizer.param_groups)]
