"""TrainRunner: one call of ``train`` from the first epoch to the model's new state."""

from __future__ import annotations

import inspect
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyro
import torch

from pyrovi._rng import stream
from pyrovi.errors import InferenceError, TrainingError
from pyrovi.module.base import PyroBaseModule
from pyrovi.train.callbacks import REMEDIES, RESTORED, NaNGuard, reason_to_stop
from pyrovi.train.forked import handed_back, trains_in_forks
from pyrovi.train.manual_plan import ManualSVITrainingPlan
from pyrovi.train.plan import SVITrainingPlan, has_differentiable_loss
from pyrovi.train.resume import take_up, training_state
from pyrovi.train.trainer import Trainer

_MANUAL_OPTIONS = ("gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")


def check_plan_class(plan_class: Any) -> None:
    """Refuse what is no class of training plans.

    Raises
    ------
    TrainingError
        If it is none.
    """
    if not (isinstance(plan_class, type) and issubclass(plan_class, SVITrainingPlan)):
        raise TrainingError(
            f"training_plan is {plan_class!r}. Expected a subclass of pyrovi.train.SVITrainingPlan "
            "(the class; its arguments are plan_kwargs)."
        )


def _check_arguments(plan_class: type[SVITrainingPlan], plan_kwargs: dict[str, Any]) -> None:
    plans = [c for c in plan_class.__mro__ if issubclass(c, SVITrainingPlan)]
    signatures = [inspect.signature(c).parameters for c in plans]
    keywords = [p for s in signatures for p in s.values() if p.kind is p.KEYWORD_ONLY]
    known = list(dict.fromkeys(p.name for p in keywords))
    if unknown := [name for name in plan_kwargs if name not in known]:
        hint = " (scvi-tools' `optimizer` is `optim` here)" if "optimizer" in unknown else ""
        raise TrainingError(
            f"plan_kwargs has {', '.join(map(repr, unknown))}, which the training plan does not "
            f"know{hint}; it takes: {', '.join(known)}."
        )
    needed = [p.name for p in keywords if p.default is p.empty]
    if missing := [name for name in needed if name not in plan_kwargs]:
        raise TrainingError(
            f"{plan_class.__name__} needs {', '.join(map(repr, missing))}; give it as "
            f"plan_kwargs={{{missing[0]!r}: ...}}."
        )


def choose_plan(
    module: PyroBaseModule,
    plan_kwargs: dict[str, Any],
    trainer_kwargs: dict[str, Any],
    plan_class: type[SVITrainingPlan] = SVITrainingPlan,
) -> SVITrainingPlan:
    """Make the plan that can optimise the ELBO of ``plan_kwargs``.

    Clipping and accumulation move from the trainer to a manual plan, which does them itself.

    Parameters
    ----------
    module
        The model/guide pair.
    plan_kwargs, trainer_kwargs
        Arguments of the plan and of the trainer; those that move are taken out.
    plan_class
        Class of the plan, if it is not :class:`SVITrainingPlan`.

    Raises
    ------
    TrainingError
        If it is no training plan, or an argument is unknown to it or missing.
    """
    check_plan_class(plan_class)
    _check_arguments(plan_class, plan_kwargs)
    elbo = plan_kwargs.get("loss_fn") or module.default_elbo()
    if plan_class is SVITrainingPlan and not has_differentiable_loss(elbo):
        plan_class = ManualSVITrainingPlan
    if not issubclass(plan_class, ManualSVITrainingPlan):
        return plan_class(module, **plan_kwargs)
    moved = {k: trainer_kwargs.pop(k) for k in _MANUAL_OPTIONS if k in trainer_kwargs}
    return plan_class(module, **(plan_kwargs | moved))


