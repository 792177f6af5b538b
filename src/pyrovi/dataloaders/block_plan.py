"""The order of an epoch over data on disk: blocks of neighbours, mixed in a buffer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from pyrovi._rng import generator
from pyrovi.dataloaders.samplers import BatchSampler
from pyrovi.errors import DataError


class BlockPlan(BatchSampler, DistributedSampler):  # type: ignore[misc, type-arg]
    r"""Minibatches in a random order that storage can follow.

    The observations are cut, in the order of their storage, into blocks. Each epoch puts the blocks
    into a random order and cuts it into one contiguous run per rank. A rank walks through its run
    with a buffer of several blocks: the observations in the buffer are put into a random order and
    given out as minibatches, then the next blocks fill the buffer.

    The minibatches are a pure function of ``(seed, epoch, rank)``. Every observation is in exactly
    one minibatch of one rank (but for those that ``drop_last`` and ``drop_dataset_tail`` leave
    out), and all ranks make the same number of steps, of sizes that differ by at most one.

    Parameters
    ----------
    positions
        Number ``n`` of observations, or the positions themselves (int64, shape ``(n,)``), in any
        order: the plan sorts them.
    batch_size
        Largest number of observations per minibatch.
    block_size
        Observations in a block: what storage reads in one go.
    shuffle_buffer
        Blocks that are mixed, and in memory, at a time. The more, the closer the minibatches come
        to draws from all observations.
    drop_last, drop_dataset_tail, rank, world, seed
        See :class:`BatchSampler`. No observation is seen twice, so ``drop_dataset_tail`` only makes
        the shares of the ranks equal.

    Raises
    ------
    DataError
        If a size is not positive, ``rank`` is not below ``world``, or some rank would have a step
        without observations.

    Notes
    -----
    Storage that is sorted, by donor for example, makes the observations of a block alike. A
    minibatch then holds observations of ``shuffle_buffer`` random blocks at most; put such data in
    a random order once with :func:`pyrovi.data.shuffled_store`.
    """

    def __init__(
        self,
        positions: int | NDArray[np.int64],
        batch_size: int,
        block_size: int = 128,
        shuffle_buffer: int = 64,
        drop_last: bool = False,
        drop_dataset_tail: bool = False,
        rank: int = 0,
        world: int = 1,
        seed: int | None = None,
    ) -> None:
        for name, value in (("block_size", block_size), ("shuffle_buffer", shuffle_buffer)):
            if value < 1:
                raise DataError(f"{name} must be at least 1, got {value}")
        self.block_size = int(block_size)
        self.shuffle_buffer = int(shuffle_buffer)
        BatchSampler.__init__(
            self,
            positions,
            batch_size,
            shuffle=True,
            drop_last=drop_last,
            drop_dataset_tail=drop_dataset_tail,
            rank=rank,
            world=world,
            seed=seed,
        )
        least = len(self.positions) // world
        if least < self.n_batches:
            raise DataError(
                f"{len(self.positions)} observations on {world} ranks in minibatches of "
                f"{batch_size} leave a rank with {least} observations for {self.n_batches} steps; "
                "raise batch_size, use fewer ranks, or drop_dataset_tail=True"
            )

    @property
    def n_per_rank(self) -> int:
        """Observations that a rank sees in an epoch: the largest share, the least if cut short."""
        n = len(self.positions)
        least = self.drop_last or self.drop_dataset_tail
        return n // self.world if least else -(-n // self.world)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the minibatches of an epoch, as plain numbers."""
        return {
            **super().fingerprint(),
            "block_size": self.block_size,
            "shuffle_buffer": self.shuffle_buffer,
        }

    def order(self) -> NDArray[np.int64]:
        """Positions that this rank sees in the current epoch: its blocks one after another."""
        positions, size = np.sort(self.positions), self.block_size
        first, last = self._share(len(positions))
        blocks = generator("blocks", self.epoch, seed=self.seed).permutation(
            -(-len(positions) // size)
        )
        # Only one block may be shorter, so that the blocks of the share are known from its ends.
        starts = blocks * size
        ends = np.cumsum(np.minimum(size, len(positions) - starts))
        near, far = np.searchsorted(ends, [first, last - 1], side="right")
        own = np.concatenate([positions[i : i + size] for i in starts[near : far + 1].tolist()])
        skipped = first - (int(ends[near - 1]) if near else 0)
        return own[skipped : skipped + last - first]

    def _share(self, n: int) -> tuple[int, int]:
        """First and last (exclusive) place of this rank in the order of the blocks."""
        size, larger = divmod(n, self.world)
        if self.drop_dataset_tail:
            larger = 0
        first = self.rank * size + min(self.rank, larger)
        n_own = size + (self.rank < larger)
        return first, first + (self.n_batches * self.batch_size if self.drop_last else n_own)

    def buffers(self) -> Iterator[list[NDArray[np.int64]]]:
        """Minibatches that are still to come in the epoch, those of one buffer together."""
        # The order is that of now, whatever becomes of the cursor while the epoch is given out.
        return self._buffers(self.epoch, self.start, self.order())

    def _buffers(
        self, epoch: int, start: int, order: NDArray[np.int64]
    ) -> Iterator[list[NDArray[np.int64]]]:
        n_buffers = -(-len(order) // (self.block_size * self.shuffle_buffer))
        n_buffers = min(n_buffers, self.n_batches)
        size, larger = divmod(len(order), self.n_batches)
        for number in range(n_buffers):
            # Minibatches of this buffer, which ends where a minibatch ends.
            low = number * self.n_batches // n_buffers
            high = (number + 1) * self.n_batches // n_buffers
            if high <= start:
                continue
            edges = [i * size + min(i, larger) for i in range(low, high + 1)]
            rng = generator("buffer", epoch, self.rank, number, seed=self.seed)
            mixed = rng.permutation(order[edges[0] : edges[-1]])
            batches = np.split(mixed, np.array(edges[1:-1], dtype=np.int64) - edges[0])
            yield batches[max(0, start - low) :]

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return chain.from_iterable(self.buffers())
