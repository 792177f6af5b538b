"""Iterate averaging: the mean of the last parameters in the place of the very last ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from pyrovi.errors import TrainingError
from pyrovi.train.plan import SVITrainingPlan


class IterateAveraging(Callback):
    r"""Average the parameters over the last steps of training.

    Stochastic gradients keep the parameters moving around the optimum, by a distance that grows
    with the learning rate. Their mean is nearer to it. After step :math:`t` it is

    .. math:: \bar\theta_t = \Bigl(1 - \frac{p + 1}{t + p}\Bigr) \bar\theta_{t-1}
              + \frac{p + 1}{t + p}\, \theta_t,

    which weighs step :math:`s` by about :math:`s^p`: the steps on the way to the optimum are
    forgotten, whenever training ends. Validation (and what it decides: early stopping, the best
    epoch) sees the averaged parameters, and the module has them when training ends. Steps of the KL
    warm-up are not averaged.

    Parameters
    ----------
    power
        The power :math:`p`; about the last :math:`t / (p + 1)` of :math:`t` steps count.

    Notes
    -----
    Parameters are averaged on the scale they are optimised on. Buffers (running means of batch
    norm) are those of the last step. Per-observation parameters are averaged over the steps of all
    observations.

    References
    ----------
    Polyak & Juditsky (1992), *Acceleration of stochastic approximation by averaging*. Shamir &
    Zhang (2013), *Stochastic gradient descent for non-smooth optimization*, ICML (the weights).
    Dhaka et al. (2020), *Robust, accurate stochastic optimization for variational inference*,
    NeurIPS (averaging in SVI).
    """

    def __init__(self, power: float = 8.0) -> None:
        super().__init__()
        if not power >= 0:
            raise TrainingError(f"power of the iterate average must be 0 or more, got {power}.")
        self.power = power
        self._steps = 0
        self._seen = 0
        self._mean: dict[str, torch.Tensor] = {}
        self._last: dict[str, torch.Tensor] = {}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        plan: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take in the parameters after a step of the optimiser."""
        assert isinstance(plan, SVITrainingPlan)
        if plan.is_warming_up or trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        self._steps += 1
        weight = min(1.0, (self.power + 1) / (self._steps + self.power))
        with torch.no_grad():
            parameters = _parameters(plan)
            if not self._mean:
                self._mean = {name: value.clone() for name, value in parameters.items()}
            else:
                means = [self._mean[name] for name in parameters]
                torch._foreach_lerp_(means, list(parameters.values()), weight)

    def on_validation_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Validate the averaged parameters."""
        if self._mean and not trainer.sanity_checking:
            self._last = {n: value.clone() for n, value in _parameters(plan).items()}
            _assign(plan, self._mean)

    def on_validation_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Go on from the last parameters."""
        if self._last:
            _assign(plan, self._last)
            self._last = {}

    def on_train_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Leave the averaged parameters in the module."""
        if self._mean:
            _assign(plan, self._mean)

    def state_dict(self) -> dict[str, Any]:
        """State for checkpoints."""
        return {"steps": self._steps, "seen": self._seen, "mean": self._mean}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """State from a checkpoint."""
        self._steps, self._seen = state_dict["steps"], state_dict["seen"]
        self._mean = dict(state_dict["mean"])


def _parameters(plan: pl.LightningModule) -> dict[str, torch.Tensor]:
    """What is trained: frozen parameters do not move."""
    assert isinstance(plan, SVITrainingPlan)
    return {n: p.detach() for n, p in plan.module.named_parameters() if p.requires_grad}


def _assign(plan: pl.LightningModule, values: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in _parameters(plan).items():
            parameter.copy_(values[name])
