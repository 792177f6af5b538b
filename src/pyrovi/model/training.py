"""``model.train``: stochastic variational inference of a model on its own data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi.errors import TrainingError
from pyrovi.model.methods import changed_options, is_fitted_by_svi, train_by
from pyrovi.model.possible import check_possible
from pyrovi.model.restarts import drop_restarts, train_restarts
from pyrovi.model.start import check_start
from pyrovi.model.training_data import check_batches, training_batch_size, training_splitter
from pyrovi.module.minified import is_minified, no_counts
from pyrovi.module.stored import StoredDraws

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass
    from pyrovi.train import SVITrainingPlan


@dataclass
class TrainingRecord:
    """What the next call of ``train`` and the queries need to know of the last one."""

    n_obs: int
    """Number of training observations, the plate size."""
    plan_kwargs: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
    """Epochs, steps and optimiser state; ``None`` for a model loaded from a file."""
    epochs: int = 0
    stopping_reason: str | None = None
    method: str = "svi"
    """How the posterior that queries see was found."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``train`` that were not left at their defaults: what a refit repeats."""
    lost: tuple[str, ...] = ()
    """Options of a loaded model that a file cannot hold (objects)."""


def note_options(
    model: BaseModelClass, options: Mapping[str, Any], before: TrainingRecord | None
) -> None:
    """Keep what ``train`` was asked for; a run that goes on is one run of all its epochs.

    Parameters
    ----------
    model
        The model, just trained by SVI.
    options
        Arguments of the call.
    before
        The record before it.
    """
    record = model._training
    if record is None or record is before:
        return
    noted = dict(options)
    if before is not None and before.epochs > 0 and options.get("ckpt_path") is None:
        earlier = before.options if before.method == "svi" else {}
        epochs = (earlier.get("max_epochs"), options.get("max_epochs"))
        noted = {**earlier, **options}
        noted.pop("max_epochs", None)
        if all(number is not None for number in epochs):
            noted["max_epochs"] = sum(epochs)
        record.lost = before.lost
    record.options = noted


