"""SVI training plans: a module turned into a loss and its optimiser, for Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import lightning.pytorch as pl
import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from pyrovi._rng import derive_seed
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import TrainingError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.guides.distributions import mirrored
from pyrovi.module.handlers import AnnealKL
from pyrovi.module.ledger import Role
from pyrovi.train.converge import has_mirrored_guide
from pyrovi.train.loggers import HistoryLogger
from pyrovi.train.metrics import (
    EpochMean,
    TracePair,
    elbo_parts,
    enumerated_parts,
    log_likelihood,
    record_traces,
    reparametrised,
    run_pair,
    surrogate_loss,
)
from pyrovi.train.objectives import check_objective, choose_warmup
from pyrovi.train.optim import OptimizerPlan, OptimizerSpec, build_optimizer
from pyrovi.train.resume import check_checkpoint, checkpoint_state, restore
from pyrovi.train.rows import fit_rows
from pyrovi.train.schedulers import Interval, Schedule, decaying_scheduler, plateau_scheduler

VALIDATED_STEPS = 100
"""Minibatches of the first epoch whose distributions, shapes and supports Pyro checks."""


class SVITrainingPlan(pl.LightningModule):
    """Stochastic variational inference of a module by Lightning's automatic optimisation.

    The loss is the negative ELBO per observation (scale ``1 / N``). Train and validation metrics
    are per observation and un-annealed.

    Parameters
    ----------
    module
        The model/guide pair.
    loss_fn
        A Pyro ELBO; ``None`` takes the module's own.
    optim
        Torch optimiser class, or a ``pyro.optim`` object, which is read as a specification: it then
        sees the gradient of the ELBO of all observations, as in Pyro. ``None`` is Adam.
    lr, eps, weight_decay
        Arguments of the torch optimiser; not used with a ``pyro.optim`` object. ``lr=None`` is the
        module's own ``default_lr``, 1e-3 unless it says otherwise. ``eps`` and
        ``weight_decay`` are 0.01 and 1e-6, as in scVI, where all latents are amortised. Otherwise
        they are 1e-8 and 0: gradients of the scale of a global posterior are of order ``1 / N``,
        and the decay of its mean would act as a second prior.
    optim_kwargs
        Further arguments of the torch optimiser.
    scheduler_interval
        Whether the scheduler of a ``pyro.optim`` object steps every ``"epoch"`` or ``"step"``.
    n_epochs_kl_warmup, n_steps_kl_warmup
        Length of the KL warm-up. Both ``None``: half of the planned epochs. 0: none. Models with
        enumerated sites and ``RenyiELBO`` have none: their KL terms cannot be weighted.
    max_kl_weight, min_kl_weight
        Last and first KL weight.
    lr_decay
        Learning rate of the last planned step, relative to that of the first: it falls
        geometrically, step by step, and stays there if training goes on. 1: it does not fall.
    antithetic
        Reflect the noise of every second step: what consecutive steps do to the locations of a
        normal guide then cancels but for the gradient. For guides by name with locations and scales
        alone.
    reduce_lr_on_plateau, lr_factor, lr_patience, lr_threshold, lr_scheduler_metric, lr_min
        Reduce the learning rate when a metric has stopped improving; ``None`` is
        ``elbo_validation`` (:attr:`watched`).

    Raises
    ------
    TrainingError
        If the ELBO has no differentiable loss (use :class:`ManualSVITrainingPlan`) or does not fit
        the guide, or options contradict one another.
    """

    module: PyroBaseModule

    takes_pairs: ClassVar[bool] = False
    """Whether training steps take pairs of minibatches: of all observations, of labelled ones."""

    watched: ClassVar[str] = "elbo"
    """Metric, without ``_train`` or ``_validation``, that stopping and schedules watch unless told
    otherwise."""

    def __init__(
        self,
        module: PyroBaseModule,
        *,
        loss_fn: ELBO | None = None,
        optim: OptimizerSpec | None = None,
        lr: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        optim_kwargs: Mapping[str, Any] | None = None,
        scheduler_interval: Interval = "epoch",
        n_epochs_kl_warmup: int | None = None,
        n_steps_kl_warmup: int | None = None,
        max_kl_weight: float = 1.0,
        min_kl_weight: float = 0.0,
        lr_decay: float = 1.0,
        antithetic: bool = False,
        reduce_lr_on_plateau: bool = False,
        lr_factor: float = 0.6,
        lr_patience: int = 30,
        lr_threshold: float = 0.0,
        lr_scheduler_metric: str | None = None,
        lr_min: float = 0.0,
    ) -> None:
        super().__init__()
        self.module = module
        if not isinstance(loss_fn, ELBO | None):
            raise TrainingError(
                f"loss_fn is {loss_fn!r}. Expected an ELBO of pyro.infer, such as Trace_ELBO(); "
                "for another objective use LowLevelTrainingPlan."
            )
        self.elbo = module.default_elbo() if loss_fn is None else loss_fn
        in_parallel = self.elbo.vectorize_particles and self.elbo.num_particles > 1
        self.elbo.max_plate_nesting = module.ledger.max_plate_nesting + in_parallel
        check_objective(self.elbo, module)
        self._measure = self._measuring_elbo()
        self.history = HistoryLogger()
        self.optim, self.scheduler_interval = optim, scheduler_interval
        amortised = not (module.ledger.names(Role.GLOBAL) or module.row_parameters)
        self._optim_defaults = {
            "lr": module.default_lr if lr is None else lr,
            "eps": 0.01 if amortised else 1e-8,
            "weight_decay": 1e-6 if amortised else 0.0,
        }
        given = {"eps": eps, "weight_decay": weight_decay}
        self._optim_options = {k: v for k, v in given.items() if v is not None}
        self._optim_options |= dict(optim_kwargs or {})
        self.warmup = choose_warmup(
            self.elbo, module, n_epochs_kl_warmup, n_steps_kl_warmup, max_kl_weight, min_kl_weight
        )
        self._enumerates = bool(module.ledger.names(Role.ENUMERATED))
        if not 0 < lr_decay <= 1:
            raise TrainingError(
                f"lr_decay is the last learning rate relative to the first, in (0, 1], got "
                f"{lr_decay}."
            )
        if lr_decay < 1 and (reduce_lr_on_plateau or isinstance(optim, PyroLRScheduler)):
            raise TrainingError(
                "lr_decay and another schedule (reduce_lr_on_plateau, or the one of the "
                "pyro.optim object) would both set the learning rate; choose one."
            )
        self.lr_decay = lr_decay
        if antithetic and not has_mirrored_guide(module):
            raise TrainingError(
                "antithetic=True reflects the noise of guides by name that have locations and "
                "scales alone ('normal', 'mvn', 'lowrank'). The guide of this module is none; "
                "leave it out."
            )
        self.antithetic, self._mirrors = antithetic, False
        self._make_plateau: Callable[[Optimizer], Any] | None = None
        if reduce_lr_on_plateau:
            self._make_plateau = plateau_scheduler(
                factor=lr_factor, patience=lr_patience, threshold=lr_threshold, min_lr=lr_min
            )
        self.lr_scheduler_metric = lr_scheduler_metric or f"{self.watched}_validation"
        self.kl_weight = self.warmup.max_weight  # of the latest training step
        self.means = {"train": EpochMean(), "validation": EpochMean()}
        self.optimizer_plan: OptimizerPlan | None = None
        self.schedule: Schedule | None = None
        self.pending_state: Mapping[str, Any] | None = None
        self._validated_epoch = -1

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # Lightning notes it forty times a step
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _measuring_elbo(self) -> ELBO:
        """The ELBO whose value metrics are taken of."""
        if not has_differentiable_loss(self.elbo):
            raise TrainingError(
                f"{type(self.elbo).__name__} has no differentiable loss; train it with "
                "ManualSVITrainingPlan (model.train chooses it by itself)."
            )
        return self.elbo

    @property
    def is_warming_up(self) -> bool:
        """Whether the latest training step had less than the full KL weight."""
        return self.kl_weight < self.warmup.max_weight

    @property
    def accumulated_batches(self) -> int:
        """Minibatches per optimiser step."""
        return self.trainer.accumulate_grad_batches

    # ------------------------------------------------------------------ the objective

    def objective(self, minibatch: Minibatch, weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative (annealed) ELBO per observation, and its un-annealed parts."""
        return self.evaluate(minibatch, weight)[:2]

    def evaluate(
        self, minibatch: Minibatch, weight: float
    ) -> tuple[Tensor, dict[str, Tensor], list[TracePair]]:
        """The objective, its parts, and the (model, guide) traces that they are computed from."""
        elbo: Any = self._measure
        module, n_obs = self.module, minibatch.n_obs
        # Sums over values of the guide separate as well; Pyro would weigh them by annealed terms.
        sums = isinstance(elbo, TraceEnum_ELBO) and module.summed_by_guide and not self._enumerates
        if sums or type(elbo) in (Trace_ELBO, TraceMeanField_ELBO):
            return self._sum_of_parts(elbo, minibatch, weight)
        with record_traces(elbo) as traces, self._annealed(weight):
            if isinstance(elbo, TraceEnum_ELBO) and not torch.is_grad_enabled():
                # whose differentiable loss refuses to be computed without gradients
                value = elbo.loss(module.run_model, module.run_guide, minibatch)
                loss = torch.as_tensor(value, device=module.device)
            else:
                loss = elbo.differentiable_loss(module.run_model, module.run_guide, minibatch)
        loss = loss / n_obs
        return loss, self._parts(elbo, traces, minibatch, loss), traces

    def _sum_of_parts(
        self, elbo: Any, minibatch: Minibatch, weight: float
    ) -> tuple[Tensor, dict[str, Tensor], list[TracePair]]:
        """The same where terms separate: none is computed twice, and no number leaves the device.

        Draws that carry no gradient take Pyro's surrogate of the loss.
        """
        module, n_obs = self.module, minibatch.n_obs
        with self._annealed(weight):
            traces = run_pair(elbo, module, minibatch)
        parts = elbo_parts(traces, module.ledger, n_obs, elbo)
        if reparametrised(traces):
            kl = parts["kl_local"] + parts["kl_global"]
            loss = parts["reconstruction_loss"] + weight * kl
            if weight != 1 and module.warmed_up:
                loss = loss + (1 - weight) * log_likelihood(traces, module.warmed_up, n_obs, elbo)
        else:
            loss = surrogate_loss(traces, elbo) / n_obs
        return loss, {name: part.detach() for name, part in parts.items()}, traces

    def _annealed(self, weight: float) -> AbstractContextManager[Any]:
        """Weight the KL terms of the model and guide that run inside."""
        summed_out = self.module.ledger.names(Role.ENUMERATED)
        if weight == 1:
            return nullcontext()
        return AnnealKL(weight, summed_out, self.module.warmed_up)

    def _parts(
        self, elbo: ELBO, traces: list[Any], minibatch: Minibatch, loss: Tensor
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            if self._enumerates:
                return enumerated_parts(traces, self.module.ledger, minibatch.n_obs, elbo, loss)
            return elbo_parts(traces, self.module.ledger, minibatch.n_obs, elbo)

    def _next_weight(self) -> float:
        self.kl_weight = self.warmup.weight(self.current_epoch, self.global_step)
        return self.kl_weight

    # ------------------------------------------------------------------ Lightning hooks

    def setup(self, stage: str) -> None:
        """Check what cannot be trained on several devices."""
        if self.trainer.world_size > 1 and self.module.row_parameters:
            raise TrainingError(
                "Per-observation parameters "
                f"({', '.join(self.module.row_parameters)}) are not data-parallel: averaging "
                "gradients over devices would shrink them. Use devices=1, or an amortised guide."
            )

    def on_train_epoch_start(self) -> None:
        """Note the learning rate of the epoch."""
        assert self.optimizer_plan is not None
        self._record(self.optimizer_plan.learning_rates())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step: its noise is a pure function of (seed, epoch, step, rank)."""
        if batch_idx == VALIDATED_STEPS:
            pyro.enable_validation(False)  # mistakes show in the first steps
        if self.antithetic:
            step = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
            self._mirrors = step % 2 == 1
            self._seed("train", "pair", step // 2, self.global_rank)
        else:
            self._seed("train", self.current_epoch, batch_idx, self.global_rank)

    def _seed(self, *purpose: str | int) -> None:
        """Seed the generators in use; ``torch.manual_seed`` would cost as much as a small step."""
        seed = derive_seed(*purpose)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def training_step(self, minibatch: Minibatch, batch_idx: int) -> Tensor:
        """One minibatch of SVI."""
        with mirrored(self._mirrors):
            loss, parts, traces = self.evaluate(minibatch, self._next_weight())
            loss, parts = self.regularised(loss, parts, traces, minibatch)
        self.means["train"].update(parts, minibatch.n)
        self._n_obs = minibatch.n_obs
        return loss

    def regularised(
        self,
        loss: Tensor,
        parts: dict[str, Tensor],
        traces: list[TracePair],
        minibatch: Minibatch,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a training step; plans that add terms to the objective do it here.

        Parameters
        ----------
        loss, parts, traces
            As :meth:`evaluate` gives them.
        minibatch
            The observations.
        """
        return loss, parts

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer was told, then hand the optimiser the gradients it is made for."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        assert self.optimizer_plan is not None
        self.optimizer_plan.prepare_gradients(self._n_obs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Forget the gradients, without the profiling of torch's method."""
        if type(optimizer).zero_grad is not Optimizer.zero_grad:
            optimizer.zero_grad()
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimiser, and the scheduler with it."""
        super().optimizer_step(*args, **kwargs)
        self._step_schedule("step")

    def on_train_epoch_end(self) -> None:
        """Record the epoch's metrics and step the scheduler."""
        pyro.enable_validation(False)  # an epoch may have fewer than VALIDATED_STEPS
        if self.means["train"].is_empty:  # resumed after the end of the epoch: it is closed already
            return
        self._record({f"{k}_train": v for k, v in self.means["train"].compute().items()})
        self._record({"kl_weight": self.kl_weight})
        self._step_schedule("epoch")

    def on_train_end(self) -> None:
        """Make the buffers (running means of batch norm) of all ranks those of the first."""
        if self.trainer.world_size > 1:
            for buffer in self.module.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_validation_batch_start(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Validate with common random numbers: epochs differ by their parameters only."""
        self._seed("validation", batch_idx, self.global_rank)

    def validation_step(self, minibatch: Minibatch, batch_idx: int) -> None:
        """The un-annealed objective on held-out observations."""
        if self.module.row_parameters:
            minibatch = fit_rows(self.module, minibatch, n_steps=50)
        _, parts = self.objective(minibatch, 1.0)
        self.means["validation"].update(parts, minibatch.n)

    def on_validation_epoch_end(self) -> None:
        """Record the metrics of the held-out observations."""
        means = self.means["validation"].compute()
        if not self.trainer.sanity_checking:
            self._record({f"{k}_validation": v for k, v in means.items()})
            self._validated_epoch = self.current_epoch

    def _record(self, metrics: Mapping[str, float]) -> None:
        self.history.record(self.current_epoch, metrics)
        if len(self.trainer.loggers) > 1:  # other loggers than the history
            self.log_dict(dict(metrics), sync_dist=self.trainer.world_size > 1, on_epoch=True)
        else:  # the means are those of all ranks; Lightning's bookkeeping costs more than a step
            values = {name: torch.tensor(value) for name, value in metrics.items()}
            self.trainer.callback_metrics.update(values)

    def _step_schedule(self, interval: Interval) -> None:
        if self.schedule is not None:
            self.schedule.step(
                interval,
                self.trainer.callback_metrics,
                validated=self._validated_epoch == self.current_epoch,
            )

    # ------------------------------------------------------------------ optimisers and checkpoints

    def trained_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Names and parameters for the optimiser: those of the module, and then the plan's own."""
        yield from self.module.named_parameters()
        own = (item for item in self.named_parameters() if not item[0].startswith("module."))
        yield from own

    def configure_optimizers(self) -> Optimizer:
        """One torch optimiser with parameter groups; the plan keeps the scheduler itself."""
        self.optimizer_plan = plan = build_optimizer(
            self.optim, self.trained_parameters(), self._optim_defaults, self._optim_options
        )
        make = plan.make_scheduler or self._make_plateau
        interval = self.scheduler_interval
        if self.lr_decay < 1:
            make = decaying_scheduler(self.lr_decay, int(self.trainer.estimated_stepping_batches))
            interval = "step"
        if make is not None:
            self.schedule = Schedule(make(plan.optimizer), interval, self.lr_scheduler_metric)
        if self.pending_state is not None:
            restore(self, self.pending_state)
            self.pending_state = None
        return plan.optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state that Lightning does not know."""
        checkpoint_state(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is one of this training; it is taken up by the optimisers."""
        self.pending_state = check_checkpoint(self, checkpoint)


def has_differentiable_loss(elbo: ELBO) -> bool:
    """Whether an ELBO can be optimised by automatic differentiation of one scalar."""
    return hasattr(type(elbo), "differentiable_loss")
