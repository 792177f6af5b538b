"""Loggers: the history every model keeps, and the names of those a user may add."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from pyrovi._lazy import require
from pyrovi.errors import TrainingError


class HistoryLogger(Logger):
    """Keeps the metrics of each epoch: those the plan records, and what others log.

    Attributes
    ----------
    values
        Metric -> epoch -> value. Epochs count from 0, over all calls of ``train``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, dict[int, float]] = {}
        self._recorded: set[str] = set()

    def record(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Keep metrics at once, in full precision: before the epoch's checkpoint is written."""
        self._recorded.update(metrics)
        self._keep(epoch, metrics)

    def _keep(self, epoch: int, metrics: Mapping[str, float]) -> None:
        for metric, value in metrics.items():
            self.values.setdefault(metric, {})[epoch] = float(value)

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "history"

    @property
    def version(self) -> str:
        """Version of the run."""
        return "0"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep what callbacks log (Lightning adds the epoch)."""
        others = {k: v for k, v in metrics.items() if k not in self._recorded and k != "epoch"}
        if others and "epoch" in metrics:
            self._keep(int(metrics["epoch"]), others)

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Hyperparameters are kept by the model, not by the history."""


def history_frames(values: Mapping[str, Mapping[int, float]]) -> dict[str, pd.DataFrame]:
    """Metric -> one-column DataFrame indexed by epoch."""
    return {
        name: pd.DataFrame(
            {name: list(series.values())}, index=pd.Index(list(series), name="epoch", dtype=int)
        )
        for name, series in values.items()
    }


def make_logger(logger: Any, save_dir: str) -> list[Logger]:
    """Loggers a user asked for: ``None`` or a bool, ``"csv"``, ``"tensorboard"``, or objects.

    Raises
    ------
    TrainingError
        If the name is unknown.
    """
    if logger is None or isinstance(logger, bool):
        return []
    if isinstance(logger, Logger):
        return [logger]
    if logger == "csv":
        return [CSVLogger(save_dir)]
    if logger == "tensorboard":
        require("tensorboard", "tensorboard")
        return [TensorBoardLogger(save_dir)]
    if isinstance(logger, list | tuple):
        return [made for one in logger for made in make_logger(one, save_dir)]
    raise TrainingError(
        f"logger={logger!r} is not known; use 'csv', 'tensorboard', a Lightning logger, or a list."
    )
