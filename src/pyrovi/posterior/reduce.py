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
        If a statistic is unknown.
    """

    def __init__(self, spec: ReduceSpec) -> None:
        self.spec = spec
        self._statistics: list[Callable[[Tensor], Tensor]] = []
        if isinstance(spec, str):
            self._statistics = [_statistic(spec)]
        elif spec is not None and not callable(spec):
            self._statistics = [_statistic(name) for name in spec]

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
        values = draws if draws.is_floating_point() else draws.double()
        if isinstance(self.spec, str):
            return self._statistics[0](values).cpu().numpy()
        return torch.stack([statistic(values) for statistic in self._statistics]).cpu().numpy()


def _statistic(name: str) -> Callable[[Tensor], Tensor]:
    if name == "mean":
        return lambda draws: draws.mean(0)
    if name == "sd":
        return lambda draws: draws.std(0)
    if name == "median":
        return _quantile(0.5)
    if match := _QUANTILE.fullmatch(name):
        return _quantile(float(match[1]) / 100)
    raise ModelError(
        f"Unknown statistic {name!r}: use 'mean', 'sd', 'median', a quantile like 'q05', a list of "
        "these, or a function of the draws."
    )


def _quantile(probability: float) -> Callable[[Tensor], Tensor]:
    def quantile(draws: Tensor) -> Tensor:
        # torch.quantile refuses more than 2**24 elements; sorting the draws does not
        ordered = draws.sort(0).values
        position = probability * (len(ordered) - 1)
        below = int(position)
        above = min(below + 1, len(ordered) - 1)
        return torch.lerp(ordered[below], ordered[above], position - below)

    return quantile
