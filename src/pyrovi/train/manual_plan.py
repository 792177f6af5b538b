"""The plan for ELBOs whose gradient is not that of one differentiable scalar."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO
from pyro.poutine.runtime import effectful
from torch import Tensor
from torch.optim import Optimizer

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import TrainingError
from pyrovi.module.base import PyroBaseModule
from pyrovi.train.metrics import record_traces
from pyrovi.train.plan import SVITrainingPlan, has_differentiable_loss


@effectful(type="param")
def _parameter() -> Tensor:
    return torch.zeros(())


class ManualSVITrainingPlan(SVITrainingPlan):
    """SVI by manual optimisation: for ``TraceGraph_ELBO``, ``RenyiELBO`` and their like.

    The ELBO computes its own gradients (``loss_and_grads``); clipping, accumulation and schedulers,
    which Lightning leaves to manual plans, are done here under the same rules. One device only.
    Metrics are those of the evidence lower bound, whatever bound is optimised.

    Parameters
    ----------
    module, kwargs
        As for :class:`SVITrainingPlan`.
    gradient_clip_val, gradient_clip_algorithm
        Clip the gradient of all parameters by ``"norm"`` or by ``"value"``.
    accumulate_grad_batches
        Minibatches per optimiser step.

    Raises
    ------
    TrainingError
        If the guide sums over the values of a discrete site.
    """

    def __init__(
        self,
        module: PyroBaseModule,
        *,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
        accumulate_grad_batches: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(module, **kwargs)
        if module.summed_by_guide:
            raise TrainingError(
                f"The guide sums over the values of {', '.join(module.summed_by_guide)}, which "
                f"{type(self.elbo).__name__} cannot do where it computes its own gradients. Use "
                "SVITrainingPlan with an ELBO that has a differentiable loss (Trace_ELBO, "
                "TraceMeanField_ELBO, TraceEnum_ELBO)."
            )
        self._clipping = (gradient_clip_val, gradient_clip_algorithm or "norm")
        self._accumulate = accumulate_grad_batches

    @property  # type: ignore[misc]
    def automatic_optimization(self) -> bool:
        """Always false."""
        return False

    def _measuring_elbo(self) -> ELBO:
        """Bounds of another kind are measured by the plain ELBO."""
        if has_differentiable_loss(self.elbo):
            return self.elbo
        return Trace_ELBO(
            num_particles=self.elbo.num_particles, max_plate_nesting=self.elbo.max_plate_nesting
        )

    @property
    def accumulated_batches(self) -> int:
        """Minibatches per optimiser step."""
        return self._accumulate

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
        with record_traces(self.elbo) as traces, self._annealed(self._next_weight()):
            elbo: Any = self.elbo
            loss = elbo.loss_and_grads(self.module.run_model, self._run_guide, minibatch)
        loss = torch.as_tensor(loss / minibatch.n_obs, device=self.device)
        self.means["train"].update(self._parts(self.elbo, traces, minibatch, loss), minibatch.n)
        self._n_obs = minibatch.n_obs
        last = (batch_idx + 1) == self.trainer.num_training_batches
        if (batch_idx + 1) % self._accumulate == 0 or last:
            self._step()
        return loss

    def _run_guide(self, minibatch: Minibatch) -> Any:
        """Run the guide; its trace holds a parameter, without which some ELBOs take no gradient.

        Those of torch modules are none to Pyro unless they are registered with it.
        """
        _parameter(name="_trained")
        return self.module.run_guide(minibatch)

    def _step(self) -> None:
        assert self.optimizer_plan is not None
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                parameter.grad /= self._n_obs * self._accumulate
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        clip, algorithm = self._clipping
        self.configure_gradient_clipping(self.optimizer_plan.optimizer, clip, algorithm)
        optimizer.step()
        optimizer.zero_grad()
        self._step_schedule("step")

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of all parameters together."""
        parameters = list(self.module.parameters())
        if gradient_clip_val is None:
            return
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def _check_bound(self, minibatch: Minibatch) -> None:
        if isinstance(self.elbo, RenyiELBO) and minibatch.n != minibatch.n_obs:
            raise TrainingError(
                "RenyiELBO scales the observation plate inside its logarithm, so with minibatches "
                f"it is no bound at all ({minibatch.n} of {minibatch.n_obs} observations here). "
                "Train on full batches (batch_size=None), or use Trace_ELBO."
            )
