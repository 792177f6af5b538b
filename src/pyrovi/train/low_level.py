"""A plan for objectives of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import TrainingError
from pyrovi.module.base import PyroBaseModule
from pyrovi.train.metrics import TracePair
from pyrovi.train.plan import SVITrainingPlan

Objective = Callable[[PyroBaseModule, Minibatch, float], Tensor | tuple[Tensor, Mapping[str, Any]]]
"""Function of the module, a minibatch and the KL weight: the loss per observation, and metrics."""


class LowLevelTrainingPlan(SVITrainingPlan):
    """Training by an objective that need not be an ELBO.

    Optimisers, schedules, clipping, checkpoints, early stopping (on ``loss_validation`` unless
    ``early_stopping_monitor`` names a metric) and history are those of :class:`SVITrainingPlan`;
    the loss is what a function returns.

    Parameters
    ----------
    module
        The model/guide pair; its parameters are trained.
    objective
        Function of the module, a minibatch and the KL weight. It returns the loss to minimise, a
        scalar per observation, or that and a mapping of metrics (scalars), which are averaged over
        the observations of an epoch. ``module.run_model(minibatch)`` and
        ``module.run_guide(minibatch)`` run the pair under any handler of Pyro. In validation it is
        called without gradients and with weight 1.
    kwargs
        Options of :class:`SVITrainingPlan` except ``loss_fn``.

    Raises
    ------
    TrainingError
        If ``loss_fn`` is given, or the function does not return a scalar that has a gradient.

    Notes
    -----
    ``history`` has ``loss_train``, ``loss_validation`` and the metrics, no parts of an ELBO.

    Examples
    --------
    >>> def squared_error(module, minibatch, kl_weight):
    ...     trace = poutine.trace(module.run_guide).get_trace(minibatch)
    ...     return (trace.nodes["z"]["value"] - 1).pow(2).sum(-1).mean()
    >>> plan = {"objective": squared_error}
    >>> model.train(training_plan=LowLevelTrainingPlan, plan_kwargs=plan)  # doctest: +SKIP
    """

    watched: ClassVar[str] = "loss"

    def __init__(self, module: PyroBaseModule, *, objective: Objective, **kwargs: Any) -> None:
        if kwargs.get("loss_fn") is not None:
            raise TrainingError(
                "loss_fn and objective would both be the loss. Leave loss_fn out, or use "
                "SVITrainingPlan, whose loss it is."
            )
        super().__init__(module, **kwargs)
        if not callable(objective):
            raise TrainingError(
                f"objective is {objective!r}. Expected a function of the module, a minibatch and "
                "the KL weight that returns a loss."
            )
        self.own_objective = objective

    def evaluate(
        self, minibatch: Minibatch, weight: float
    ) -> tuple[Tensor, dict[str, Tensor], list[TracePair]]:
        """What the function returns."""
        found = self.own_objective(self.module, minibatch, weight)
        loss, metrics = found if isinstance(found, tuple) else (found, {})
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TrainingError(
                f"The objective returned {_described(loss)}. Expected a tensor with one element, "
                "the loss per observation: take its mean."
            )
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise TrainingError(
                "The objective returned a loss without a gradient. Expected a function of the "
                "module's parameters, by torch alone: no detach(), item(), numpy or no_grad()."
            )
        loss = loss.reshape(())
        values = {"loss": loss, **metrics}
        parts = {k: torch.as_tensor(v, device=loss.device).detach() for k, v in values.items()}
        return loss, parts, []


def _described(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"a {type(value).__name__}{shape}"