class TrainRunner:
    """Runs a training plan on a data splitter.

    Parameters
    ----------
    plan
        The training plan.
    data
        LightningDataModule that gives the loaders.
    max_epochs
        Epochs of this call; with ``ckpt_path``, of the whole run.
    state
        State of the previous call (see :attr:`state`), to go on from.
    ckpt_path
        Checkpoint to resume from.
    trainer_kwargs
        Arguments of :class:`Trainer`.

    Raises
    ------
    TrainingError
        If there is nothing to do, no such checkpoint, or no way to start the processes.
    """

    def __init__(
        self,
        plan: SVITrainingPlan,
        data: Any,
        max_epochs: int,
        *,
        state: Mapping[str, Any] | None = None,
        ckpt_path: str | Path | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        if max_epochs < 1:
            raise TrainingError(f"max_epochs must be at least 1, got {max_epochs}.")
        if ckpt_path is not None and not Path(ckpt_path).is_file():
            raise TrainingError(f"There is no checkpoint {str(ckpt_path)!r} to resume from.")
        self.plan, self.data = plan, data
        self.ckpt_path = ckpt_path
        self._is_first = state is None and ckpt_path is None
        before = state["epochs"] if state is not None and ckpt_path is None else 0
        try:
            self.trainer = Trainer(plan.history, max_epochs=before + max_epochs, **trainer_kwargs)
        except TypeError as error:
            raise TrainingError(
                f"train() or Trainer got an argument it does not know: {error}."
            ) from error
        self._is_forked = trains_in_forks(self.trainer, data)
        self._handed_back: Mapping[str, Any] = {}
        if state is not None and ckpt_path is None:
            take_up(plan, self.trainer, state)
        plan.warmup = plan.warmup.planned(max_epochs)

    def __call__(self) -> None:
        """Train. The module is in evaluation mode afterwards, whatever happens."""
        module = self.plan.module
        module.train()
        dtypes = {name: value.dtype for name, value in module.state_dict().items()}
        if self.trainer.strategy.root_device.type == "cuda" and not self._is_forked:
            torch.cuda.init()  # so that the caller's state of the device is put by, too
        try:
            # validation is for the first steps of all; the context restores the user's setting
            validate = pyro.validation_enabled(self._is_first)
            fitting: AbstractContextManager[Mapping[str, Any]] = nullcontext({})
            if self._is_forked:
                fitting = handed_back(self.plan, self.trainer, self._explained)
            with stream("train"), validate, _own_interrupt_handler(), fitting as self._handed_back:
                self.trainer.fit(
                    self.plan,
                    datamodule=self.data,
                    ckpt_path=self.ckpt_path,
                    weights_only=True,
                )
        except SystemExit as exit_:  # Lightning turns Ctrl-C into an exit of the whole process
            if self.trainer.interrupted:
                raise KeyboardInterrupt from exit_
            raise
        except ValueError as error:
            if (told := self._explained(error)) is not error:
                raise told from error
            raise
        finally:
            module.eval()
            _restore_precision(module, dtypes)

    def _explained(self, error: Exception) -> Exception:
        """Distributions refuse NaN parameters before there is a loss to look at."""
        parameters = self.plan.module.parameters()
        if not isinstance(error, ValueError) or not (
            re.search(r"\b(nan|inf)\b", str(error))
            or not all(p.isfinite().all() for p in parameters)
        ):
            return error
        for callback in self.trainer.all_callbacks:
            if isinstance(callback, NaNGuard):
                callback.restore(self.plan)
        return InferenceError(
            f"A distribution got NaN or infinite parameters in epoch {self.plan.current_epoch} "
            f"(step {self.plan.global_step}). {RESTORED} {REMEDIES}"
        )

    @property
    def state(self) -> dict[str, Any] | None:
        """What the next call needs to go on; ``None`` if training did not get to its first step."""
        if self._is_forked:
            return self._handed_back.get("state")
        return None if self.plan.optimizer_plan is None else training_state(self.plan)

    @property
    def device(self) -> torch.device:
        """Device of the trained module: where it was if others have trained it, which may again."""
        forked = self._is_forked
        return self.plan.module.device if forked else self.trainer.strategy.root_device

    @property
    def stopping_reason(self) -> str | None:
        """Why training stopped before ``max_epochs``; ``None`` if it did not."""
        return self._handed_back.get("reason") or reason_to_stop(self.trainer)


def _restore_precision(module: torch.nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Undo ``precision="64-true"`` and the like: queries read the data in single precision."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if name in dtypes and value.dtype != dtypes[name]:
            value.data = value.data.to(dtypes[name])


@contextmanager
def _own_interrupt_handler() -> Iterator[None]:
    """Keep the handler of Ctrl-C: after an interruption Lightning leaves it switched off."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
