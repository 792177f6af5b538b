"""Several loaders side by side: one minibatch of each at every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import DTypeLike

from pyrovi._rng import derive_seed
from pyrovi.dataloaders.dataset import AnnTorchDataset
from pyrovi.dataloaders.loader import AnnDataLoader
from pyrovi.dataloaders.resume import EpochCursor, ResumableLoader
from pyrovi.errors import DataError

if TYPE_CHECKING:
    from pyrovi.data import AnnDataManager


class ConcatDataLoader(ResumableLoader):
    """Lists of minibatches, one from each set of observations.

    An epoch is as long as the longest loader. Shorter loaders are passed over again,
    reshuffled each time, so every step has a minibatch of every set.

    Parameters
    ----------
    manager
        Manager with a registered AnnData or MuData, or a shared :class:`AnnTorchDataset`.
    indices_list
        One selection of observations (positions, mask or ``None`` for all) per loader.
    batch_size, shuffle, drop_last, data_and_attributes, distributed_sampler, load_sparse_tensor
        Options of every loader, see :class:`AnnDataLoader`.
    n_obs
        Plate size of each loader's minibatches; ``None`` takes the number of its indices.
    seed
        Root seed; every loader has its own orders.
    **kwargs
        Further options of every :class:`AnnDataLoader`.

    Attributes
    ----------
    dataloaders
        The loaders, in the order of ``indices_list``.
    largest_dl
        The loader that sets the length of an epoch.

    Raises
    ------
    DataError
        If ``indices_list`` is empty, or a selection is invalid.
    """

    def __init__(
        self,
        manager: AnnDataManager | AnnTorchDataset,
        indices_list: Sequence[Any],
        batch_size: int | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        data_and_attributes: Sequence[str] | Mapping[str, DTypeLike] | None = None,
        distributed_sampler: bool = False,
        load_sparse_tensor: bool = False,
        n_obs: Sequence[int | None] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        if len(indices_list) == 0:
            raise DataError("indices_list is empty; give at least one selection of observations")
        sizes = [None] * len(indices_list) if n_obs is None else list(n_obs)
        if len(sizes) != len(indices_list):
            raise DataError(f"n_obs has {len(sizes)} entries for {len(indices_list)} loaders")
        rows = (
            manager
            if isinstance(manager, AnnTorchDataset)
            else AnnTorchDataset(manager, data_and_attributes, load_sparse_tensor)
        )
        self.dataloaders = [
            AnnDataLoader(
                rows,
                indices=indices,
                batch_size=batch_size,
                shuffle=shuffle,
                drop_last=drop_last,
                distributed_sampler=distributed_sampler,
                n_obs=size,
                seed=derive_seed("concat", position, seed=seed),
                **kwargs,
            )
            for position, (indices, size) in enumerate(zip(indices_list, sizes, strict=True))
        ]
        self.largest_dl = max(self.dataloaders, key=len)
        self.sampler = EpochCursor(len(self.largest_dl))

    @property
    def cursor(self) -> EpochCursor:
        """Position in the epoch of the longest loader."""
        return self.sampler

    def fingerprint(self) -> dict[str, Any]:
        """What must agree for a position to mean the same remaining minibatches."""
        return {"loaders": [loader.fingerprint() for loader in self.dataloaders]}

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Any]]:
        return self.give(self.sampler, self._steps)

    def _steps(self) -> Iterator[list[Any]]:
        epoch, start = self.sampler.epoch, self.sampler.start
        self.enter_epoch(epoch)
        streams = [self._stream(loader, epoch, start) for loader in self.dataloaders]
        return ([next(stream) for stream in streams] for _ in range(start, len(self)))

    def enter_epoch(self, epoch: int) -> None:
        """Called before the loaders are iterated; subclasses choose observations here."""

    def _stream(self, loader: AnnDataLoader, epoch: int, start: int) -> Iterator[Any]:
        """Endless minibatches of one loader from step ``start`` of ``epoch`` on."""
        cursor = loader.cursor
        if cursor is None:
            raise DataError("The loaders of a ConcatDataLoader cannot have samplers of their own")
        # Every epoch owns as many passes of the loader as it can need, so that the pass, and with
        # it the order, is a pure function of the epoch and the step.
        passes = -(-self.sampler.n_batches // len(loader))
        cursor.seek(epoch * passes + start // len(loader), start % len(loader))
        while True:
            yield from loader
