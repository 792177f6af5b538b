"""Training checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from pyrovi.errors import TrainingError

KEY = "pyrovi"
"""Entry of a checkpoint that holds what Lightning does not know of."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint files that are complete whenever they exist.

    Lightning writes to the system's folder for temporary files and moves the result; across file
    systems such a move is a copy, which a killed process leaves half done under the final name.
    Here the file is written beside its place, flushed to the disk and renamed.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises
        ------
        TrainingError
            If it cannot be written (for instance, the disk is full); what was there is untouched.
        """
        checkpoint.setdefault(KEY, {})  # the parameters alone, which forked processes hand back
        target = Path(path)
        temporary = target.with_name(f".{target.name}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except (OSError, RuntimeError) as error:  # torch reports a failing write as RuntimeError
            temporary.unlink(missing_ok=True)
            raise TrainingError(
                f"The checkpoint {str(target)!r} could not be written: {error}"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; ``weights_only`` is always on: nothing in the file is executed.

        Raises
        ------
        TrainingError
            If the file is damaged, of another kind, or holds anything but tensors and plain values.
        """
        try:
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError) as error:
            raise TrainingError(
                f"{str(path)!r} is no checkpoint of a pyrovi training, or is damaged: it cannot be "
                f"read without running code from it, which pyrovi never does ({_first_line(error)})"
            ) from error
        if not isinstance(checkpoint, dict) or KEY not in checkpoint:
            raise TrainingError(f"{str(path)!r} is not a checkpoint of a pyrovi training.")
        return checkpoint


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class SaveCheckpoint(ModelCheckpoint):
    """Write training checkpoints: optimiser, scheduler, random streams, position in the epoch.

    Resume with ``model.train(..., ckpt_path=".../last.ckpt")``.

    Parameters
    ----------
    dirpath
        Folder; ``last.ckpt`` is always the newest.
    every_n_epochs
        Interval; ``None`` is 1, unless ``every_n_train_steps`` is given.
    every_n_train_steps
        Write within epochs, too: every so many optimiser steps.
    kwargs
        Further arguments of Lightning's ``ModelCheckpoint``.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        options: dict[str, Any] = {"save_last": True, "save_top_k": 1, "filename": "{epoch}-{step}"}
        super().__init__(
            dirpath=dirpath,
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            **{"save_on_train_epoch_end": True, **options, **kwargs},
        )
        self._due = False

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save within an epoch; after its last minibatch, wait until the epoch is closed.

        A checkpoint of a complete but not yet closed epoch would lose its metrics, its validation
        and its step of the scheduler.
        """
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        elif self._every_n_train_steps:
            self._due = trainer.global_step % self._every_n_train_steps == 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of an epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._due and not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        self._due = False
