"""The plan for ELBOs whose gradient is not that of one differentiable scalar."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import TrainingError
from pyrovi.module.handlers import AnnealKL
from pyrovi.train.metrics import record_traces
from pyrovi.train.plan import SVITrainingPlan


class ManualSVITrainingPlan(SVITrainingPlan):
    """SVI by manual optimisation: for ``TraceGraph_ELBO``, ``RenyiELBO`` and their like.

    The ELBO computes its own gradients (``loss_and_grads``); clipping, accumulation and schedulers,
    which Lightning leaves to manual plans, are done here under the same rules. One device only.

    Parameters
    ----------
    module, kwargs
        As for :class:`SVITrainingPlan`.
    gradient_clip_val, gradient_clip_algorithm
        Clip the gradient of all parameters by ``"norm"`` or by ``"value"``.
    accumulate_grad_batches
        Minibatches per optimiser step.
    """

    def __init__(
        self,
        module: Any,
        *,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
        accumulate_grad_batches: int = 1,
        **kwargs: Any,
    ) -> None:
        # Lightning's setter needs the base class to be initialised first, whose initialiser asks.
        self._manual_options = (gradient_clip_val, gradient_clip_algorithm, accumulate_grad_batches)
        super().__init__(module, **kwargs)

    @property
    def automatic_optimization(self) -> bool:
        """Always false."""
        return False

    def setup(self, stage: str) -> None:
        """Refuse several devices: the gradients bypass Lightning's reduction."""
        super().setup(stage)
        if self.trainer.world_size > 1:
            raise TrainingError(
                f"{type(self.elbo).__name__} computes its own gradients, which cannot be averaged "
                "over devices. Use devices=1, or an ELBO with a differentiable loss (Trace_ELBO, "
                "TraceMeanField_ELBO, TraceEnum_ELBO)."
            )

    def training_step(self, minibatch: Minibatch, batch_idx: int) -> Tensor:
        """One minibatch; steps the optimiser when enough gradients are accumulated."""
        self._check_bound(minibatch)
        clip, algorithm, accumulate = self._manual_options
        with record_traces(self.elbo) as traces, AnnealKL(self.kl_weight):
            loss = self.elbo.loss_and_grads(self.module.run_model, self.module.run_guide, minibatch)
        self._epoch_means["train"].update(self._parts(traces, minibatch), minibatch.n)
        last = (batch_idx + 1) == self.trainer.num_training_batches
        if (batch_idx + 1) % accumulate == 0 or last:
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    parameter.grad /= minibatch.n_obs * accumulate
            optimizer = self.optimizers()
            if clip is not None:
                self.clip_gradients(optimizer, clip, algorithm or "norm")
            optimizer.step()
            optimizer.zero_grad()
            self._step_schedulers("step")
        return torch.as_tensor(loss / minibatch.n_obs, device=self.device)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's metrics and step the schedulers."""
        super().on_train_epoch_end()
        self._step_schedulers("epoch")

    def _step_schedulers(self, interval: str) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if config.interval != interval:
                continue
            if config.reduce_on_plateau:
                metric = self.trainer.callback_metrics.get(config.monitor)
                if metric is not None:
                    config.scheduler.step(metric)
            else:
                config.scheduler.step()
