"""Training in processes that are forked from this one, as in notebooks, and what they hand back."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.multiprocessing.spawn import ProcessException

from pyrovi import errors
from pyrovi.errors import DataError, PyroviError, TrainingError
from pyrovi.train.callbacks import RESTORED, reason_to_stop
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


def _telling(
    function: Callable[..., Any], folder: Path, explained: Callable[[Exception], Exception]
) -> Callable[..., Any]:
    """The function of a forked process, which writes what ended it for the process it is from.

    Of itself torch hands over a traceback as text, and takes an interrupt for success.
    """

    def tell(error: BaseException) -> None:
        what = {
            "type": type(error).__name__,
            "is_own": type(error).__module__ == errors.__name__,
            "message": str(error).replace(f"{RESTORED} ", ""),  # which is true of that process
        }
        _told_by(folder, os.environ["LOCAL_RANK"]).write_text(json.dumps(what))

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            tell(explained(error))
            raise
        except KeyboardInterrupt as interrupt:
            tell(interrupt)
            raise SystemExit(1) from interrupt

    return run


def _told_by(folder: Path, rank: Any) -> Path:
    return folder / f"error-{rank}.json"


def _error_of(failure: ProcessException, folder: Path) -> BaseException:
    """What ended a forked process, to be raised in this one."""
    before = "A forked process failed, and the parameters are those from before the training: "
    path = _told_by(folder, failure.error_index)
    if not path.exists():  # it was killed
        return TrainingError(before + str(failure).strip())
    told = json.loads(path.read_text())
    if told["type"] == "KeyboardInterrupt":
        return KeyboardInterrupt()
    if not told["is_own"]:
        return TrainingError(f"{before}{told['type']}: {told['message']}")
    kind: type[PyroviError] = getattr(errors, told["type"])
    return kind(before + told["message"])


@contextmanager
def handed_back(
    plan: SVITrainingPlan, trainer: Trainer, explained: Callable[[Exception], Exception]
) -> Iterator[dict[str, Any]]:
    """Fit inside; plan and trainer then stand where they do after a training of this process.

    Parameters
    ----------
    plan
        The plan.
    trainer
        A trainer that forks.
    explained
        Error of a process -> the one to raise in its place; called in that process.

    Yields
    ------
    dict
        Filled when the training has ended: ``state`` for the next call, and ``reason`` to stop.

    Raises
    ------
    PyroviError
        What ended one of the processes; a :class:`TrainingError` if it was no error of pyrovi.
    KeyboardInterrupt
        If one of them was interrupted.
    """
    found: dict[str, Any] = {}
    port = os.environ.get("MASTER_PORT")
    launcher = trainer.strategy.launcher
    assert isinstance(launcher, _MultiProcessingLauncher)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "training"
        launch = launcher.launch

        def launch_telling(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return launch(_telling(function, Path(folder), explained), *args, **kwargs)

        launcher.launch = launch_telling  # type: ignore[method-assign]
        trainer.callbacks.append(_HandBack(path))  # type: ignore[attr-defined]
        try:
            yield found
        except ProcessException as error:
            raise _error_of(error, Path(folder)) from error
        finally:
            launcher.kill(signal.SIGKILL)  # after an interrupt they would train on
            if port is None:  # the next training takes a free one, not that of processes of before
                os.environ.pop("MASTER_PORT", None)
        found |= torch.load(path, map_location="cpu", weights_only=True)
    plan.history.values = found["history"]
    plan.trainer = trainer
    trainer.fast_forward(found["state"]["epochs"], found["state"]["steps"])
