"""Splits of a registered AnnData that live on the device, as a Lightning data module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from pyrovi.dataloaders.device_loader import DeviceBackedLoader
from pyrovi.dataloaders.splitter import DataSplitter
from pyrovi.errors import DataError

if TYPE_CHECKING:
    from pyrovi.data import AnnDataManager

_KINDS = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"}


class DeviceBackedDataSplitter(DataSplitter):
    """Splits whose sets are moved to the device once and cut into minibatches there.

    Parameters
    ----------
    manager
        Manager with a registered AnnData or MuData.
    train_size, validation_size, shuffle_set_split, external_indexing, drop_last
        See :class:`DataSplitter`.
    accelerator
        ``"auto"``, ``"cpu"``, ``"gpu"``/``"cuda"`` or ``"mps"``; used where no trainer is attached.
    device
        ``"auto"`` takes the trainer's device, or the first one of ``accelerator`` without a
        trainer; otherwise a number, a name such as ``"cuda:1"`` or a ``torch.device``.
    shuffle
        Whether to shuffle the training observations each epoch; without effect on the full batch.
    shuffle_test_val
        Whether to shuffle validation and test observations too.
    batch_size
        Observations per minibatch; ``None`` gives the whole set as one minibatch.
    data_and_attributes, distributed_sampler
        See :class:`DataSplitter`.

    Raises
    ------
    DataError
        See :class:`DataSplitter`; also if ``accelerator`` is unknown.
    """

    def __init__(
        self,
        manager: AnnDataManager,
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        external_indexing: Sequence[Any] | None = None,
        drop_last: bool = False,
        accelerator: str = "auto",
        device: int | str | torch.device = "auto",
        shuffle: bool = False,
        shuffle_test_val: bool = False,
        batch_size: int | None = None,
        data_and_attributes: Sequence[str] | Mapping[str, DTypeLike] | None = None,
        distributed_sampler: bool | None = None,
    ) -> None:
        super().__init__(
            manager,
            train_size,
            validation_size,
            shuffle_set_split,
            external_indexing=external_indexing,
            drop_last=drop_last,
            batch_size=batch_size,
            data_and_attributes=data_and_attributes,
            distributed_sampler=distributed_sampler,
        )
        if accelerator != "auto" and accelerator not in _KINDS:
            raise DataError(
                f"accelerator must be 'auto' or one of {', '.join(_KINDS)}, got {accelerator!r}"
            )
        self.accelerator = accelerator
        self.device = device
        self.shuffle = shuffle
        self.shuffle_test_val = shuffle_test_val

    def resolve_device(self) -> torch.device:
        """Device that holds the data of loaders made now."""
        if isinstance(self.device, torch.device):
            return self.device
        if isinstance(self.device, str) and self.device != "auto":
            return torch.device(self.device)
        if self.device == "auto" and self.trainer is not None:
            return self.trainer.strategy.root_device
        kind = _KINDS.get(self.accelerator) or _best_device_type()
        return torch.device(kind) if self.device == "auto" else torch.device(kind, int(self.device))

    def _loader(self, indices: NDArray[np.int64], shuffle: bool, drop_last: bool) -> Any:
        return DeviceBackedLoader(
            self.rows,
            indices,
            self.resolve_device(),
            self.batch_size,
            shuffle,
            drop_last,
            distributed_sampler=self.shards,
            n_obs=self.n_train,
            seed=self.seed,
        )

    def _training_loader(self) -> Any:
        return self._loader(self.train_idx, self.shuffle, self.drop_last)

    def _evaluation_loader(self, indices: NDArray[np.int64]) -> Any:
        return self._loader(indices, self.shuffle_test_val, drop_last=False)


def _best_device_type() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
