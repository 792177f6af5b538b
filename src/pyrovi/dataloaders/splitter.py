"""Splits of a registered AnnData as Lightning data modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import DTypeLike, NDArray

from pyrovi._settings import settings
from pyrovi.dataloaders.arguments import check_manager
from pyrovi.dataloaders.dataset import AnnTorchDataset
from pyrovi.dataloaders.distributed import distributed_rank_and_size
from pyrovi.dataloaders.loader import AnnDataLoader
from pyrovi.dataloaders.semi_supervised import SemiSupervisedDataLoader, label_codes
from pyrovi.dataloaders.splits import Split, external_split, split_observations
from pyrovi.errors import DataError

if TYPE_CHECKING:
    from pyrovi.data import AnnDataManager


class DataSplitter(LightningDataModule):
    """Training, validation and test loaders of one registered AnnData.

    The sets are drawn at construction, as a pure function of the sizes and
    ``pyrovi.settings.seed``. The training loader is shuffled. Validation and test minibatches carry
    the number of *training* observations as plate size: their loss is the training objective
    evaluated on other observations.

    Parameters
    ----------
    manager
        Manager with a registered AnnData or MuData.
    train_size
        Fraction to train on, rounded up to whole observations; ``None`` takes 0.9.
    validation_size
        Fraction to validate on, rounded down; ``None`` takes the rest. What remains is for testing.
    shuffle_set_split
        Whether to draw the sets at random; otherwise the first observations are for training, the
        next for validation, the last for testing.
    load_sparse_tensor
        Whether sparse fields reach the device in compressed form.
    pin_memory
        Whether to copy minibatches to page-locked memory.
    external_indexing
        ``[train, validation, test]`` positions or masks instead of sizes; later ones may be left
        out.
    drop_last
        Whether every training minibatch has ``batch_size`` observations, and the rest is left out.
    batch_size
        Observations per minibatch; ``None`` takes ``pyrovi.settings.batch_size``.
    data_and_attributes
        Fields to load; ``None`` loads all.
    distributed_sampler
        Whether each ``torch.distributed`` rank loads its share only; ``None`` does so if there are
        several ranks.
    **kwargs
        Further options of :class:`AnnDataLoader`.

    Attributes
    ----------
    train_idx, val_idx, test_idx
        Positions of the observations of each set, int64.
    n_train, n_val, n_test
        Their numbers.

    Raises
    ------
    DataError
        If sizes are out of range, sum to more than 1 or leave nothing to train on; if
        ``external_indexing`` overlaps, repeats or leaves the range, or is given beside sizes.
    """

    def __init__(
        self,
        manager: AnnDataManager,
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        pin_memory: bool = False,
        external_indexing: Sequence[Any] | None = None,
        drop_last: bool = False,
        batch_size: int | None = None,
        data_and_attributes: Sequence[str] | Mapping[str, DTypeLike] | None = None,
        distributed_sampler: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_manager(manager)
        self.manager = manager
        self.seed = settings.seed
        self.load_sparse_tensor = load_sparse_tensor
        self.pin_memory = pin_memory
        self.drop_last = drop_last
        self.batch_size = batch_size
        self.data_and_attributes = data_and_attributes
        self.distributed_sampler = distributed_sampler
        self.data_loader_kwargs = kwargs
        if external_indexing is None:
            split = self._draw(train_size, validation_size, shuffle_set_split)
        elif train_size is not None or validation_size is not None:
            raise DataError(
                f"Give either external_indexing or sizes, got both (train_size={train_size}, "
                f"validation_size={validation_size})"
            )
        else:
            split = external_split(external_indexing, int(manager.n_obs))
        self.train_idx, self.val_idx, self.test_idx = split.train, split.validation, split.test

    def _draw(
        self, train_size: float | None, validation_size: float | None, shuffle: bool
    ) -> Split:
        n_obs = int(self.manager.n_obs)
        return split_observations(n_obs, train_size, validation_size, shuffle, seed=self.seed)

    @property
    def n_train(self) -> int:
        """Number of training observations, over all ranks."""
        return len(self.train_idx)

    @property
    def n_val(self) -> int:
        """Number of validation observations."""
        return len(self.val_idx)

    @property
    def n_test(self) -> int:
        """Number of test observations."""
        return len(self.test_idx)

    @cached_property
    def rows(self) -> AnnTorchDataset:
        """The fields, shared by the loaders."""
        return AnnTorchDataset(self.manager, self.data_and_attributes, self.load_sparse_tensor)

    @property
    def shards(self) -> bool:
        """Whether loaders made now load only this rank's share."""
        if self.distributed_sampler is not None:
            return self.distributed_sampler
        return distributed_rank_and_size()[1] > 1

    def _options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "distributed_sampler": self.shards,
            "n_obs": self.n_train,
            "pin_memory": self.pin_memory,
            "seed": self.seed,
            **self.data_loader_kwargs,
        }

    def _training_loader(self) -> Any:
        return AnnDataLoader(
            self.rows, self.train_idx, shuffle=True, drop_last=self.drop_last, **self._options()
        )

    def _evaluation_loader(self, indices: NDArray[np.int64]) -> Any:
        return AnnDataLoader(self.rows, indices, **self._options())

    def train_dataloader(self) -> Any:
        """Shuffled loader of the training observations."""
        return self._training_loader()

    def val_dataloader(self) -> Any:
        """Loader of the validation observations in order; an empty list if there are none."""
        return self._evaluation_loader(self.val_idx) if self.n_val else []

    def test_dataloader(self) -> Any:
        """Loader of the test observations in order; an empty list if there are none."""
        return self._evaluation_loader(self.test_idx) if self.n_test else []


