"""SVI training plans: a module turned into a loss and its optimiser, for Lightning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import pyro
import torch
from pyro.infer import ELBO, RenyiELBO
from torch import Tensor
from torch.optim import Optimizer

from pyrovi._rng import derive_seed, stream
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import TrainingError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.handlers import AnnealKL
from pyrovi.train.kl import WARMUP_FRACTION, kl_weight
from pyrovi.train.metrics import EpochMean, elbo_parts, record_traces, uses_analytic_kl
from pyrovi.train.optim import OptimizerPlan, OptimizerSpec, build_optimizer
from pyrovi.train.rows import fit_rows


class SVITrainingPlan(pl.LightningModule):
    """Stochastic variational inference of a module by Lightning's automatic optimisation.

    The loss is the negative ELBO per observation (scale ``1 / N``). Train and validation metrics are
    per observation and un-annealed.

    Parameters
    ----------
    module
        The model/guide pair.
    loss_fn
        A Pyro ELBO; ``None`` takes the module's own.
    optim
        Torch optimiser class, or a ``pyro.optim`` object, which is read as a specification. ``None``
        is Adam.
    lr, eps, weight_decay
        Arguments of the torch optimiser; not used with a ``pyro.optim`` object.
    optim_kwargs
        Further arguments of the torch optimiser.
    scheduler_interval
        Whether the scheduler of a ``pyro.optim`` object steps every ``"epoch"`` or ``"step"``.
    n_epochs_kl_warmup, n_steps_kl_warmup
        Length of the KL warm-up. Both ``None``: half of the planned epochs. 0: none.
    max_kl_weight, min_kl_weight
        Last and first KL weight.
    reduce_lr_on_plateau, lr_factor, lr_patience, lr_threshold, lr_scheduler_metric, lr_min
        Reduce the learning rate when a metric has stopped improving.

    Raises
    ------
    TrainingError
        If the ELBO has no differentiable loss (use :class:`ManualSVITrainingPlan`).
    """

    def __init__(
        self,
        module: PyroBaseModule,
        *,
        loss_fn: ELBO | None = None,
        optim: OptimizerSpec | None = None,
        lr: float = 1e-3,
        eps: float = 0.01,
        weight_decay: float = 1e-6,
        optim_kwargs: Mapping[str, Any] | None = None,
        scheduler_interval: str = "epoch",
        n_epochs_kl_warmup: int | None = None,
        n_steps_kl_warmup: int | None = None,
        max_kl_weight: float = 1.0,
        min_kl_weight: float = 0.0,
        reduce_lr_on_plateau: bool = False,
        lr_factor: float = 0.6,
        lr_patience: int = 30,
        lr_threshold: float = 0.0,
        lr_scheduler_metric: str = "elbo_validation",
        lr_min: float = 0.0,
    ) -> None:
        super().__init__()
        self.module = module
        self.elbo = module.default_elbo() if loss_fn is None else loss_fn
        if not has_differentiable_loss(self.elbo) and self.automatic_optimization:
            raise TrainingError(
                f"{type(self.elbo).__name__} has no differentiable loss; train it with "
                "ManualSVITrainingPlan (model.train chooses it by itself)."
            )
        self.elbo.max_plate_nesting = module.ledger.max_plate_nesting
        self.elbo_module = self.elbo(module.run_model, module.run_guide)
        self.optim = optim
        self.optim_kwargs = {"lr": lr, "eps": eps, "weight_decay": weight_decay} | dict(
            optim_kwargs or {}
        )
        self.scheduler_interval = scheduler_interval
        self.n_epochs_kl_warmup = n_epochs_kl_warmup
        self.n_steps_kl_warmup = n_steps_kl_warmup
        self.max_kl_weight, self.min_kl_weight = max_kl_weight, min_kl_weight
        kl_weight(
            0, 0, None, None, max_kl_weight, min_kl_weight
        )  # check the two against each other
        self.plateau = (
            {"factor": lr_factor, "patience": lr_patience, "threshold": lr_threshold}
            | {"min_lr": lr_min, "threshold_mode": "abs"}
            if reduce_lr_on_plateau
            else None
        )
        self.lr_scheduler_metric = lr_scheduler_metric
        self.epoch_offset = 0
        self.step_offset = 0
        self._optimizer_plan: OptimizerPlan | None = None
        self._optimizer_state: Mapping[str, Any] | None = None
        self._epoch_means = {"train": EpochMean(), "validation": EpochMean()}

    # ------------------------------------------------------------------ progress

    @property
    def epochs_done(self) -> int:
        """Epochs done, over all calls of ``train``."""
        return self.epoch_offset + self.current_epoch

    @property
    def steps_done(self) -> int:
        """Optimiser steps done, over all calls of ``train``."""
        return self.step_offset + self.global_step

    @property
    def kl_weight(self) -> float:
        """Present weight of the KL terms."""
        return kl_weight(
            self.epochs_done,
            self.steps_done,
            self.n_epochs_kl_warmup,
            self.n_steps_kl_warmup,
            self.max_kl_weight,
            self.min_kl_weight,
        )

    def plan_warmup(self, max_epochs: int) -> None:
        """Fix the length of the KL warm-up where it was left open."""
        if self.n_epochs_kl_warmup is None and self.n_steps_kl_warmup is None:
            self.n_epochs_kl_warmup = max(1, math.floor(WARMUP_FRACTION * max_epochs))

    # ------------------------------------------------------------------ the objective

    def objective(self, minibatch: Minibatch, weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative (annealed) ELBO per observation, and its un-annealed parts."""
        self._check_bound(minibatch)
        with record_traces(self.elbo) as traces, AnnealKL(weight):
            loss = self.elbo_module(minibatch) / minibatch.n_obs
        return loss, self._parts(traces, minibatch)

    def _parts(self, traces: list[Any], minibatch: Minibatch) -> dict[str, Tensor]:
        analytic = uses_analytic_kl(self.elbo)
        ledger = self.module.ledger
        return elbo_parts(traces, ledger, minibatch.n_obs, analytic_kl=analytic)

    def _check_bound(self, minibatch: Minibatch) -> None:
        if isinstance(self.elbo, RenyiELBO) and minibatch.n != minibatch.n_obs:
            raise TrainingError(
                "RenyiELBO scales the observation plate inside its logarithm, so with minibatches it "
                f"is not a bound at all ({minibatch.n} of {minibatch.n_obs} observations here). "
                "Train on full batches (batch_size=None), or use Trace_ELBO."
            )

    # ------------------------------------------------------------------ Lightning hooks

    def setup(self, stage: str) -> None:
        """Check what cannot be trained on several devices."""
        if self.trainer.world_size > 1 and self.module.row_parameters:
            raise TrainingError(
                "Per-observation parameters "
                f"({', '.join(self.module.row_parameters)}) are not data-parallel: averaging "
                "gradients over devices would shrink them. Use one device, or an amortised guide."
            )

    def on_fit_start(self) -> None:
        """Take up the optimiser's state of the previous call of ``train``."""
        if self._optimizer_state is not None:
            state, self._optimizer_state = self._optimizer_state, None
            self.optimizers(use_pl_optimizer=False).load_state_dict(state["optimizer"])
            for config, saved in zip(
                self.trainer.lr_scheduler_configs, state["lr_schedulers"], strict=True
            ):
                config.scheduler.load_state_dict(saved)

    def on_train_epoch_start(self) -> None:
        """Seed the epoch: noise is a pure function of (seed, epoch, rank), so runs can resume."""
        torch.manual_seed(derive_seed("train", self.epochs_done, self.global_rank))
        pyro.enable_validation(self.epochs_done == 0)
        self._set_loader_epoch()

    def _set_loader_epoch(self) -> None:
        loader = self.trainer.train_dataloader
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(self.epochs_done)

    def training_step(self, minibatch: Minibatch, batch_idx: int) -> Tensor:
        """One minibatch of SVI."""
        loss, parts = self.objective(minibatch, self.kl_weight)
        self._epoch_means["train"].update(parts, minibatch.n)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Apply the per-parameter clipping of a Pyro optimiser."""
        if self._optimizer_plan is not None:
            self._optimizer_plan.clip()

    def on_train_epoch_end(self) -> None:
        """Log the epoch's metrics."""
        self._log_epoch("train")
        self.log("kl_weight", self.kl_weight)

    def on_validation_epoch_start(self) -> None:
        """Validate with common random numbers, apart from the noise of training."""
        self._validation_stream = stream("validation", self.global_rank)
        self._validation_stream.__enter__()

    def validation_step(self, minibatch: Minibatch, batch_idx: int) -> None:
        """The un-annealed objective on held-out observations."""
        if self.module.row_parameters:
            fit_rows(self.module, self.elbo, minibatch)
        _, parts = self.objective(minibatch, 1.0)
        self._epoch_means["validation"].update(parts, minibatch.n)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the held-out observations."""
        self._validation_stream.__exit__(None, None, None)
        self._log_epoch("validation")

    def _log_epoch(self, split: str) -> None:
        for name, value in self._epoch_means[split].compute().items():
            self.log(f"{name}_{split}", value, prog_bar=name == "elbo")

    # ------------------------------------------------------------------ optimisers and checkpoints

    def configure_optimizers(self) -> Any:
        """One torch optimiser with parameter groups, and its scheduler."""
        self._optimizer_plan = plan = build_optimizer(
            self.optim, self.module.named_parameters(), self.optim_kwargs
        )
        if plan.make_scheduler is not None:
            scheduler = plan.make_scheduler(plan.optimizer)
            config = {"scheduler": scheduler, "interval": self.scheduler_interval}
        elif self.plateau is not None:
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(plan.optimizer, **self.plateau)
            config = {"scheduler": scheduler, "interval": "epoch"}
        else:
            return plan.optimizer
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            config |= {"monitor": self.lr_scheduler_metric, "reduce_on_plateau": True}
        return {"optimizer": plan.optimizer, "lr_scheduler": config}

    def training_state(self) -> dict[str, Any]:
        """What the next call of ``train`` needs to go on as if there had been no stop."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        return {
            "epochs": self.epochs_done,
            "steps": self.steps_done,
            "optimizer": optimizer.state_dict(),
            "lr_schedulers": [c.scheduler.state_dict() for c in self.trainer.lr_scheduler_configs],
            "n_epochs_kl_warmup": self.n_epochs_kl_warmup,
            "n_steps_kl_warmup": self.n_steps_kl_warmup,
        }

    def resume_from(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`training_state`."""
        self.epoch_offset, self.step_offset = state["epochs"], state["steps"]
        self.n_epochs_kl_warmup = state["n_epochs_kl_warmup"]
        self.n_steps_kl_warmup = state["n_steps_kl_warmup"]
        self._optimizer_state = state if "optimizer" in state else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state that Lightning does not know: warm-up, offsets, random streams."""
        checkpoint["pyrovi"] = {
            "epoch_offset": self.epoch_offset,
            "step_offset": self.step_offset,
            "n_epochs_kl_warmup": self.n_epochs_kl_warmup,
            "n_steps_kl_warmup": self.n_steps_kl_warmup,
            "rng_state": torch.get_rng_state(),
            "root_seed": derive_seed("train"),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the state back; see :meth:`on_save_checkpoint`."""
        state = checkpoint["pyrovi"]
        if state["root_seed"] != derive_seed("train"):
            raise TrainingError(
                "The checkpoint was made under another seed; set pyrovi.settings.seed to the one it "
                "was made with to go on with the same minibatches and noise."
            )
        for name in ("epoch_offset", "step_offset", "n_epochs_kl_warmup", "n_steps_kl_warmup"):
            setattr(self, name, state[name])


def has_differentiable_loss(elbo: ELBO) -> bool:
    """Whether an ELBO can be optimised by automatic differentiation of one scalar."""
    return hasattr(type(elbo), "differentiable_loss")
