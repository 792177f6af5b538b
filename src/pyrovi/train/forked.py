"""Training in processes that are forked from this one, as in notebooks, and what they hand back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.multiprocessing.spawn import ProcessException

from pyrovi.errors import DataError, TrainingError
from pyrovi.train.callbacks import reason_to_stop
from pyrovi.train.plan import SVITrainingPlan
from pyrovi.train.resume import training_state
from pyrovi.train.trainer import Trainer

_SCRIPT = "train in a script (`python train.py`) with strategy='ddp'"


def trains_in_forks(trainer: Trainer, data: Any) -> bool:
    """Whether a trainer forks the processes that train, which is what it does in a notebook.

    Parameters
    ----------
    trainer
        The trainer.
    data
        The data module.

    Raises
    ------
    TrainingError
        If it starts processes that know nothing of this one, or forks where that is not possible.
    DataError
        If it forks, and the data cannot be read in a forked process.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _MultiProcessingLauncher):
        return False
    if not launcher.is_interactive_compatible:
        raise TrainingError(
            "strategy='ddp_spawn' and its like start processes that know neither the settings nor "
            f"the stories and models of this one; {_SCRIPT}, or in a notebook with 'ddp_fork'."
        )
    if torch.cuda.is_initialized():
        raise TrainingError(
            "strategy='ddp_fork' (what strategy='auto' is in a notebook) forks processes, which is "
            "not possible once this one uses a GPU: restart the kernel and train before anything "
            f"is moved to one, or {_SCRIPT}."
        )
    if hasattr(data, "rows") and not data.rows.fork_safe:
        raise DataError(
            "strategy='ddp_fork' (what strategy='auto' is in a notebook) forks processes, which "
            "cannot read these data: their store runs threads, which do not survive a fork; "
            f"{_SCRIPT}."
        )
    return True


class _HandBack(Callback):
    """Write what the process that began the training has to know; Lightning hands the parameters.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Use one thread: OpenMP would wait for those of the process that was forked."""
        torch.set_num_threads(1)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file."""
        assert isinstance(pl_module, SVITrainingPlan)
        assert isinstance(trainer, Trainer)
        if trainer.local_rank == 0:
            found = {
                "state": training_state(pl_module),
                "history": pl_module.history.values,
                "reason": reason_to_stop(trainer),
            }
            torch.save(found, self.path)


@contextmanager
def handed_back(plan: SVITrainingPlan, trainer: Trainer) -> Iterator[dict[str, Any]]:
    """Fit inside; plan and trainer then stand where they do after a training of this process.

    Parameters
    ----------
    plan
        The plan.
    trainer
        A trainer that forks.

    Yields
    ------
    dict
        Filled when the training has ended: ``state`` for the next call, and ``reason`` to stop.

    Raises
    ------
    TrainingError
        If one of the processes fails.
    """
    found: dict[str, Any] = {}
    port = os.environ.get("MASTER_PORT")
    launcher = trainer.strategy.launcher
    assert isinstance(launcher, _MultiProcessingLauncher)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "training"
        trainer.callbacks.append(_HandBack(path))  # type: ignore[attr-defined]
        try:
            yield found
        except ProcessException as error:
            raise TrainingError(
                "A forked process failed, and the parameters are those from before the training: "
                f"{str(error).strip().splitlines()[-1]}"
            ) from error
        finally:
            launcher.kill(signal.SIGKILL)  # after an interrupt they would train on
            if port is None:  # the next training takes a free one, not that of processes of before
                os.environ.pop("MASTER_PORT", None)
        found |= torch.load(path, map_location="cpu", weights_only=True)
    plan.history.values = found["history"]
    plan.trainer = trainer
    trainer.fast_forward(found["state"]["epochs"], found["state"]["steps"])
