"""Restarts: several fits of one model from initial values of their own."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrovi._parallel import run_in_processes
from pyrovi._rng import derive_seed, generator, root_seed
from pyrovi._settings import settings
from pyrovi.errors import ModelError, TrainingError
from pyrovi.model.copies import fresh_copy

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass
    from pyrovi.model.training import TrainingRecord

logger = logging.getLogger("pyrovi")

MAX_OBSERVATIONS = 2_000
"""Most observations that the restarts are compared on; a seeded sample of larger sets."""


@dataclass(frozen=True)
class RestartRecord:
    """How one of several fits went."""

    seed: int
    """Root seed of its initial values, minibatches and noise."""
    elbo: float
    """ELBO per observation, of the validation observations if there are any, else of training."""
    history: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Metric -> epoch -> value."""
    training: TrainingRecord | None = None
    """What the next call of ``train`` goes on from."""


def train_restarts(
    model: BaseModelClass,
    n_restarts: int,
    num_workers: int | None,
    split: list[np.ndarray],
    options: Mapping[str, Any],
) -> None:
    """Fit a model several times; it keeps the best fit as its own and all of them as chains.

    Parameters
    ----------
    model
        The model. Its present parameters are what the first fit begins with; the others begin with
        initial values of their own. If it holds as many restarts already, all of them go on.
    n_restarts
        Number of fits, at least 2.
    num_workers
        Number of processes; ``None`` for as many as there are CPU cores.
    split
        Training, validation and test observations, the same for all fits.
    options
        Arguments of ``train``.

    Raises
    ------
    TrainingError
        If the model has been trained otherwise, or an option is of no use here.
    """
    from pyrovi.model.training import train

    _check(model, n_restarts, options)
    _refuse_equal_beginnings(model)
    workers = _workers(n_restarts, num_workers, options)
    if workers > 1:  # several bars would write over one another
        options = {**options, "enable_progress_bar": False}
    options = {
        **options,
        "datasplitter_kwargs": {
            **(options.get("datasplitter_kwargs") or {}),
            "external_indexing": split,
        },
    }

    def fit(restart: int) -> tuple[dict[str, torch.Tensor], RestartRecord]:
        one = _beginning(model, restart)
        seed = _seed(restart)
        with root_seed(seed):
            train(one, **options)
        state = {n: v.detach().cpu().clone() for n, v in one.module.state_dict().items()}
        return state, RestartRecord(seed, _elbo(one, split), one._history, one._training)

    def tell(restart: int, result: tuple[Any, RestartRecord]) -> None:
        elbo = result[1].elbo
        logger.info("Restart %d/%d: ELBO %.5g per observation.", restart + 1, n_restarts, elbo)

    fork_safe = model.adata_manager.fork_safe
    results = run_in_processes(fit, range(n_restarts), workers, tell, fork_safe=fork_safe)
    if not any(np.isfinite(record.elbo) for _, record in results):
        raise TrainingError(
            "The ELBO of every restart is not finite. Train once (n_restarts=1) to see why."
        )
    model._restarts = [state for state, _ in results]
    model._restart_records = [record for _, record in results]
    model.train_indices, model.validation_indices, model.test_indices = split
    take_restart(model, best_restart(model))


def best_restart(model: BaseModelClass) -> int:
    """Position of the restart with the largest ELBO."""
    elbos = [record.elbo for record in model._restart_records]
    return int(np.nanargmax(elbos))


def take_restart(model: BaseModelClass, restart: int) -> None:
    """Make one of the fits the model's own: its parameters, history and state of training."""
    record = model._restart_records[restart]
    model.module.load_state_dict(model._restarts[restart])
    model._history = {metric: dict(values) for metric, values in record.history.items()}
    model._training = record.training
    model.is_trained = True


def drop_restarts(model: BaseModelClass) -> None:
    """Forget all fits but the model's own, and say so."""
    warnings.warn(
        f"This call trains the best of the {len(model._restarts)} restarts further; the others are "
        "dropped, as R-hat would compare fits of different length. "
        f"train(n_restarts={len(model._restarts)}) trains all of them.",
        stacklevel=3,
    )
    model._restarts, model._restart_records = [], []


