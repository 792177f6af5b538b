"""Per-observation parameters: fitting the rows of some observations with all else frozen.

Observations that training has not seen have no fitted row. The declared policy is that their rows
maximise the ELBO under the fitted global parameters, which are frozen meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovi._rng import stream
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.base import PyroBaseModule, evaluation_mode
from pyrovi.module.rows import RowMinibatch

N_STEPS = 400
"""Optimiser steps for rows that start from their initial value."""

_LEARNING_RATE = 0.1
_AVERAGED = 1 / 2
"""Last fraction of the steps whose iterates are averaged: it takes out the noise of the draws."""


def fit_rows(
    module: PyroBaseModule,
    minibatch: Minibatch,
    rows: Mapping[str, Tensor] | None = None,
    *,
    n_steps: int = N_STEPS,
) -> RowMinibatch:
    """Fit the rows of the observations of a minibatch, everything else frozen.

    Parameters
    ----------
    module
        Module with :attr:`~PyroBaseModule.row_parameters`.
    minibatch
        The observations, on the module's device.
    rows
        Where to start, with one row per observation of the minibatch. ``None``: start at the
        module's tables, whose rows of these observations are overwritten with the result.
    n_steps
        Steps of Adam; its learning rate falls to 0, and the last iterates are averaged.

    Returns
    -------
    RowMinibatch
        The observations with their fitted rows.
    """
    tables = dict(module.named_parameters())
    start = _rows_of(module, tables, minibatch.indices) if rows is None else rows
    fitted = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    given = RowMinibatch(minibatch.tensors, minibatch.n_obs, fitted, minibatch.n)
    leaves = list(fitted.values())
    elbo: Any = module.default_elbo()
    optimizer = torch.optim.Adam(leaves, lr=_LEARNING_RATE)
    means = [torch.zeros_like(leaf) for leaf in leaves]
    n_averaged = max(1, round(_AVERAGED * n_steps))
    with evaluation_mode(module):
        for step in range(n_steps):
            progress = step / n_steps
            optimizer.param_groups[0]["lr"] = (
                _LEARNING_RATE * (1 + math.cos(math.pi * progress)) / 2
            )
            with torch.enable_grad():
                loss = elbo.differentiable_loss(module.run_model, module.run_guide, given)
                # per observation of the minibatch: what the rows' own gradients are of order 1 in
                gradients = torch.autograd.grad(loss * (minibatch.n / minibatch.n_obs), leaves)
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
            optimizer.step()
            if step >= n_steps - n_averaged:
                for mean, leaf in zip(means, leaves, strict=True):
                    mean.add_(leaf.detach(), alpha=1 / n_averaged)
    result = dict(zip(fitted, means, strict=True))
    if rows is None:
        with torch.no_grad():
            for name, value in result.items():
                tables[name].index_copy_(_axis(module, tables, name), minibatch.indices, value)
    return RowMinibatch(minibatch.tensors, minibatch.n_obs, result, minibatch.n)


def fitted_minibatches(module: PyroBaseModule, loader: Any) -> Iterator[RowMinibatch]:
    """Minibatches of observations that the module has no rows of, with rows fitted to them."""
    for position, minibatch in enumerate(loader):
        moved = minibatch.to(module.device)
        with stream("rows", position):
            fitted = fit_rows(module, moved, module.initial_rows(moved.n))
        yield fitted  # outside the stream: the caller draws from its own


def fit_held_out(module: PyroBaseModule, loader: Any) -> None:
    """Fit the rows of registered observations that training has not seen."""
    for position, minibatch in enumerate(loader):
        with stream("rows", position):
            fit_rows(module, minibatch.to(module.device))


def _rows_of(
    module: PyroBaseModule, tables: Mapping[str, Tensor], indices: Tensor
) -> dict[str, Tensor]:
    return {
        name: tables[name].index_select(_axis(module, tables, name), indices)
        for name in module.row_parameters
    }


def _axis(module: PyroBaseModule, tables: Mapping[str, Tensor], name: str) -> int:
    return tables[name].dim() + module.row_axes[name]
