"""Callbacks: stopping, guarding and restoring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from pyrovi.errors import InferenceError, TrainingError
from pyrovi.train.plan import SVITrainingPlan
from pyrovi.train.schedulers import missing_metric


class LoudEarlyStopping(EarlyStopping):
    """Early stopping that waits for the end of the KL warm-up and says why it stopped.

    Under warm-up the un-annealed validation loss may well rise; stopping (and counting patience)
    starts when the warm-up is complete, and not before ``warmup_epochs``.

    Parameters
    ----------
    warmup_epochs
        Epochs before which no improvement is counted.
    kwargs
        Arguments of Lightning's ``EarlyStopping``.
    """

    def __init__(self, *, warmup_epochs: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.warmup_epochs = warmup_epochs
        self.reason: str | None = None

    def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
        if trainer.current_epoch < self.warmup_epochs or _plan(trainer).is_warming_up:
            return
        if self.monitor not in trainer.callback_metrics:
            raise missing_metric(self.monitor, trainer.callback_metrics)
        super()._run_early_stopping_check(trainer)
        if trainer.should_stop and self.reason is None:
            self.reason = (
                f"{self.monitor} has not improved for {self.wait_count} checks "
                f"(best {float(self.best_score):.4g})"
            )


class BestCheckpoint(Callback):
    """Restore the parameters of the best epoch when training ends.

    Parameters
    ----------
    monitor
        Metric that decides.
    mode
        ``"min"`` or ``"max"``: which direction is better.

    Notes
    -----
    Epochs before the KL warm-up is complete are not candidates: they optimise another objective.
    """

    def __init__(self, monitor: str = "elbo_validation", mode: str = "min") -> None:
        super().__init__()
        self.monitor = monitor
        self._sign = {"min": 1.0, "max": -1.0}[mode]
        self.best = math.inf
        self.best_epoch: int | None = None
        self._parameters: dict[str, torch.Tensor] | None = None
        self._first = 0

    def on_validation_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Keep the parameters if they are the best so far."""
        if self.monitor.endswith("_validation") and not trainer.sanity_checking:
            self._compare(trainer, trainer.current_epoch)

    def on_train_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Note where this call of ``train`` begins."""
        self._first = trainer.current_epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Look at training metrics, which are there only after the epoch they belong to."""
        if not self.monitor.endswith("_validation") and trainer.current_epoch > self._first:
            self._compare(trainer, trainer.current_epoch - 1)

    def on_train_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Look at those of the last epoch."""
        self.on_train_epoch_start(trainer, plan)

    def _compare(self, trainer: pl.Trainer, epoch: int) -> None:
        plan = _plan(trainer)
        if plan.is_warming_up:
            return
        if self.monitor not in trainer.callback_metrics:
            raise missing_metric(self.monitor, trainer.callback_metrics)
        value = self._sign * float(trainer.callback_metrics[self.monitor])
        if value < self.best:
            self.best, self.best_epoch = value, epoch
            self._parameters = _copy_state(plan.module)

    def on_fit_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Load the best parameters."""
        if self._parameters is not None:
            _plan(trainer).module.load_state_dict(self._parameters)

    def state_dict(self) -> dict[str, Any]:
        """State for checkpoints."""
        return {"best": self.best, "epoch": self.best_epoch, "parameters": self._parameters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """State from a checkpoint."""
        self.best, self.best_epoch = state_dict["best"], state_dict["epoch"]
        self._parameters = state_dict["parameters"]


class NaNGuard(Callback):
    """Stop at the first loss that is not finite, with the parameters of the last good epoch.

    With one process on the CPU every step is checked; otherwise, where a check would wait for the
    device or for other processes, every epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._good: dict[str, torch.Tensor] | None = None
        self._bad: torch.Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Keep the parameters training started with."""
        self._good = _copy_state(_plan(trainer).module)

    def on_before_backward(
        self, trainer: pl.Trainer, plan: pl.LightningModule, loss: torch.Tensor
    ) -> None:
        """Look at the loss."""
        self._check(trainer, loss.detach())

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        plan: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at the loss of a manual plan, which has no backward hook."""
        if not plan.automatic_optimization:
            self._check(trainer, outputs["loss"].detach())

    def _check(self, trainer: pl.Trainer, loss: torch.Tensor) -> None:
        if loss.device.type == "cpu" and trainer.world_size == 1:
            if not math.isfinite(loss.item()):
                self._stop(trainer)
        else:
            bad = ~torch.isfinite(loss)
            self._bad = bad if self._bad is None else self._bad | bad

    def on_train_epoch_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Look at the epoch's losses, and keep its parameters."""
        if self._bad is not None:
            if trainer.strategy.reduce_boolean_decision(bool(self._bad), all=False):
                self._stop(trainer)
            self._bad = None
        self._good = _copy_state(_plan(trainer).module)

    def _stop(self, trainer: pl.Trainer) -> None:
        self.restore(_plan(trainer))
        raise InferenceError(
            f"The loss became NaN or infinite in epoch {trainer.current_epoch} (step "
            f"{trainer.global_step}). {RESTORED} {REMEDIES}"
        )

    def restore(self, plan: SVITrainingPlan) -> None:
        """Put the parameters of the last good epoch back."""
        if self._good is not None:
            plan.module.load_state_dict(self._good)


RESTORED = "The module is back at the parameters of the end of the epoch before."
REMEDIES = (
    "Usual remedies: a smaller lr, gradient_clip_val=10, or a check of the data for extreme values."
)


class ELBOConvergence(EarlyStopping):
    """Stop when the training ELBO, or another plan's loss, has stopped moving beyond its noise.

    The mean over the last quarter of the epochs is compared with that over the quarter before it.
    Training stops when it is better by less than ``rtol`` of its size or by less than two standard
    errors of the difference. The noise is estimated from the differences of successive epochs,
    which a trend does not inflate (von Neumann et al. 1941). As the quarters grow with the run,
    ever smaller improvements can be told from the noise: training goes on until one more third of
    the epochs so far would not show any.

    Parameters
    ----------
    window
        Fewest epochs of a quarter. Counting begins when the KL warm-up is complete.
    rtol
        Relative improvement below which the objective counts as flat.
    """

    def __init__(self, window: int = 10, rtol: float = 1e-5) -> None:
        super().__init__(monitor="elbo_train", check_on_train_epoch_end=True)
        if window < 3:
            raise TrainingError(f"window must be at least 3 epochs, got {window}.")
        self.window, self.rtol = window, rtol
        self._losses: list[float] = []
        self.reason: str | None = None

    def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
        if _plan(trainer).is_warming_up:
            return
        self.monitor = f"{_plan(trainer).watched}_train"
        self._losses.append(float(trainer.callback_metrics[self.monitor]))
        count = len(self._losses)
        if count < 4 * self.window or count % (self.window // 2 + 1):
            return
        change = block_change(self._losses, count // 4)
        if change.improvement < max(self.rtol * abs(change.mean), 2 * change.error):
            self.reason = (
                f"{self.monitor} improved by {change.improvement:.3g} over the last {count // 4} "
                f"epochs, within its noise ({2 * change.error:.3g}) or {self.rtol:g} of its size"
            )
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """State for checkpoints."""
        return {"losses": self._losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """State from a checkpoint."""
        self._losses = list(state_dict["losses"])


@dataclass(frozen=True)
class BlockChange:
    """Change of a loss between its last two blocks of epochs."""

    improvement: float
    """Mean of the block before less that of the last one; positive if the loss was falling."""
    error: float
    """Standard error of the improvement from the noise of single epochs."""
    mean: float
    """Mean of the last block."""


def block_change(losses: Sequence[float], block: int) -> BlockChange:
    """Compare the last two blocks of a sequence of losses.

    Parameters
    ----------
    losses
        Losses of epochs, at least ``2 * block``.
    block
        Epochs per block, at least 3.

    References
    ----------
    von Neumann, Kent, Bellinson & Hart (1941), *The mean square successive difference*.
    """
    recent = np.asarray(losses[-2 * block :], dtype=np.float64)
    before, after = recent[:block], recent[block:]
    # half the mean square of successive differences: the variance of the noise, without the trend
    noise = np.mean([np.square(np.diff(part)).mean() / 2 for part in (before, after)])
    return BlockChange(
        float(before.mean() - after.mean()), float(np.sqrt(2 * noise / block)), float(after.mean())
    )


def reason_to_stop(trainer: pl.Trainer) -> str | None:
    """Why a training stopped before its last epoch; ``None`` if it did not."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LoudEarlyStopping | ELBOConvergence) and callback.reason:
            return callback.reason
    return None


def _plan(trainer: pl.Trainer) -> SVITrainingPlan:
    plan = trainer.lightning_module
    assert isinstance(plan, SVITrainingPlan)
    return plan


def _copy_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
