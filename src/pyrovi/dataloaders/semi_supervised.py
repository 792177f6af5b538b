"""Loader of partly labelled data: all observations beside the labelled ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pyrovi._constants import REGISTRY_KEYS
from pyrovi._rng import generator
from pyrovi._settings import settings
from pyrovi.dataloaders.arguments import check_manager
from pyrovi.dataloaders.concat import ConcatDataLoader
from pyrovi.dataloaders.dataset import AnnTorchDataset
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import DataError

if TYPE_CHECKING:
    from pyrovi.data import AnnDataManager


def label_codes(manager: AnnDataManager) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Label code of every observation, and whether it has a label.

    Parameters
    ----------
    manager
        Manager with a registered labels field, with or without an unlabelled category.

    Returns
    -------
    codes, labelled
        Both of shape ``(n_obs,)``.
    """
    check_manager(manager)
    codes = np.asarray(manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY)).reshape(-1)
    state = manager.get_state_registry(REGISTRY_KEYS.LABELS_KEY)
    if "unlabeled_category" not in state:
        return codes, np.ones(len(codes), dtype=np.bool_)
    # A labels field gives "not labelled" the last code.
    return codes, codes != len(state["categorical_mapping"]) - 1


class SemiSupervisedDataLoader(ConcatDataLoader):
    """Pairs of minibatches: of all observations, and of labelled ones.

    Each epoch draws ``n_samples_per_label`` observations of every label anew, as a pure function of
    the seed, the epoch and the number of calls of :meth:`resample_labels`.

    Parameters
    ----------
    manager
        Manager with a registered labels field.
    n_samples_per_label
        Labelled observations of each label per epoch; ``None`` takes all. Labels with fewer give
        all they have.
    indices
        Observations to load, see :class:`AnnDataLoader`.
    batch_size, shuffle, drop_last, data_and_attributes, distributed_sampler, load_sparse_tensor
        See :class:`AnnDataLoader`.
    n_obs
        Plate size of the minibatches of all observations; those of labelled observations carry the
        number of labelled ones among ``indices``.
    seed
        Root seed; ``None`` takes ``pyrovi.settings.seed`` now.
    rows
        Fields to load, if already built from the same manager.
    **kwargs
        Further options of :class:`AnnDataLoader`.

    Attributes
    ----------
    labelled_indices
        All labelled observations among ``indices``.

    Raises
    ------
    DataError
        If none of the observations has a label, or ``n_samples_per_label`` is below 1.
    """

    def __init__(
        self,
        manager: AnnDataManager,
        n_samples_per_label: int | None = None,
        indices: Any = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        data_and_attributes: Sequence[str] | Mapping[str, DTypeLike] | None = None,
        distributed_sampler: bool = False,
        load_sparse_tensor: bool = False,
        n_obs: int | None = None,
        seed: int | None = None,
        rows: AnnTorchDataset | None = None,
        **kwargs: Any,
    ) -> None:
        if n_samples_per_label is not None and n_samples_per_label < 1:
            raise DataError(f"n_samples_per_label must be at least 1, got {n_samples_per_label}")
        codes, labelled = label_codes(manager)
        self.n_samples_per_label = n_samples_per_label
        self.seed = settings.seed if seed is None else int(seed)
        self.indices = resolve_indices(indices, int(manager.n_obs))
        self.labelled_indices = self.indices[labelled[self.indices]]
        if len(self.labelled_indices) == 0:
            raise DataError(
                f"None of the {len(self.indices)} observations has a label; use AnnDataLoader, or "
                "include labelled observations in indices"
            )
        self._codes = codes[self.labelled_indices]
        self._draw = 0
        super().__init__(
            AnnTorchDataset(manager, data_and_attributes, load_sparse_tensor)
            if rows is None
            else rows,
            indices_list=[self.indices, self.subsample_labels()],
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            distributed_sampler=distributed_sampler,
            n_obs=[n_obs, len(self.labelled_indices)],
            seed=self.seed,
            **kwargs,
        )

    def subsample_labels(self, epoch: int = 0) -> NDArray[np.int64]:
        """Labelled observations of an epoch, in data order of their labels."""
        if self.n_samples_per_label is None:
            return self.labelled_indices
        rng = generator("labelled", epoch, self._draw, seed=self.seed)
        chosen = []
        for code in np.unique(self._codes):
            members = self.labelled_indices[self._codes == code]
            size = min(self.n_samples_per_label, len(members))
            chosen.append(np.sort(rng.choice(members, size=size, replace=False)))
        return np.concatenate(chosen)

    def resample_labels(self) -> None:
        """Draw other labelled observations, also within an epoch's number."""
        self._draw += 1
        self.enter_epoch(self.sampler.epoch)

    def enter_epoch(self, epoch: int) -> None:
        """Hand the labelled observations of the epoch to their loader."""
        self.dataloaders[1].reassign(self.subsample_labels(epoch))

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position and draw of labelled observations, as plain numbers."""
        return {**super().state_dict(), "label_draw": self._draw}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration give exactly the minibatches that were still to come."""
        super().load_state_dict({k: v for k, v in state.items() if k != "label_draw"})
        self._draw = int(state.get("label_draw", 0))