def train_with_defaults(
    model: BaseModelClass, asked: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Train by SVI with the defaults of a class; the record keeps what was asked for alone.

    Parameters
    ----------
    model
        The model.
    asked
        Arguments of the call. They replace the defaults; ``plan_kwargs`` are joined with theirs.
    defaults
        Arguments of :func:`train`.
    """
    before = model._training
    plan = {**defaults.get("plan_kwargs", {}), **(asked.get("plan_kwargs") or {})}
    train(model, **{**defaults, **asked, "plan_kwargs": plan or None})
    note_options(model, asked, before)


def describe(model: BaseModelClass) -> str:
    """Whether and how a model has been trained, in a few words."""
    if not model.is_trained or model._training is None:
        return "trained" if model.is_trained else "not trained"
    method = model._training.method
    posterior = model.module.posterior
    if isinstance(posterior, StoredDraws):
        return f"trained by {method} ({posterior.num_chains} x {posterior.num_draws} draws)"
    return "trained" if method == "svi" else f"trained by {method}"


def max_epochs_heuristic(n_obs: int, cap: int = 400, decay_at: int = 20_000) -> int:
    """Default number of epochs: ``cap`` up to ``decay_at`` observations, then fewer, at least 1."""
    return max(1, min(round(decay_at / n_obs * cap), cap))


def train(
    model: BaseModelClass,
    max_epochs: int | None = None,
    *,
    method: str = "svi",
    accelerator: str = "auto",
    devices: Any = 1,
    train_size: float | None = None,
    validation_size: float | None = None,
    shuffle_set_split: bool = True,
    batch_size: int | str | None = "default",
    load_sparse_tensor: bool = False,
    on_device: bool = False,
    early_stopping: bool | str = False,
    lr: float | None = None,
    start: str | None = None,
    n_restarts: int = 1,
    num_workers: int | None = None,
    ckpt_path: str | Path | None = None,
    training_plan: type[SVITrainingPlan] | None = None,
    datasplitter_kwargs: Mapping[str, Any] | None = None,
    plan_kwargs: Mapping[str, Any] | None = None,
    **trainer_kwargs: Any,
) -> None:
    """Fit the model: by stochastic variational inference, or by another method.

    With ``method="svi"``, the default, the guide is fitted, by minibatches. The others work on all
    observations (or on ``indices=``) at once and leave parameters and guide as they are; queries
    then see their result, until the next call. They take options of their own, in place of all
    those below:

    - ``"nuts"``: Markov chain Monte Carlo (see :func:`~pyrovi.model.mcmc.fit_nuts`);
    - ``"pathfinder"``: draws along optimisers' paths
      (:func:`~pyrovi.model.paths.fit_pathfinder`);
    - ``"laplace"``: a normal at the mode (:func:`~pyrovi.model.modes.fit_laplace`);
    - ``"map"``: the mode itself (:func:`~pyrovi.model.modes.fit_map`).

    Calling it again goes on from the parameters and epochs of the last call. With the same
    ``plan_kwargs`` it is the same run going on: with the optimiser's state, and the KL warm-up as
    far as it has come. With others, the optimiser begins anew, and so does a KL warm-up if they ask
    for one, counted from the first epoch of the call; else it is behind. Optimisers of
    ``pyro.optim`` are the same if their classes and arguments are, functions if they are one
    object.

    Parameters
    ----------
    method
        ``"svi"``, ``"nuts"``, ``"pathfinder"``, ``"laplace"`` or ``"map"``.
    max_epochs
        Epochs of this call; ``None``: 400, fewer above 20,000 observations. With ``ckpt_path``, the
        epochs of the whole run.
    accelerator, devices
        As in Lightning. Several devices train data-parallel; in a notebook, in processes forked
        from it.
    train_size, validation_size, shuffle_set_split
        Division of the observations; by default 90 % are for training, the rest for validation.
        ``datasplitter_kwargs={"external_indexing": [train, validation, test]}`` gives it as it is.
    batch_size
        Observations per minibatch (default: ``settings.batch_size``); ``None`` keeps all training
        observations on the device as one batch.
    load_sparse_tensor
        Send sparse minibatches to the device in compressed form.
    on_device
        Move all observations to the device once, in dense form, and cut the minibatches there: the
        same ones, without a transfer at every step.
    early_stopping
        ``True``: stop when ``elbo_validation`` has stopped improving, and restore the best
        parameters. ``"elbo"``: stop when the training ELBO has stopped moving beyond its noise,
        which needs no held-out observations.
    lr
        Learning rate; short for ``plan_kwargs={"lr": ...}``. ``None``: the one of the module
        (``module.default_lr``).
    start
        ``"pathfinder"`` puts the locations and scales of a guide by name near the posterior before
        the first step (see :func:`~pyrovi.model.start.start_near_posterior`). Classes may have
        ways of their own (:attr:`~pyrovi.model.BaseModelClass.starts`).
    n_restarts
        Number of fits, each from initial values, minibatches and noise of its own, on the same
        training observations. The model keeps the best one (by the ELBO of the validation, else of
        the training observations); all of them are the chains of ``to_arviz``, whose R-hat says
        where they agree. A further call with the same number goes on with all of them; one without
        goes on with the best and drops the others.
    num_workers
        Number of processes that fit restarts at a time; ``None``: the number of CPU cores, or one
        after the other on a GPU. Data of TileDB-SOMA are always fitted one after the other.
    ckpt_path
        Training checkpoint to resume from (see ``enable_checkpointing``).
    training_plan
        Class of the training plan; ``None``: the one of the model
        (:meth:`~pyrovi.model.BaseModelClass.training_plan_class`). Pairs of minibatches, of all
        and of labelled observations, are only for plans that take them.
    datasplitter_kwargs, plan_kwargs
        Further arguments of the data splitter (:class:`~pyrovi.dataloaders.DataSplitter` unless the
        model has another) and of the training plan (:class:`~pyrovi.train.SVITrainingPlan`).
    trainer_kwargs
        Further arguments of :class:`~pyrovi.train.Trainer` (``early_stopping_patience``,
        ``averaging``, ``enable_checkpointing``, ``logger``, ``callbacks``, ``gradient_clip_val``,
        ...).

    Raises
    ------
    TrainingError
        If training cannot start, or the loss is not finite.
    DataError
        If ``batch_size`` is no positive whole number, or the data are not what was set up.
    """
    asked = changed_options(train, {**locals(), "method": "svi"})
    check_possible(model)
    if method != "svi":
        train_by(model, method, asked)
        return
    from pyrovi.train.runner import TrainRunner, check_plan_class, choose_plan

    plan_class = model.training_plan_class() if training_plan is None else training_plan
    check_plan_class(plan_class)
    manager = model.adata_manager
    if is_minified(manager.data_registry):
        raise no_counts("Training")
    manager.validate()  # counts that were overwritten since the setup would train on nonsense
    if max_epochs is None:
        max_epochs = max_epochs_heuristic(manager.n_obs)
    size = training_batch_size(batch_size)
    plan_arguments = _with_learning_rate(plan_kwargs, lr)
    data = training_splitter(
        model,
        plan_class,
        {
            "train_size": train_size,
            "validation_size": validation_size,
            "shuffle_set_split": shuffle_set_split,
            **({"load_sparse_tensor": True} if load_sparse_tensor else {}),
            **(datasplitter_kwargs or {}),
        },
        size,
        accelerator if on_device or size is None else None,
    )
    before, last_record = model.module.posterior, model._training
    if n_restarts != 1:
        options = {
            "max_epochs": max_epochs,
            "accelerator": accelerator,
            "devices": devices,
            "batch_size": batch_size,
            "load_sparse_tensor": load_sparse_tensor,
            "on_device": on_device,
            "early_stopping": early_stopping,
            "start": start,
            "lr": lr,
            "ckpt_path": ckpt_path,
            "training_plan": training_plan,
            "datasplitter_kwargs": datasplitter_kwargs,
            "plan_kwargs": plan_kwargs,
            **trainer_kwargs,
        }
        split = [data.train_idx, data.val_idx, data.test_idx]
        train_restarts(model, n_restarts, num_workers, split, options)
        note_options(model, asked, last_record)
        model.module.use_posterior(None)
        return
    if model._restarts:
        drop_restarts(model)
    check_start(start, model)
    check_batches(model, data.n_train, size)
    watched = f"{plan_class.watched}_validation"
    trainer_kwargs = {"early_stopping_monitor": watched, **trainer_kwargs}
    _check_monitors(data.n_val, early_stopping, plan_class, plan_arguments, trainer_kwargs)
    plan = choose_plan(model.module, plan_arguments, trainer_kwargs, plan_class)
    if start is not None and not is_fitted_by_svi(model):
        model.starts[start](model, data.train_idx)
    runner = TrainRunner(
        plan,
        data,
        max_epochs,
        state=_continuation(model, plan_arguments),
        ckpt_path=ckpt_path,
        accelerator=accelerator,
        devices=devices,
        early_stopping=early_stopping,
        **trainer_kwargs,
    )
    model.train_indices, model.validation_indices = data.train_idx, data.val_idx
    model.test_indices = data.test_idx
    state = None
    model.module.use_posterior(None)  # queries are of the guide again
    model.prepare_training()
    try:
        runner()
        state = runner.state
    except KeyboardInterrupt:
        state = runner.state  # what has been learnt so far is kept, and can be gone on from
        raise
    finally:
        epochs = plan.current_epoch
        _merge_history(model, plan.history.values)
        model._training = TrainingRecord(
            data.n_train, plan_arguments, state, epochs, runner.stopping_reason
        )
        note_options(model, asked, last_record)
        if epochs == 0 and before is not None:  # it has not even begun
            model.module.use_posterior(before)
            model._training = last_record
        model.is_trained = model.is_trained or epochs > 0
    model.to_device(runner.device)
    _fit_held_out_rows(model)
    model.finish_training()


def _with_learning_rate(plan_kwargs: Mapping[str, Any] | None, lr: float | None) -> dict[str, Any]:
    given = dict(plan_kwargs or {})
    if lr is None:
        return given
    if given.get("lr", lr) != lr:
        raise TrainingError(
            f"There are two learning rates: lr={lr!r} and plan_kwargs={{'lr': {given['lr']!r}}}. "
            "One is short for the other: give one of them."
        )
    return given | {"lr": lr}


def _merge_history(model: BaseModelClass, values: Mapping[str, Mapping[int, float]]) -> None:
    for metric, by_epoch in values.items():
        model._history.setdefault(metric, {}).update(by_epoch)


def _check_monitors(
    n_val: int,
    early_stopping: bool | str,
    plan_class: type[SVITrainingPlan],
    plan_arguments: Mapping[str, Any],
    trainer_kwargs: Mapping[str, Any],
) -> None:
    """Refuse options that watch held-out observations where there are none."""
    monitor = trainer_kwargs["early_stopping_monitor"]
    watching = {
        "early_stopping=True": early_stopping is True and monitor,
        "restore_best=True": trainer_kwargs.get("restore_best") and monitor,
        "reduce_lr_on_plateau=True": plan_arguments.get("reduce_lr_on_plateau")
        and (plan_arguments.get("lr_scheduler_metric") or f"{plan_class.watched}_validation"),
    }
    for option, metric in watching.items():
        if metric and str(metric).endswith("_validation") and n_val == 0:
            raise TrainingError(
                f"{option} watches {metric!r}, but train_size leaves no validation observations; "
                f"use train_size=0.9, watch '{plan_class.watched}_train', or stop on it with "
                "early_stopping='elbo'."
            )


def _continuation(
    model: BaseModelClass, plan_arguments: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """State to go on from; the optimiser's only if it is configured as before."""
    from pyrovi.train.optim import same_options

    last = model._training
    if last is None or last.epochs == 0:
        return None
    if last.state is not None and same_options(last.plan_kwargs, plan_arguments):
        return last.state
    steps = 0 if last.state is None else last.state["steps"]
    return {"epochs": last.epochs, "steps": steps}


def _fit_held_out_rows(model: BaseModelClass) -> None:
    """Fit the per-observation parameters of observations that training has not seen."""
    if not model.module.row_parameters:
        return
    from pyrovi.dataloaders import AnnDataLoader
    from pyrovi.train.rows import fit_held_out

    assert model.train_indices is not None
    held_out = np.setdiff1d(np.arange(model.adata_manager.n_obs), model.train_indices)
    if len(held_out):
        loader = AnnDataLoader(model.adata_manager, held_out, n_obs=model.n_obs_training)
        fit_held_out(model.module, loader)
