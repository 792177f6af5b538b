"""Minibatches of data that live on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pyrovi.dataloaders.dataset import AnnTorchDataset, MinibatchDataset
from pyrovi.dataloaders.distributed import distributed_rank_and_size
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.dataloaders.resume import EpochCursor, ResumableLoader
from pyrovi.dataloaders.samplers import BatchSampler


class DeviceBackedLoader(ResumableLoader):
    """Minibatches cut on the device from observations moved there once.

    The data must fit in device memory in dense form. With several ranks each device holds all the
    observations and uses its share. A single minibatch in order is the resident data themselves:
    do not modify it in place.

    Parameters
    ----------
    rows
        The fields.
    indices
        Observations to load, see :class:`AnnDataLoader`.
    device
        Device that holds them.
    batch_size
        Observations per minibatch; ``None`` gives one minibatch of all (of this rank's share).
    shuffle, drop_last, distributed_sampler, n_obs, seed
        See :class:`AnnDataLoader`.

    Raises
    ------
    DataError
        See :class:`AnnDataLoader`.
    """

    def __init__(
        self,
        rows: AnnTorchDataset,
        indices: Any = None,
        device: str | torch.device = "cpu",
        batch_size: int | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        distributed_sampler: bool = False,
        n_obs: int | None = None,
        seed: int | None = None,
    ) -> None:
        self.indices = resolve_indices(indices, len(rows))
        self.device = torch.device(device)
        rank, world = distributed_rank_and_size() if distributed_sampler else (0, 1)
        self.sampler = BatchSampler(
            len(self.indices),
            len(self.indices) if batch_size is None else batch_size,
            shuffle,
            drop_last,
            rank=rank,
            world=world,
            seed=seed,
        )
        self.n_obs = len(self.indices) if n_obs is None else int(n_obs)
        self._obs_keys = set(rows.obs_keys)
        self._resident: Minibatch = MinibatchDataset(rows, self.n_obs)[self.indices].to(self.device)

    batch_sampler = None
    """Lightning asks whoever has a ``sampler`` for this, too."""

    @property
    def cursor(self) -> EpochCursor:
        """Position of the loader."""
        return self.sampler

    def fingerprint(self) -> dict[str, Any]:
        """What must agree for a position to mean the same remaining minibatches."""
        return self.sampler.fingerprint()

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Minibatch]:
        return self.give(self.sampler, lambda: self._cut(list(self.sampler)))

    def _cut(self, batches: list[np.ndarray[Any, Any]]) -> Iterator[Minibatch]:
        if len(batches) == 1 and len(batches[0]) == self._resident.n and not self.sampler.shuffle:
            yield self._resident
            return
        # The order of the epoch crosses to the device once instead of at every minibatch.
        order = torch.from_numpy(np.concatenate(batches)).to(self.device)
        resident = self._resident
        for index in order.split([len(batch) for batch in batches]):
            yield resident.replace(
                tensors={
                    key: tensor.index_select(0, index) if key in self._obs_keys else tensor
                    for key, tensor in resident.items()
                },
                indices=resident.indices.index_select(0, index),
            )
