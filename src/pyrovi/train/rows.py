"""Per-observation parameters: fitting the rows of some observations with all else frozen."""

from __future__ import annotations

import torch
from pyro.infer import ELBO

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.base import PyroBaseModule


def fit_rows(
    module: PyroBaseModule,
    elbo: ELBO,
    minibatch: Minibatch,
    *,
    n_steps: int = 100,
    lr: float = 0.05,
) -> None:
    """Fit the local parameters of a minibatch of held-out observations, globals frozen.

    This is the declared policy for observations that training has not seen, when the guide has one
    row of parameters per observation instead of an encoder: their rows maximise the ELBO under the
    fitted global parameters. The rows of other observations get no gradient and do not move.

    Parameters
    ----------
    module
        Module with :attr:`~PyroBaseModule.row_parameters`.
    elbo
        Objective.
    minibatch
        The observations.
    n_steps, lr
        Steps and learning rate of Adam.
    """
    parameters = dict(module.named_parameters())
    rows = [parameters[name] for name in module.row_parameters]
    optimizer = torch.optim.Adam(rows, lr=lr)
    for _ in range(n_steps):
        with torch.enable_grad():
            loss = elbo.differentiable_loss(module.run_model, module.run_guide, minibatch)
            gradients = torch.autograd.grad(loss / minibatch.n_obs * minibatch.n, rows)
        for row, gradient in zip(rows, gradients, strict=True):
            row.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
