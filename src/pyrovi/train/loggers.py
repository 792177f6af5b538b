"""Loggers: the history every model keeps, and the names of those a user may add."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from pyrovi._lazy import require
from pyrovi.errors import TrainingError


class HistoryLogger(Logger):
    """Keeps every logged metric, by epoch.

    Parameters
    ----------
    epoch
        Function that tells the number of epochs done, over all calls of ``train``.
    """

    def __init__(self, epoch: Callable[[], int]) -> None:
        super().__init__()
        self._epoch = epoch
        self.values: dict[str, dict[int, float]] = {}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "history"

    @property
    def version(self) -> str:
        """Version of the run."""
        return "0"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep the metrics of the present epoch."""
        for metric, value in metrics.items():
            if metric != "epoch":
                self.values.setdefault(metric, {})[self._epoch()] = float(value)

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
    """Loggers a user asked for: ``None``/``True``/``False``, ``"csv"``, ``"tensorboard"`` or objects.

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
