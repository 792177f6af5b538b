"""Adam whose steps are measured in standard deviations of the guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

LOC, LOG_SCALE = "loc", "log_scale"


class ScaledAdam(Optimizer):
    r"""Adam on :math:`(m / s, \log s)` of normal guides instead of :math:`(m, s)`.

    A parameter named ``*loc`` that has a ``*log_scale`` of the same shape beside it, as in all
    guides of :mod:`pyrovi.module.guides`, moves by ``lr`` times the present :math:`s`; all others
    move as in Adam. One learning rate then fits coefficients of any unit, where Adam needs steps
    smaller than the smallest posterior standard deviation to reach values of the size of the
    largest one.

    Parameters
    ----------
    params
        Pairs of a name and a parameter.
    lr
        Step, in standard deviations of the guide for locations.
    betas
        Decay of the means of the gradient and of its square. The second one is lower than in Adam:
        the first gradients of a guide far from the posterior are larger by orders of magnitude than
        what follows, and would hold the steps back for as long as they are remembered.
    eps
        Smallest root mean square gradient.

    References
    ----------
    Kingma & Ba (2015), *Adam: a method for stochastic optimization*, ICLR. Scaling by the guide's
    variance is the natural gradient of a mean (Khan & Rue 2023, *The Bayesian learning rule*, JMLR
    24), of which this takes the square root, as Adam does of the gradient's variance.
    """

    takes_names = True
    """Whether it is made from pairs of a name and a parameter."""

    def __init__(
        self,
        params: Iterable[tuple[str, nn.Parameter]],
        lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-12,
    ) -> None:
        named = dict(params)
        self._scale_of: dict[nn.Parameter, nn.Parameter] = {}
        for name, parameter in named.items():
            scale = named.get(name.removesuffix(LOC) + LOG_SCALE)
            if name.endswith(LOC) and scale is not None and scale.shape == parameter.shape:
                self._scale_of[parameter] = scale
        super().__init__(list(named.values()), {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # the scales at the beginning of the step, whichever parameter comes first
        units = {p: self._scale_of[p].exp() for p in self._scale_of}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, units.get(parameter), group)
        return loss

    def _step(self, parameter: nn.Parameter, unit: Tensor | None, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad if unit is None else parameter.grad * unit
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta, beta_square = group["betas"]
        state["mean"].lerp_(gradient, 1 - beta)
        state["square"].mul_(beta_square).addcmul_(gradient, gradient, value=1 - beta_square)
        norm = state["square"].sqrt() / math.sqrt(1 - beta_square ** state["step"])
        change = state["mean"] / (norm + group["eps"])
        if unit is not None:
            change = change * unit
        parameter.sub_(change, alpha=group["lr"] / (1 - beta ** state["step"]))
