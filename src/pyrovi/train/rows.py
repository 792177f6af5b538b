"""Per-observation parameters: fitting the rows of some observations with all else frozen.

Observations that training has not seen have no fitted row. The declared policy is that their rows
maximise the ELBO under the fitted global parameters, which are frozen meanwhile.

Adam moves a parameter by at most its step size per step, so how far a row can get is bounded by the
steps. The fit therefore comes in two parts. In the search, rounds of steps are taken until no
gradient points the same way throughout a round; where one does, the step size is tripled. Then the
step sizes fall to 0 while iterates are averaged, repeated with other step sizes where the
gradient's mean is still far from 0 against its noise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovi._rng import stream
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import InferenceError
from pyrovi.module.base import PyroBaseModule, evaluation_mode
from pyrovi.module.rows import RowMinibatch

N_STEPS = 500
"""Optimiser steps of the second part, whose iterates are averaged."""

MAX_ROUNDS = 40
"""Most rounds of the search."""

_ROUND = 100
_LEARNING_RATE = 0.1
_GROWTH = 3.0
_REPEATS = (0.1, 3.0, 0.01, 10.0, 0.001)
"""Factors of the step sizes, one after the other, for rows that the averages still leave drifting:
posteriors may be much narrower or wider than a step."""

_AVERAGED = 2 / 3
"""Last fraction of the steps whose iterates are averaged: it takes out the noise of the draws."""

_DRIFT = 5.0
"""Standard errors from 0 at which a mean gradient is no noise: 1 in a million by chance."""

_NEGLIGIBLE = 1e-3
"""Nats that a round of steps could gain, below which a gradient without noise counts as 0."""


def fit_rows(
    module: PyroBaseModule,
    minibatch: Minibatch,
    rows: Mapping[str, Tensor] | None = None,
    *,
    n_steps: int | None = None,
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
        Take just so many steps of Adam, with a learning rate that falls to 0. ``None``: go on until
        the rows have converged.

    Returns
    -------
    RowMinibatch
        The observations with their fitted rows.

    Raises
    ------
    InferenceError
        If a gradient is NaN or infinite.

    Warns
    -----
    UserWarning
        If rows have not converged.
    """
    tables = dict(module.named_parameters())
    start = _rows_of(module, tables, minibatch.indices) if rows is None else rows
    with evaluation_mode(module):
        fit = _Fit(module, minibatch, start)
        if n_steps is not None:
            fit.settle(n_steps)
        elif drifting := fit.until_converged():
            warnings.warn(
                f"The per-observation parameters of {drifting} of {minibatch.n} observations have "
                "not converged: their posteriors are not to be relied on. Check these observations "
                "for extreme values, give the local sites a prior on the scale of the data, or "
                "scale the data.",
                stacklevel=2,
            )
    if rows is None:
        with torch.no_grad():
            for name, value in fit.result.items():
                tables[name].index_copy_(_axis(module, tables, name), minibatch.indices, value)
    return RowMinibatch(minibatch.tensors, minibatch.n_obs, fit.result, minibatch.n)