def restarts(model: BaseModelClass) -> pd.DataFrame:
    """The fits that ``train(n_restarts=)`` has made.

    Returns
    -------
    pandas.DataFrame
        One row per fit: ``elbo`` per observation (of the validation observations if there are any,
        else of the training observations), ``behind``: how far below the best one that is,
        ``epochs``, ``stopped`` (why training ended before the last epoch), ``seed`` and ``best``
        (the fit that the model's parameters are).

    Raises
    ------
    ModelError
        If the model was trained once only.
    """
    import pandas as pd

    if not model._restarts:
        raise ModelError("The model holds one fit; train(n_restarts=4) makes several.")
    records, best = model._restart_records, best_restart(model)
    rows = [
        {
            "elbo": record.elbo,
            "behind": records[best].elbo - record.elbo,
            "epochs": 0 if record.training is None else record.training.epochs,
            "stopped": None if record.training is None else record.training.stopping_reason,
            "seed": record.seed,
            "best": position == best,
        }
        for position, record in enumerate(records)
    ]
    return pd.DataFrame(rows, index=pd.RangeIndex(len(rows), name="restart"))


def restart_history(model: BaseModelClass, restart: int) -> dict[str, pd.DataFrame]:
    """History of one of the fits, as :attr:`BaseModelClass.history` is that of the best one.

    Parameters
    ----------
    restart
        Position of the fit, from 0.

    Raises
    ------
    ModelError
        If there is no such fit.
    """
    from pyrovi.train.loggers import history_frames

    if not 0 <= restart < len(model._restart_records):
        raise ModelError(
            f"There is no restart {restart}; the model holds {len(model._restart_records)} of them."
        )
    values = model._restart_records[restart].history
    return history_frames({metric: dict(by_epoch) for metric, by_epoch in values.items()})


def _check(model: BaseModelClass, n_restarts: int, options: Mapping[str, Any]) -> None:
    from pyrovi.model.methods import is_fitted_by_svi
    from pyrovi.nn.freezing import describe_freezing

    if n_restarts < 1:
        raise TrainingError(f"n_restarts must be at least 1, got {n_restarts}.")
    if options.get("ckpt_path") is not None or options.get("enable_checkpointing"):
        raise TrainingError(
            "Checkpoints are of one fit: use n_restarts=1 with ckpt_path or enable_checkpointing."
        )
    fitted = is_fitted_by_svi(model)
    if fitted and len(model._restarts) != n_restarts:
        held = f"{len(model._restarts)} restarts" if model._restarts else "one fit"
        raise TrainingError(
            f"This model is trained and holds {held}; {n_restarts} restarts would differ in "
            "length. Make a new model and train it with "
            f"n_restarts={n_restarts}, or go on with n_restarts={max(1, len(model._restarts))}."
        )
    if any(describe_freezing(model.module).values()):
        raise TrainingError(
            "Parts of this model are frozen at the values of a reference; initial values of their "
            "own would throw these away. Use n_restarts=1."
        )


def _workers(n_restarts: int, num_workers: int | None, options: Mapping[str, Any]) -> int:
    if num_workers is not None:
        return num_workers
    on_cpu = options.get("accelerator") == "cpu" or not torch.cuda.is_available()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(n_restarts, cores or 1) if on_cpu and options.get("devices", 1) == 1 else 1


def _seed(restart: int) -> int:
    """The first fit is the one that ``n_restarts=1`` would make."""
    return settings.seed if restart == 0 else derive_seed("restart", restart)


def _refuse_equal_beginnings(model: BaseModelClass) -> None:
    """A module that was given as an object has the same values at the beginning of every fit."""
    given = [v for v in model._init_arguments.values() if isinstance(v, torch.nn.Module)]
    names = [type(module).__name__ for module in given if any(True for _ in module.parameters())]
    if names and not model._restarts:
        raise TrainingError(
            f"Every restart would begin with the parameters of the {names[0]} that the model was "
            "made with, and agree for that reason alone. Give the class in the place of the object "
            f"(pv.from_pyro({names[0]}, ...), or functools.partial({names[0]}, ...)): each fit "
            "then makes one of its own."
        )


def _beginning(model: BaseModelClass, restart: int) -> BaseModelClass:
    """A model of its own for a fit, from its initial values or where it was left."""
    one = fresh_copy(model, seed=_seed(restart))
    one.to_device(model.device)
    if model._restarts:
        record = model._restart_records[restart]
        one.module.load_state_dict(model._restarts[restart])
        one._history = {metric: dict(values) for metric, values in record.history.items()}
        one._training, one.is_trained = record.training, True
    elif restart == 0:
        one.module.load_state_dict(model.module.state_dict())
    return one


def _elbo(one: BaseModelClass, split: list[np.ndarray]) -> float:
    """ELBO on the same observations with the same noise for all fits."""
    training, validation = split[:2]
    indices = np.asarray(validation if len(validation) else training)
    if len(indices) > MAX_OBSERVATIONS:
        chosen = generator("restarts").choice(len(indices), MAX_OBSERVATIONS, replace=False)
        indices = indices[np.sort(chosen)]
    return float(one.get_elbo(indices=indices, num_samples=20))
