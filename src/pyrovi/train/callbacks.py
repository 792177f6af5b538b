"""Callbacks: stopping, guarding and restoring."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from pyrovi.errors import TrainingError
from pyrovi.train.plan import SVITrainingPlan


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
        plan = trainer.lightning_module
        if plan.epochs_done + 1 < self.warmup_epochs or plan.kl_weight < plan.max_kl_weight:
            return
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

    def on_validation_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Keep the parameters if they are the best so far."""
        assert isinstance(plan, SVITrainingPlan)
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or plan.kl_weight < plan.max_kl_weight:
            return
        if value is None:
            raise TrainingError(
                f"The monitored metric {self.monitor!r} was not logged; metrics are: "
                f"{', '.join(sorted(trainer.callback_metrics))}."
            )
        if self._sign * float(value) < self.best:
            self.best, self.best_epoch = self._sign * float(value), plan.epochs_done
            self._parameters = _copy_state(plan.module)

    def on_fit_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Load the best parameters."""
        if self._parameters is not None:
            assert isinstance(plan, SVITrainingPlan)
            plan.module.load_state_dict(self._parameters)

    def state_dict(self) -> dict[str, Any]:
        """State for checkpoints."""
        return {"best": self.best, "epoch": self.best_epoch, "parameters": self._parameters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """State from a checkpoint."""
        self.best, self.best_epoch = state_dict["best"], state_dict["epoch"]
        self._parameters = state_dict["parameters"]


class NaNGuard(Callback):
    """Stop at the first loss that is not finite, with the parameters of the last good epoch.

    On the CPU every step is checked; on other devices, where a check waits for the device, every
    epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._good: dict[str, torch.Tensor] | None = None
        self._bad: torch.Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Keep the parameters training started with."""
        self._good = _copy_state(plan.module)

    def on_before_backward(
        self, trainer: pl.Trainer, plan: pl.LightningModule, loss: torch.Tensor
    ) -> None:
        """Look at the loss."""
        self._check(trainer, plan, loss.detach())

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
            self._check(trainer, plan, torch.as_tensor(outputs["loss"]).detach())

    def _check(self, trainer: pl.Trainer, plan: pl.LightningModule, loss: torch.Tensor) -> None:
        if loss.device.type == "cpu":
            if not math.isfinite(loss.item()):
                self._stop(trainer, plan)
        else:
            bad = ~torch.isfinite(loss)
            self._bad = bad if self._bad is None else self._bad | bad

    def on_train_epoch_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Look at the epoch's losses, and keep its parameters."""
        if self._bad is not None and bool(self._bad):
            self._stop(trainer, plan)
        self._good = _copy_state(plan.module)

    def _stop(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        assert self._good is not None
        plan.module.load_state_dict(self._good)
        raise TrainingError(
            f"The loss became NaN or infinite in epoch {plan.epochs_done} (step {plan.steps_done}). "
            "The module is back at the parameters of the end of the epoch before. Usual remedies: a "
            "smaller lr, gradient_clip_val=10, or a check of the data for extreme values."
        )


class ELBOConvergence(EarlyStopping):
    """Stop when the training ELBO has stopped moving beyond its noise.

    The last ``2 * window`` epochs are split into two blocks. Training stops when the mean of the
    later block improves on that of the earlier by less than ``rtol`` of its size or by less than
    two standard errors of the difference.

    Parameters
    ----------
    window
        Epochs per block.
    rtol
        Relative improvement below which the objective counts as flat.
    """

    def __init__(self, window: int = 10, rtol: float = 1e-4) -> None:
        super().__init__(monitor="elbo_train", check_on_train_epoch_end=True)
        self.window, self.rtol = window, rtol
        self._losses: list[float] = []
        self.reason: str | None = None

    def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
        plan = trainer.lightning_module
        if plan.kl_weight < plan.max_kl_weight:
            return
        self._losses.append(float(trainer.callback_metrics[self.monitor]))
        if len(self._losses) < 2 * self.window:
            return
        recent = torch.tensor(self._losses[-2 * self.window :], dtype=torch.float64)
        before, after = recent[: self.window], recent[self.window :]
        improvement = float(before.mean() - after.mean())
        error = float(((before.var() + after.var()) / self.window).sqrt())
        if improvement < max(self.rtol * abs(float(after.mean())), 2 * error):
            self.reason = (
                f"elbo_train improved by {improvement:.3g} over the last {self.window} epochs, "
                f"within its noise ({2 * error:.3g})"
            )
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """State for checkpoints."""
        return {"losses": self._losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """State from a checkpoint."""
        self._losses = list(state_dict["losses"])


class SaveCheckpoint(ModelCheckpoint):
    """Write a training checkpoint at every epoch: optimiser, scheduler, random streams, sampler.

    Resume with ``model.train(..., ckpt_path=".../last.ckpt")``.

    Parameters
    ----------
    dirpath
        Folder; ``last.ckpt`` is always the newest.
    every_n_epochs
        Interval.
    kwargs
        Further arguments of Lightning's ``ModelCheckpoint``.
    """

    def __init__(self, dirpath: str | None = None, every_n_epochs: int = 1, **kwargs: Any) -> None:
        options = {"save_last": True, "save_top_k": 1, "filename": "{epoch}"} | kwargs
        super().__init__(
            dirpath=dirpath,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=True,
            **options,
        )


def _copy_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