class SemiSupervisedDataSplitter(DataSplitter):
    """Splits of partly labelled data, by the same fractions among labelled and unlabelled ones.

    The training loader is a :class:`SemiSupervisedDataLoader` (pairs of minibatches) if a training
    observation has a label. Validation and test loaders give every observation once, as plain
    minibatches.

    Parameters
    ----------
    manager
        Manager with a registered labels field.
    n_samples_per_label
        Labelled observations of each label per epoch; ``None`` takes all.
    train_size, validation_size, shuffle_set_split, **kwargs
        See :class:`DataSplitter`.

    Attributes
    ----------
    gives_pairs
        Whether to train on pairs. ``False``: the same splits in plain minibatches, for training
        plans without a classifier.

    Raises
    ------
    DataError
        See :class:`DataSplitter` and :class:`SemiSupervisedDataLoader`.
    """

    def __init__(
        self,
        manager: AnnDataManager,
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        n_samples_per_label: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.n_samples_per_label = n_samples_per_label
        self.gives_pairs = True
        self._labelled = label_codes(manager)[1]
        super().__init__(manager, train_size, validation_size, shuffle_set_split, **kwargs)

    def _draw(
        self, train_size: float | None, validation_size: float | None, shuffle: bool
    ) -> Split:
        strata = {"labelled": self._labelled, "unlabelled": ~self._labelled}
        splits = [
            split_observations(
                np.flatnonzero(mask), train_size, validation_size, shuffle, name, seed=self.seed
            )
            for name, mask in strata.items()
            if mask.any()
        ]
        sets = ("train", "validation", "test")
        return Split(
            *(np.sort(np.concatenate([getattr(s, name) for s in splits])) for name in sets)
        )

    def _training_loader(self) -> Any:
        if not self.gives_pairs or not self._labelled[self.train_idx].any():
            return super()._training_loader()
        return SemiSupervisedDataLoader(
            self.manager,
            self.n_samples_per_label,
            self.train_idx,
            shuffle=True,
            drop_last=self.drop_last,
            rows=self.rows,
            **self._options(),
        )
