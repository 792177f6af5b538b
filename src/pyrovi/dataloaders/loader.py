"""The minibatch loader of a registered AnnData."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from pyrovi._memory import keep_freed
from pyrovi._rng import derive_seed
from pyrovi._settings import settings
from pyrovi.dataloaders.block_plan import BlockPlan
from pyrovi.dataloaders.dataset import AnnTorchDataset, MinibatchDataset, grouped
from pyrovi.dataloaders.distributed import distributed_rank_and_size
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.dataloaders.resume import EpochCursor, ResumableLoader
from pyrovi.dataloaders.samplers import BatchDistributedSampler, BatchSampler, MappedSampler
from pyrovi.errors import DataError

if TYPE_CHECKING:
    from pyrovi.data import AnnDataManager


T = TypeVar("T")

_END = object()


class AnnDataLoader(ResumableLoader, DataLoader[Any]):
    """Minibatches of the registered fields, each read with one slice per field.

    The order of the minibatches is a pure function of ``(seed, epoch)``: it does not depend on the
    number of workers or on any global random state, and iterating leaves that state as it was. Each
    complete pass moves on to the next epoch; :meth:`set_epoch` chooses one.

    Fields on disk (a backed AnnData, zarr) are read by buffers of many minibatches, the next one in
    a thread while one is in use: at most about three times
    :data:`~pyrovi.dataloaders.dataset.BUFFER_BYTES` are in memory. Worker processes
    (``num_workers``) read every minibatch by itself, which is far slower for them; where they are
    forked they cannot read from TileDB-SOMA at all.

    Parameters
    ----------
    manager
        Manager with a registered AnnData or MuData, or an :class:`AnnTorchDataset` that several
        loaders share.
    indices
        Observations to load: positions or a boolean mask; ``None`` loads all. The argument is
        copied.
    batch_size
        Largest number of observations per minibatch; ``None`` takes ``pyrovi.settings.batch_size``.
        The minibatches of an epoch differ in size by at most one (:class:`BatchSampler`).
    shuffle
        Whether each epoch has its own random order. Data on disk that are larger than one buffer
        are shuffled by a :class:`BlockPlan`, others as in memory.
    sampler
        Own sampler instead of ``shuffle``, ``drop_last`` and the distributed options: it yields
        minibatches of positions in ``indices``. A :class:`BatchSampler` is copied if ``indices``
        are given; other samplers cannot be resumed within an epoch.
    drop_last
        Whether every minibatch has ``batch_size`` observations, and the rest is left out.
    drop_dataset_tail
        With ``distributed_sampler``, leave out observations that do not divide among the ranks
        instead of repeating some.
    data_and_attributes
        Fields to load (names, or a mapping of names to dtypes); ``None`` loads all.
    iter_ndarray
        Whether to yield plain dicts of ndarrays instead of :class:`Minibatch`.
    distributed_sampler
        Whether to load only the share of this ``torch.distributed`` rank.
    load_sparse_tensor
        Whether sparse fields stay sparse (CSR) until :meth:`Minibatch.to` makes them dense.
    n_obs
        Plate size that the minibatches carry; ``None`` takes the number of ``indices``.
    seed
        Root seed of the orders; ``None`` takes ``pyrovi.settings.seed`` now.
    **kwargs
        Further options of :class:`torch.utils.data.DataLoader` (``num_workers``, ``pin_memory``,
        ``persistent_workers``, ...); ``num_workers`` defaults to
        ``pyrovi.settings.dl_num_workers``.

    Attributes
    ----------
    indices
        Positions of the loaded observations in the registered AnnData, int64 of shape ``(n,)``.
    n_obs
        Plate size that the minibatches carry.

    Raises
    ------
    DataError
        If there is no manager, ``batch_size`` is no positive whole number, ``indices`` select
        nothing or do not fit the data, options are unknown or exclude one another, no minibatch
        would be left, or forked workers cannot read the data.
    MissingKeyError
        If a field is not registered.
    """

    def __init__(
        self,
        manager: AnnDataManager | AnnTorchDataset,
        indices: Any = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        sampler: Iterable[Any] | None = None,
        drop_last: bool = False,
        drop_dataset_tail: bool = False,
        data_and_attributes: Sequence[str] | Mapping[str, DTypeLike] | None = None,
        iter_ndarray: bool = False,
        distributed_sampler: bool = False,
        load_sparse_tensor: bool = False,
        n_obs: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(manager, AnnTorchDataset):
            if data_and_attributes is not None or load_sparse_tensor:
                raise DataError(
                    "data_and_attributes and load_sparse_tensor are fixed by the AnnTorchDataset; "
                    "give them to it instead of to the loader"
                )
            rows = manager
        else:
            rows = AnnTorchDataset(manager, data_and_attributes, load_sparse_tensor)
        if iter_ndarray and rows.load_sparse_tensor:
            raise DataError("iter_ndarray and load_sparse_tensor exclude one another")
        keep_freed()
        self._rows = rows
        self.indices = resolve_indices(indices, len(rows))
        self.n_obs = len(self.indices) if n_obs is None else int(n_obs)
        order: BatchSampler | MappedSampler
        if sampler is not None:
            if shuffle or drop_last or drop_dataset_tail or distributed_sampler:
                raise DataError(
                    "sampler excludes shuffle, drop_last, drop_dataset_tail and "
                    "distributed_sampler: give these options to the sampler"
                )
            order = self._given_order(sampler, indices is not None)
        else:
            batch_size = settings.batch_size if batch_size is None else batch_size
            rank, world = distributed_rank_and_size() if distributed_sampler else (0, 1)
            block_size, n_blocks = rows.buffer_sizes() if rows.on_disk else (0, 0)
            if shuffle and rows.on_disk and len(self.indices) > block_size * n_blocks:
                order = BlockPlan(
                    self.indices,
                    batch_size,
                    block_size,
                    n_blocks,
                    drop_last,
                    drop_dataset_tail,
                    rank,
                    world,
                    seed,
                )
            elif distributed_sampler:
                order = BatchDistributedSampler(
                    self.indices,
                    batch_size,
                    drop_last,
                    drop_dataset_tail,
                    num_replicas=world,
                    rank=rank,
                    shuffle=shuffle,
                    seed=seed,
                )
            else:
                order = BatchSampler(self.indices, batch_size, shuffle, drop_last, seed=seed)
        known = inspect.signature(DataLoader).parameters
        if unknown := [name for name in kwargs if name not in known]:
            raise DataError(
                f"{', '.join(map(repr, unknown))} is no option of a loader. Expected those of "
                f"AnnDataLoader and of torch.utils.data.DataLoader: {', '.join(known)}."
            )
        # torch draws a base seed from its global generator at each iteration unless given one.
        kwargs.setdefault(
            "generator", torch.Generator().manual_seed(derive_seed("loader", seed=seed))
        )
        kwargs.setdefault("num_workers", settings.dl_num_workers)
        kwargs.setdefault("collate_fn", _unchanged)
        if kwargs["num_workers"] > 0 and not rows.fork_safe:
            _refuse_forks(kwargs.get("multiprocessing_context"))
        dataset = MinibatchDataset(rows, self.n_obs, as_numpy=iter_ndarray)
        # The sampler gives whole minibatches of positions: no automatic batching.
        super().__init__(dataset, batch_size=None, sampler=order, **kwargs)

    def _given_order(self, sampler: Iterable[Any], selected: bool) -> BatchSampler | MappedSampler:
        if not isinstance(sampler, BatchSampler):
            return MappedSampler(sampler, self.indices)
        own: BatchSampler = sampler
        positions = resolve_indices(own.positions, len(self.indices), "sampler.positions")
        if selected:
            own = copy.copy(own)
            own.positions = self.indices[positions]
        return own

    @property
    def cursor(self) -> EpochCursor | None:
        """Position of the loader; ``None`` if a caller's own sampler decides the order."""
        return self.sampler if isinstance(self.sampler, EpochCursor) else None

    def fingerprint(self) -> dict[str, Any]:
        """What must agree for a position to mean the same remaining minibatches."""
        return self.sampler.fingerprint() if isinstance(self.sampler, BatchSampler) else {}

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, and with it the order, of the next iteration."""
        if isinstance(self.sampler, BatchSampler | MappedSampler):
            self.sampler.set_epoch(epoch)

    def reassign(self, indices: NDArray[np.int64]) -> None:
        """Load other observations, as many as before, from the next iteration on.

        Raises
        ------
        DataError
            If their number differs, or a caller's own sampler decides the order.
        """
        if not isinstance(self.sampler, BatchSampler) or len(indices) != len(self.indices):
            raise DataError(
                f"This loader can only be reassigned to {len(self.indices)} other observations in "
                f"an order of its own, got {len(indices)}"
            )
        self.indices = resolve_indices(indices, len(self.dataset))  # type: ignore[arg-type]
        self.sampler.positions = self.indices

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        cursor = self.cursor
        if cursor is None:
            return super().__iter__()
        if self.num_workers > 0:
            return self.give(cursor, super().__iter__)
        if self._rows.on_disk:
            return self.give(cursor, self._from_disk)
        alone = self.pin_memory or self._rows.load_sparse_tensor
        return self.give(cursor, super().__iter__ if alone else self._together)

    def _together(self) -> Iterator[Any]:
        """Minibatches of this process, without the workings of torch's loader."""
        return self._collated(_minibatches(self.dataset, iter(self.sampler)))  # the order of now

    def _from_disk(self) -> Iterator[Any]:
        """Minibatches out of a buffer, while a thread reads the next one."""
        dataset: Any = self.dataset
        if isinstance(self.sampler, BlockPlan):
            buffers: Iterator[list[NDArray[np.int64]]] = self.sampler.buffers()
        else:
            buffers = grouped(iter(self.sampler), math.prod(self._rows.buffer_sizes()))
        read = ((dataset.loaded(batches), batches) for batches in buffers)
        # no name is bound to a buffer here: it is let go before the next one is waited for
        taken = itertools.chain.from_iterable(itertools.starmap(_minibatches, prefetched(read)))
        made = self._collated(taken)
        return map(pin_memory, made) if self.pin_memory and torch.cuda.is_available() else made

    def _collated(self, batches: Iterator[Any]) -> Iterator[Any]:
        return batches if self.collate_fn is _unchanged else map(self.collate_fn, batches)


def _refuse_forks(context: Any) -> None:
    if not isinstance(context, str):
        context = (context or multiprocessing).get_start_method()
    if context == "fork":
        raise DataError(
            "Workers are forked (num_workers > 0), and a forked process cannot read these data: "
            "their store runs threads, which do not survive the fork. Use num_workers=0, which "
            "reads ahead in a thread."
        )


def _minibatches(dataset: Any, batches: Iterable[NDArray[np.int64]]) -> Iterator[Any]:
    minibatches: Iterator[Any] = dataset.in_turn(batches)
    return minibatches


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """Items, the next of which is made in a thread while one is in use.

    A thread makes one item and ends: none is left when the iterator is given up.
    """
    coming = _started(items)
    while (item := coming.result()) is not _END:
        coming = _started(items)
        yield item
        del item  # it may be large, and two others are in memory while the next is waited for


def _started(items: Iterator[Any]) -> Future[Any]:
    pool = ThreadPoolExecutor(1, "pyrovi-loader")
    try:
        return pool.submit(next, items, _END)
    finally:
        pool.shutdown(wait=False)


def _unchanged(batch: Any) -> Any:
    return batch
