"""Reductions: what is kept of the draws of a minibatch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovi.errors import ModelError

ReduceSpec = str | Sequence[str] | Callable[[np.ndarray], np.ndarray] | None
"""``None`` (keep the draws), a statistic, a list of statistics, or a function of the draws."""

_QUANTILE = re.compile(r"q(\d{1,2}(?:\.\d+)?)")


class Reduction:
    """Turns the draws of a site, shape ``(S, ...)``, into what a query returns.

    Parameters
    ----------
    spec
        ``None`` keeps the draws (leading dimension ``draw``). ``"mean"``, ``"sd"``, ``"median"`` or
        a quantile such as ``"q05"`` removes it. A list of these replaces it by ``statistic``. A
        function maps an array whose first axis is the draws to an array without that axis.

    Raises
    ------
    ModelError
        If a statistic is unknown, or there is none, or one draw is to have a standard deviation.
    """

    def __init__(self, spec: ReduceSpec) -> None:
        self.spec = spec
        self._names: list[str] = []
        if isinstance(spec, str):
            self._names = [spec]
        elif spec is not None and not callable(spec):
            self._names = list(spec)
            if not self._names:
                raise ModelError(
                    "reduce is an empty list: name a statistic ('mean', 'sd', 'median', 'q05'), or "
                    "leave it out to get the draws."
                )
        for name in self._names:
            _check(name)

    @property
    def statistics(self) -> list[str]:
        """Names of the statistics."""
        return list(self._names)

    @property
    def leading(self) -> tuple[str, list[Any] | None] | None:
        """Name and labels of the leading dimension; ``None`` if the draws are reduced away."""
        if self.spec is None:
            return "draw", None
        if isinstance(self.spec, str) or callable(self.spec):
            return None
        return "statistic", list(self.spec)

    def __call__(self, draws: Tensor) -> np.ndarray:
        """Reduce the draws of a minibatch."""
        if self.spec is None:
            return draws.cpu().numpy()
        if callable(self.spec):
            return np.asarray(self.spec(draws.cpu().numpy()))
        statistics = _Statistics(draws if draws.is_floating_point() else draws.double())
        if isinstance(self.spec, str):
            return statistics(self.spec)
        return np.stack([statistics(name) for name in self._names])

    @property
    def is_running(self) -> bool:
        """Whether every statistic can be updated draw by draw, without keeping the draws."""
        return bool(self._names) and set(self._names) <= {"mean", "sd"}

    def running(self) -> RunningReduction:
        """An empty reduction of draws that come one chunk after the other."""
        return RunningReduction(self)


class RunningReduction:
    """Mean and standard deviation of draws that are not kept.

    Parameters
    ----------
    reduction
        One whose statistics are only these.
    """

    def __init__(self, reduction: Reduction) -> None:
        self.reduction = reduction
        self.num_draws = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def update(self, draws: Tensor) -> None:
        """Add draws, shape ``(s, ...)``."""
        draws = draws.double()
        mean, new, old = draws.mean(0), len(draws), self.num_draws
        squares = (draws - mean).square_().sum(0)
        self.num_draws = old + new
        if self._mean is None or self._squares is None:
            self._mean, self._squares = mean, squares
            return
        change = mean - self._mean
        self._mean += change * (new / self.num_draws)
        self._squares += squares + change.square() * (old * new / self.num_draws)

    def result(self, dtype: torch.dtype) -> np.ndarray:
        """What the reduction gives for all draws at once, up to rounding."""
        assert self._mean is not None
        assert self._squares is not None
        names = self.reduction.statistics
        if "sd" in names:
            _check_sd(self.num_draws)
        sd = (self._squares / max(self.num_draws - 1, 1)).sqrt()
        found = {"mean": self._mean, "sd": sd}
        arrays = [found[name].to(dtype).cpu().numpy() for name in names]
        return arrays[0] if isinstance(self.reduction.spec, str) else np.stack(arrays)


class _Statistics:
    """Statistics of the same draws, which are sorted at most once."""

    def __init__(self, draws: Tensor) -> None:
        self.draws = draws
        self._ordered: Tensor | None = None

    def __call__(self, name: str) -> np.ndarray:
        if name == "mean":
            return self.draws.mean(0).cpu().numpy()
        if name == "sd":
            _check_sd(len(self.draws))
            return self.draws.std(0).cpu().numpy()
        if self._ordered is None:
            self._ordered = _sorted(self.draws)
        position = _probability(name) * (len(self.draws) - 1)
        below = int(position)
        above = min(below + 1, len(self.draws) - 1)
        quantile = torch.lerp(self._ordered[below], self._ordered[above], position - below)
        return quantile.cpu().numpy()


def _sorted(draws: Tensor) -> Tensor:
    """Sort along the draws; on the CPU by NumPy, whose sort is many times faster than torch's."""
    if draws.device.type == "cpu":
        return torch.from_numpy(np.sort(draws.detach().numpy(), axis=0))
    return draws.sort(0).values


def _check_sd(num_draws: int) -> None:
    if num_draws < 2:
        raise ModelError(
            "reduce='sd' needs at least 2 draws, got 1: one draw has no standard deviation. Raise "
            "num_samples."
        )


def _probability(name: str) -> float:
    match = _QUANTILE.fullmatch(name)
    return 0.5 if match is None else float(match[1]) / 100


def _check(name: str) -> None:
    if name not in ("mean", "sd", "median") and not _QUANTILE.fullmatch(name):
        raise ModelError(
            f"Unknown statistic {name!r}: use 'mean', 'sd', 'median', a quantile like 'q05', a "
            "list of these, or a function of the draws."
        )
