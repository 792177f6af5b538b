"""Parameters with one row per observation, for observations that the tables have no row of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyrovi.dataloaders.minibatch import Minibatch


class RowMinibatch(Minibatch):
    """A minibatch that brings the rows of its own observations.

    Wherever a module runs on it, the module's tables of rows are replaced by these for as long as
    the run lasts, and the observations are numbered from 0.

    Parameters
    ----------
    tensors, n_obs
        As in :class:`Minibatch`.
    rows
        Name of the parameter (as in ``state_dict``) -> table with one row per observation of the
        minibatch.
    n
        Number of observations.
    """

    __slots__ = ("rows",)

    def __init__(
        self, tensors: Mapping[str, Tensor], n_obs: int, rows: Mapping[str, Tensor], n: int
    ) -> None:
        device = next(iter(rows.values())).device
        super().__init__(tensors, torch.arange(n, device=device), n_obs)
        self.rows = dict(rows)

    def replace(self, **changes: Any) -> RowMinibatch:
        """Copy with some of ``tensors`` and ``n_obs`` replaced; the observations stay the same."""
        known = {"tensors": self.tensors, "n_obs": self.n_obs}
        changed = {**known, **{k: v for k, v in changes.items() if k != "indices"}}
        return RowMinibatch(**changed, rows=self.rows, n=self.n)

    def to(self, device: str | torch.device, non_blocking: bool = False) -> RowMinibatch:
        """Move to a device, rows included."""
        moved = super().to(device, non_blocking)
        rows = {name: value.to(device) for name, value in self.rows.items()}
        return RowMinibatch(moved.tensors, self.n_obs, rows, self.n)


@contextmanager
def rows_in_place(module: nn.Module, rows: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace parameters of a module by other tensors; they return on exit."""
    places = []
    for name, value in rows.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        places.append((owner, leaf, owner._parameters[leaf]))
        owner._parameters[leaf] = value  # type: ignore[assignment]
    try:
        yield
    finally:
        for owner, leaf, parameter in places:
            owner._parameters[leaf] = parameter
