"""Trainer: Lightning's, with the defaults and callbacks of SVI on annotated data."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.profilers import PassThroughProfiler

from pyrovi._settings import settings
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import TrainingError
from pyrovi.train.averaging import IterateAveraging
from pyrovi.train.callbacks import (
    BestCheckpoint,
    ELBOConvergence,
    LoudEarlyStopping,
    NaNGuard,
)
from pyrovi.train.checkpoint import AtomicCheckpointIO, SaveCheckpoint
from pyrovi.train.loggers import HistoryLogger, make_logger
from pyrovi.train.progress import TrainingProgressBar


class _NoProfiler(PassThroughProfiler):
    """Lightning makes a context manager for each of its forty profiled actions of a step."""

    _nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> Any:
        """Measure nothing."""
        return self._nothing


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
        ``True``: stop when ``early_stopping_monitor`` has not improved by
        ``early_stopping_min_delta`` for ``early_stopping_patience`` validations, counted after the
        KL warm-up and not before ``early_stopping_warmup_epochs``; ``early_stopping_mode`` says
        which direction improves. ``"elbo"``: stop when the training ELBO has stopped moving beyond
        its noise (:class:`~pyrovi.train.callbacks.ELBOConvergence`), which needs no validation.
    averaging
        Average the parameters over the last steps
        (:class:`~pyrovi.train.averaging.IterateAveraging`).
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
    plugins
        Lightning plugins; checkpoints are written by :class:`AtomicCheckpointIO` unless one of them
        is a ``CheckpointIO``.
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
        early_stopping: bool | str = False,
        averaging: bool = False,
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
        plugins: Any = None,
        **kwargs: Any,
    ) -> None:
        given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
        own: list[Callback] = [NaNGuard()]
        if early_stopping not in (True, False, "elbo"):
            raise TrainingError(
                f"early_stopping must be True, False or 'elbo', got {early_stopping!r}."
            )
        if early_stopping == "elbo":
            own.append(ELBOConvergence())
        elif early_stopping:
            own.append(
                LoudEarlyStopping(
                    monitor=early_stopping_monitor,
                    min_delta=early_stopping_min_delta,
                    patience=early_stopping_patience,
                    mode=early_stopping_mode,
                    check_on_train_epoch_end=not early_stopping_monitor.endswith("_validation"),
                    warmup_epochs=early_stopping_warmup_epochs,
                )
            )
        if early_stopping is True if restore_best is None else restore_best:
            own.append(BestCheckpoint(monitor=early_stopping_monitor, mode=early_stopping_mode))
        if averaging:  # after BestCheckpoint, which is to see what has been validated
            own.append(IterateAveraging())
        saves = any(isinstance(c, ModelCheckpoint) for c in given)
        if enable_checkpointing and not saves:
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
                enable_checkpointing=enable_checkpointing or saves,
                plugins=_with_atomic_checkpoints(plugins),
                enable_progress_bar=progress,
                enable_model_summary=kwargs.pop("enable_model_summary", False),
                num_sanity_val_steps=kwargs.pop("num_sanity_val_steps", 0),
                log_every_n_steps=kwargs.pop("log_every_n_steps", 1),
                inference_mode=False,  # validation may fit the rows of held-out observations
                profiler=kwargs.pop("profiler", None) or _NoProfiler(),
                use_distributed_sampler=False,  # the loaders shard by themselves
                default_root_dir=default_root_dir,
                **kwargs,
            )
        # Lightning rebuilds mappings from their items when it changes the precision of the input.
        convert = self.precision_plugin.convert_input
        self.precision_plugin.convert_input = partial(_convert, convert)  # type: ignore[method-assign]

    @property
    def all_callbacks(self) -> list[Callback]:
        """The callbacks."""
        return list(self.callbacks)  # type: ignore[attr-defined]

    def fast_forward(self, epochs: int, steps: int) -> None:
        """Count epochs and steps of earlier calls, as if this trainer had made them."""
        loop = self.fit_loop
        tracker: Any
        for tracker in (loop.epoch_progress.total, loop.epoch_progress.current):
            tracker.ready = tracker.started = tracker.processed = tracker.completed = epochs
        batches = loop.epoch_loop
        batches.automatic_optimization.optim_progress.optimizer.step.total.completed = steps
        batches.manual_optimization.optim_step_progress.total.completed = steps

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Fit a plan, without Lightning's advertisements."""
        with quiet_lightning():
            super().fit(*args, **kwargs)


def _convert(convert: Callable[[Any], Any], batch: Any) -> Any:
    if isinstance(batch, Minibatch):
        return batch.replace(tensors=convert(batch.tensors))
    if isinstance(batch, list | tuple):
        return type(batch)(_convert(convert, part) for part in batch)
    return convert(batch)


def _with_atomic_checkpoints(plugins: Any) -> list[Any]:
    given = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
    given = [plugin for plugin in given if plugin is not None]
    if any(isinstance(plugin, CheckpointIO) for plugin in given):
        return given
    return [*given, AtomicCheckpointIO()]


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's notices about devices, workers and services; its warnings remain."""
    names = (
        "lightning.pytorch",
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
        "lightning.fabric",
        "lightning.fabric.utilities.seed",
    )
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _NOT_DUE:
            warnings.filterwarnings("ignore", f".*{message}.*")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


_NOT_DUE = (
    "does not have many workers",
    "Checkpoint directory .* exists and is not empty",
    "LeafSpec.* is deprecated",
    "Trying to infer the `batch_size`",
    "Total length of `list` across ranks is zero",
    "callbacks used to create the checkpoint need to be provided",
)
"""Warnings of Lightning about what is as it should be here."""