class _Fit:
    """Adam on the rows of one minibatch, with a step size for every number."""

    def __init__(
        self, module: PyroBaseModule, minibatch: Minibatch, start: Mapping[str, Tensor]
    ) -> None:
        self.module, self.elbo = module, module.default_elbo()
        self.n_obs, self.n = minibatch.n_obs, minibatch.n
        self.rows = {name: value.detach().clone() for name, value in start.items()}
        self.leaves = [value.requires_grad_() for value in self.rows.values()]
        self.given = RowMinibatch(minibatch.tensors, minibatch.n_obs, self.rows, minibatch.n)
        self.rates = [torch.full_like(leaf, _LEARNING_RATE) for leaf in self.leaves]
        self.result = self.rows

    def until_converged(self) -> int:
        """Search, then settle; the number of observations with a row that still drifts."""
        for _ in range(MAX_ROUNDS):
            drifts = self._drifts(self._steps(_ROUND, [1.0] * _ROUND), _ROUND)
            at_base = all(bool((rate <= _LEARNING_RATE).all()) for rate in self.rates)
            if at_base and not any(bool(drift.any()) for drift in drifts):
                break
            for rate, drift in zip(self.rates, drifts, strict=True):
                smaller = (rate / _GROWTH).clamp(min=_LEARNING_RATE)
                rate.copy_(torch.where(drift, rate * _GROWTH, smaller))
        drifts = self.settle(N_STEPS)
        base = [rate.clone() for rate in self.rates]
        for factor in _REPEATS:
            if not any(bool(drift.any()) for drift in drifts):
                return 0
            for rate, first, drift in zip(self.rates, base, drifts, strict=True):
                # larger steps help what drifts; smaller ones help it by calming its neighbours
                rate.copy_(torch.where(drift, first * factor, first * min(factor, 1.0)))
            drifts = self.settle(N_STEPS)
        return self._observations(drifts)

    def settle(self, n_steps: int) -> list[Tensor]:
        """Step with rates that fall to 0, and average; where the gradient was no noise."""
        n_averaged = max(1, round(_AVERAGED * n_steps))
        falling = [(1 + math.cos(math.pi * step / n_steps)) / 2 for step in range(n_steps)]
        sums = self._steps(n_averaged, falling)
        with torch.no_grad():
            for leaf, (mean, _, _) in zip(self.leaves, sums, strict=True):
                leaf.copy_(mean)
        self.result = {name: value.detach() for name, value in self.rows.items()}
        return self._drifts(sums, n_averaged)

    def _steps(self, n_last: int, factors: Sequence[float]) -> list[list[Tensor]]:
        """One step for each factor of the rates; means of the last iterates and gradients."""
        first = [torch.zeros_like(leaf) for leaf in self.leaves]
        second = [torch.zeros_like(leaf) for leaf in self.leaves]
        sums = [[torch.zeros_like(leaf) for _ in range(3)] for leaf in self.leaves]
        for step, factor in enumerate(factors, 1):
            gradients = self._gradients()
            with torch.no_grad():
                for i, (leaf, gradient) in enumerate(zip(self.leaves, gradients, strict=True)):
                    first[i].lerp_(gradient, 0.1)
                    second[i].lerp_(gradient.square(), 0.001)
                    mean = first[i] / (1 - 0.9**step)
                    size = (second[i] / (1 - 0.999**step)).sqrt() + 1e-8
                    leaf.sub_(factor * self.rates[i] * mean / size)
                    if step > len(factors) - n_last:
                        for total, value in zip(
                            sums[i], (leaf, gradient, gradient.square()), strict=True
                        ):
                            total.add_(value, alpha=1 / n_last)
        return sums

    def _gradients(self) -> tuple[Tensor, ...]:
        elbo: Any = self.elbo
        with torch.enable_grad():
            loss = elbo.differentiable_loss(
                self.module.run_model, self.module.run_guide, self.given
            )
            # per observation of the minibatch: what the rows' own gradients are of order 1 in
            gradients = torch.autograd.grad(loss * (self.n / self.n_obs), self.leaves)
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            raise InferenceError(
                "The per-observation parameters of new observations cannot be fitted: a gradient "
                "became NaN or infinite. Check the data for extreme values."
            )
        return gradients

    def _drifts(self, sums: list[list[Tensor]], n: int) -> list[Tensor]:
        """Which numbers had gradients of one direction, and anything to gain by following them."""
        drifts = []
        for rate, (_, mean, square) in zip(self.rates, sums, strict=True):
            one_way = mean.abs() * math.sqrt(n) > _DRIFT * square.sqrt()
            drifts.append(one_way & (mean.abs() * rate * n > _NEGLIGIBLE))
        return drifts

    def _observations(self, drifts: Iterable[Tensor]) -> int:
        found = torch.zeros(self.n, dtype=torch.bool, device=self.module.device)
        for axis, drift in zip(self.module.row_axes.values(), drifts, strict=True):
            found |= drift.movedim(axis, 0).reshape(self.n, -1).any(1)
        return int(found.sum())


def minibatches_with_rows(
    module: PyroBaseModule, loader: Any, row_of: np.ndarray
) -> Iterator[RowMinibatch]:
    """Minibatches with the rows of their observations: looked up, or fitted where there are none.

    Parameters
    ----------
    module
        The fitted pair.
    loader
        Loader of the observations.
    row_of
        Row of each observation of the loader's data in the module's tables; -1 for those without.

    Yields
    ------
    RowMinibatch
        The observations, on the module's device.
    """
    row_of_each = torch.as_tensor(row_of, device=module.device)
    for position, minibatch in enumerate(loader):
        moved = minibatch.to(module.device)
        rows = row_of_each[moved.indices]
        known = torch.nonzero(rows >= 0)[:, 0]
        found = _rows_of(module, dict(module.named_parameters()), rows[known])
        if len(known) == moved.n:
            own = {name: value.detach() for name, value in found.items()}
            yield RowMinibatch(moved.tensors, moved.n_obs, own, moved.n)
            continue
        with stream("rows", position):
            fitted = fit_rows(module, moved, module.initial_rows(moved.n))
        with torch.no_grad():  # a known observation has its row whatever company it is in
            for name, value in found.items():
                table = fitted.rows[name]
                table.index_copy_(table.dim() + module.row_axes[name], known, value)
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
