"""TrainRunner: one call of ``train`` from the first epoch to the model's new state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro

from pyrovi._rng import stream
from pyrovi.errors import TrainingError
from pyrovi.module.base import PyroBaseModule
from pyrovi.train.callbacks import ELBOConvergence, LoudEarlyStopping
from pyrovi.train.loggers import HistoryLogger
from pyrovi.train.manual_plan import ManualSVITrainingPlan
from pyrovi.train.plan import SVITrainingPlan, has_differentiable_loss
from pyrovi.train.trainer import Trainer

_MANUAL_OPTIONS = ("gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")


def choose_plan(
    module: PyroBaseModule, plan_kwargs: dict[str, Any], trainer_kwargs: dict[str, Any]
) -> SVITrainingPlan:
    """Make the plan that can optimise the ELBO of ``plan_kwargs``.

    Clipping and accumulation move from the trainer to a manual plan, which does them itself.
    """
    elbo = plan_kwargs.get("loss_fn") or module.default_elbo()
    if has_differentiable_loss(elbo):
        return SVITrainingPlan(module, **plan_kwargs)
    moved = {k: trainer_kwargs.pop(k) for k in _MANUAL_OPTIONS if k in trainer_kwargs}
    return ManualSVITrainingPlan(module, **plan_kwargs, **moved)


class TrainRunner:
    """Runs a training plan on a data splitter.

    Parameters
    ----------
    plan
        The training plan.
    data
        LightningDataModule that gives the loaders.
    max_epochs
        Epochs of this call.
    state
        Training state of the previous call (see :meth:`SVITrainingPlan.training_state`), to go on
        from.
    ckpt_path
        Checkpoint to resume from.
    trainer_kwargs
        Arguments of :class:`Trainer`.
    """

    def __init__(
        self,
        plan: SVITrainingPlan,
        data: Any,
        max_epochs: int,
        *,
        state: dict[str, Any] | None = None,
        ckpt_path: str | Path | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        if max_epochs < 1:
            raise TrainingError(f"max_epochs must be at least 1, got {max_epochs}.")
        if ckpt_path is not None and not Path(ckpt_path).is_file():
            raise TrainingError(f"There is no checkpoint {str(ckpt_path)!r} to resume from.")
        self.plan, self.data = plan, data
        self.ckpt_path = ckpt_path
        if state is not None and ckpt_path is None:
            plan.resume_from(state)
        else:
            plan.plan_warmup(max_epochs)
        self.history = HistoryLogger(lambda: plan.epochs_done)
        self.trainer = Trainer(self.history, max_epochs=max_epochs, **trainer_kwargs)

    def __call__(self) -> dict[str, Any]:
        """Train; returns the training state. The module is in evaluation mode afterwards."""
        module = self.plan.module
        module.train()
        try:
            # the plan validates in the first epoch only; the context restores the user's setting
            with stream("train"), pyro.validation_enabled():
                self.trainer.fit(
                    self.plan,
                    datamodule=self.data,
                    ckpt_path=self.ckpt_path,
                    weights_only=True,
                )
        except SystemExit as exit_:  # Lightning turns Ctrl-C into an exit of the whole process
            if self.trainer.interrupted:
                raise KeyboardInterrupt from exit_
            raise
        finally:
            module.eval()
        return self.plan.training_state()

    @property
    def stopping_reason(self) -> str | None:
        """Why training stopped before ``max_epochs``; ``None`` if it did not."""
        for callback in self.trainer.callbacks:
            if isinstance(callback, LoudEarlyStopping | ELBOConvergence) and callback.reason:
                return callback.reason
        return None
