"""Samplers that yield whole minibatches of positions.

The order of an epoch is a pure function of the seed and the epoch number. No sampler draws from, or
disturbs, the global random state of NumPy or torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler, Sampler

from pyrovi._rng import generator
from pyrovi._settings import settings
from pyrovi.dataloaders.arguments import checked_batch_size
from pyrovi.dataloaders.distributed import distributed_rank_and_size
from pyrovi.dataloaders.resume import EpochCursor
from pyrovi.errors import DataError


class BatchSampler(EpochCursor, Sampler[NDArray[np.int64]]):
    """Positions in minibatches, for one of several ranks.

    With several ranks the epoch's order is cut into one contiguous run per rank. Runs are of equal
    length, so that every rank makes the same number of steps and none waits for another: the order
    is continued from its beginning to fill the last run (up to ``world - 1`` observations are then
    seen twice in the epoch), or cut short with ``drop_dataset_tail``. A single rank sees every
    observation exactly once.

    Parameters
    ----------
    positions
        Number ``n`` of observations, or the positions themselves (int64, shape ``(n,)``).
    batch_size
        Largest number of observations per minibatch. An epoch has as few minibatches as that
        allows, and their sizes differ by at most one: a small last one would have far more noise
        than the others, and a single observation cannot be normalised.
    shuffle
        Whether each epoch has its own random order.
    drop_last
        Whether every minibatch has ``batch_size`` observations, and the rest is left out.
    drop_dataset_tail
        Whether to leave out up to ``world - 1`` observations instead of seeing some twice.
        Changes nothing with one rank.
    rank, world
        Rank of this process and number of ranks.
    seed
        Root seed of the orders; ``None`` takes ``pyrovi.settings.seed`` now.

    Attributes
    ----------
    epoch
        Epoch whose order iteration gives.
    start
        Number of minibatches of the epoch that iteration skips (a resumed epoch).

    Raises
    ------
    DataError
        If ``batch_size`` is no positive whole number, ``rank`` is not below ``world``, or no
        minibatch would be left.
    """

    def __init__(
        self,
        positions: int | NDArray[np.int64],
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        drop_dataset_tail: bool = False,
        rank: int = 0,
        world: int = 1,
        seed: int | None = None,
    ) -> None:
        order = np.asarray(positions, dtype=np.int64)
        if order.ndim == 0:
            order = np.arange(int(order), dtype=np.int64)
        batch_size = checked_batch_size(batch_size)
        if not 0 <= rank < world:
            raise DataError(f"rank must be from 0 to world - 1 = {world - 1}, got {rank}")
        self.positions = order
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.drop_dataset_tail = drop_dataset_tail
        self.rank = rank
        self.world = world
        self.seed = settings.seed if seed is None else int(seed)
        n = self.n_per_rank
        EpochCursor.__init__(self, n // batch_size if drop_last else -(-n // batch_size))
        if self.n_batches == 0:
            raise DataError(
                f"No minibatch is left of {len(order)} observations with batch_size="
                f"{batch_size}, drop_last={drop_last}, drop_dataset_tail={drop_dataset_tail} on "
                f"{world} rank(s); lower batch_size or keep the tail"
            )

    @property
    def n_per_rank(self) -> int:
        """Observations that each rank sees in an epoch, before ``drop_last``."""
        n = len(self.positions)
        return n // self.world if self.drop_dataset_tail else -(-n // self.world)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the minibatches of an epoch, as plain numbers."""
        return {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "batch_size": self.batch_size,
            "n_observations": len(self.positions),
            "drop_dataset_tail": self.drop_dataset_tail,
            "world": self.world,
        }

    def order(self) -> NDArray[np.int64]:
        """Positions that this rank sees in the current epoch, in order."""
        positions = self.positions
        if self.shuffle:
            positions = generator("minibatches", self.epoch, seed=self.seed).permutation(positions)
        n = self.n_per_rank
        # np.resize repeats the order from its beginning, as often as needed.
        return np.resize(positions, n * self.world)[self.rank * n : (self.rank + 1) * n]

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        order = self.order()
        if self.drop_last:
            order = order[: self.n_batches * self.batch_size]
        size, larger = divmod(len(order), self.n_batches)
        firsts = [i * size + min(i, larger) for i in range(self.start, self.n_batches + 1)]
        return (order[first:end] for first, end in pairwise(firsts))


class BatchDistributedSampler(BatchSampler, DistributedSampler):  # type: ignore[misc, type-arg]
    """The share of this rank, read from ``torch.distributed``, under scvi-tools' name.

    It is registered as a torch ``DistributedSampler`` only so that Lightning recognises a loader
    that is already sharded and leaves it as it is.

    Parameters
    ----------
    dataset
        Number of observations, their positions, or anything else with a length.
    batch_size, drop_last, drop_dataset_tail, shuffle, seed
        See :class:`BatchSampler`.
    num_replicas, rank
        Number of ranks and rank; ``None`` reads them from ``torch.distributed``.
    """

    def __init__(
        self,
        dataset: Sized | int,
        batch_size: int = 128,
        drop_last: bool = False,
        drop_dataset_tail: bool = False,
        *,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int | None = None,
    ) -> None:
        own_rank, world = distributed_rank_and_size()
        positions = dataset if isinstance(dataset, int | np.ndarray) else len(dataset)
        BatchSampler.__init__(
            self,
            positions,
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            drop_dataset_tail=drop_dataset_tail,
            rank=own_rank if rank is None else rank,
            world=world if num_replicas is None else num_replicas,
            seed=seed,
        )


class MappedSampler(Sampler[NDArray[np.int64]]):
    """A caller's sampler of minibatches, its positions looked up in a selection.

    Parameters
    ----------
    sampler
        Yields sequences of positions in ``positions``; ``set_epoch`` is passed on if it has one.
    positions
        Positions in the registered AnnData, int64 of shape ``(n,)``.
    """

    def __init__(self, sampler: Iterable[Any], positions: NDArray[np.int64]) -> None:
        self.sampler = sampler
        self.positions = positions

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        for batch in self.sampler:
            yield self.positions[np.atleast_1d(np.asarray(batch, dtype=np.int64))]

    def set_epoch(self, epoch: int) -> None:
        """Tell the caller's sampler which epoch comes next."""
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
