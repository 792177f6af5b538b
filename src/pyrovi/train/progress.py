"""Progress bar: one line for the whole training, with the ELBO and the time left."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class TrainingProgressBar(ProgressBar):
    """Epochs done, negative ELBO per observation of train and validation data, and time left."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        """Show nothing (Lightning calls this on all ranks but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the bar."""
        if not self._enabled:
            return
        self._progress = Progress(
            TextColumn("Epoch"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            disable=not (sys.stderr.isatty() or _in_notebook()),
        )
        self._progress.start()
        self._task = self._progress.add_task(
            "", total=trainer.max_epochs, completed=trainer.current_epoch, metrics=""
        )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the epoch before: its metrics are logged only after the epoch-end hooks."""
        self._update(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the last state on the screen."""
        self._update(trainer)
        self._close()

    def _update(self, trainer: pl.Trainer) -> None:
        if self._progress is not None:
            self._progress.update(
                self._task, completed=trainer.current_epoch, metrics=_metrics(trainer)
            )

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Restore the terminal."""
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _metrics(trainer: pl.Trainer) -> str:
    values: dict[str, Any] = trainer.callback_metrics
    shown = {"elbo": "elbo_train", "validation": "elbo_validation"}
    return "  ".join(f"{k} {float(values[m]):.2f}" for k, m in shown.items() if m in values)


def _in_notebook() -> bool:
    """Whether what is shown reaches a notebook: that of forked processes does not."""
    if multiprocessing.parent_process() is not None:
        return False
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
