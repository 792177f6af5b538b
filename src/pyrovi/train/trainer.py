"""Trainer: Lightning's, with the defaults and callbacks of SVI on annotated data."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, LearningRateMonitor

from pyrovi._settings import settings
from pyrovi.train.callbacks import BestCheckpoint, LoudEarlyStopping, NaNGuard, SaveCheckpoint
from pyrovi.train.loggers import HistoryLogger, make_logger
from pyrovi.train.progress import TrainingProgressBar


class Trainer(pl.Trainer):
    """Lightning Trainer for training plans.

    Parameters
    ----------
    history
        The logger that keeps the history.
    max_epochs
        Epochs to train for.
    accelerator, devices
        As in Lightning.
    check_val_every_n_epoch
        Epochs between validations.
    early_stopping
        Stop when ``early_stopping_monitor`` has not improved by ``early_stopping_min_delta`` for
        ``early_stopping_patience`` validations, counted after the KL warm-up and not before
        ``early_stopping_warmup_epochs``; ``early_stopping_mode`` says which direction improves.
    restore_best
        Put the parameters of the epoch with the best ``early_stopping_monitor`` back at the end;
        ``None``: with early stopping only.
    enable_checkpointing
        Write a training checkpoint every epoch to ``default_root_dir``, to resume from.
    enable_progress_bar
        Show epochs, ELBO and time left; ``None``: ``settings.enable_progress_bar``.
    logger
        Further loggers: ``"csv"``, ``"tensorboard"``, a Lightning logger, or a list.
    default_root_dir
        Folder of checkpoints and logs; ``None``: the working directory.
    callbacks
        Further callbacks.
    kwargs
        Arguments of Lightning's Trainer.
    """

    def __init__(
        self,
        history: HistoryLogger,
        *,
        max_epochs: int,
        accelerator: str = "auto",
        devices: Any = 1,
        check_val_every_n_epoch: int = 1,
        early_stopping: bool = False,
        early_stopping_monitor: str = "elbo_validation",
        early_stopping_min_delta: float = 0.0,
        early_stopping_patience: int = 45,
        early_stopping_warmup_epochs: int = 0,
        early_stopping_mode: str = "min",
        restore_best: bool | None = None,
        enable_checkpointing: bool = False,
        enable_progress_bar: bool | None = None,
        logger: Any = None,
        default_root_dir: str | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        **kwargs: Any,
    ) -> None:
        given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
        own: list[Callback] = [NaNGuard(), LearningRateMonitor(logging_interval="epoch")]
        if early_stopping:
            own.append(
                LoudEarlyStopping(
                    monitor=early_stopping_monitor,
                    min_delta=early_stopping_min_delta,
                    patience=early_stopping_patience,
                    mode=early_stopping_mode,
                    warmup_epochs=early_stopping_warmup_epochs,
                )
            )
        if early_stopping if restore_best is None else restore_best:
            own.append(BestCheckpoint(monitor=early_stopping_monitor, mode=early_stopping_mode))
        if enable_checkpointing and not any(isinstance(c, SaveCheckpoint) for c in given):
            own.append(SaveCheckpoint(dirpath=default_root_dir))
        progress = (
            settings.enable_progress_bar if enable_progress_bar is None else enable_progress_bar
        )
        if progress:
            own.append(TrainingProgressBar())
        with quiet_lightning():
            super().__init__(
                max_epochs=max_epochs,
                accelerator=accelerator,
                devices=devices,
                check_val_every_n_epoch=check_val_every_n_epoch,
                callbacks=own + given,
                logger=[history, *make_logger(logger, default_root_dir or ".")],
                enable_checkpointing=enable_checkpointing
                or any(isinstance(c, SaveCheckpoint) for c in given),
                enable_progress_bar=progress,
                enable_model_summary=kwargs.pop("enable_model_summary", False),
                num_sanity_val_steps=kwargs.pop("num_sanity_val_steps", 0),
                log_every_n_steps=kwargs.pop("log_every_n_steps", 1),
                inference_mode=False,  # validation may fit the rows of held-out observations
                use_distributed_sampler=False,  # the loaders shard by themselves
                default_root_dir=default_root_dir,
                **kwargs,
            )

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Fit a plan, without Lightning's advertisements."""
        with quiet_lightning():
            super().fit(*args, **kwargs)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's notices about devices, workers and services; warnings of its own remain."""
    names = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
