"""SemiSupervisedDataLoader: all observations beside labelled ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from pyrovi.data import AnnDataManager
from pyrovi.dataloaders import SemiSupervisedDataLoader
from pyrovi.dataloaders.semi_supervised import label_codes
from pyrovi.errors import DataError

IS_LABELLED = np.arange(53) % 4 != 2  # T, B, unknown, T
LABELLED = np.flatnonzero(IS_LABELLED).tolist()


def labelled(pairs: Iterable[Any]) -> list[int]:
    return [i for _, batch in pairs for i in batch.indices.tolist()]


def test_codes_and_mask(manager: AnnDataManager) -> None:
    codes, mask = label_codes(manager)
    assert codes.tolist() == [[1, 0, 2, 1][i % 4] for i in range(53)]
    assert mask.tolist() == IS_LABELLED.tolist()


def test_all_labelled_observations(manager: AnnDataManager) -> None:
    loader = SemiSupervisedDataLoader(manager, batch_size=53, shuffle=True)
    assert loader.labelled_indices.tolist() == LABELLED
    ((everything, some),) = loader
    assert sorted(everything.indices.tolist()) == list(range(53))
    assert sorted(some.indices.tolist()) == LABELLED
    assert (everything.n_obs, some.n_obs) == (53, len(LABELLED))


def test_some_of_each_label_anew_in_each_epoch(manager: AnnDataManager) -> None:
    codes = label_codes(manager)[0]
    loader = SemiSupervisedDataLoader(manager, 5, batch_size=53, shuffle=True)
    epochs = [labelled(loader) for _ in range(3)]
    for chosen in epochs:
        assert len(set(chosen)) == 10
        assert Counter(codes[chosen].tolist()) == {0: 5, 1: 5}
    assert len({frozenset(chosen) for chosen in epochs}) == 3
    loader.set_epoch(1)
    assert labelled(loader) == epochs[1]


def test_rare_labels_give_what_they_have(manager: AnnDataManager) -> None:
    codes = label_codes(manager)[0]
    loader = SemiSupervisedDataLoader(manager, 5, indices=[0, 1, 2, 3, 4, 7, 8, 11], shuffle=True)
    chosen = loader.subsample_labels()
    assert Counter(codes[chosen].tolist()) == {0: 1, 1: 5}
    assert set(chosen) <= {0, 1, 3, 4, 7, 8, 11}


def test_resample_labels_draws_others_and_is_part_of_the_state(manager: AnnDataManager) -> None:
    def make() -> SemiSupervisedDataLoader:
        return SemiSupervisedDataLoader(manager, 5, batch_size=9, shuffle=True)

    loader = make()
    before = set(loader.subsample_labels())
    loader.resample_labels()
    assert set(loader.subsample_labels()) != before
    pairs = iter(loader)
    next(pairs)
    state = loader.state_dict()
    other = make()
    other.load_state_dict(state)
    assert labelled(other) == labelled(pairs)


def test_plate_size_of_all_observations_can_be_given(manager: AnnDataManager) -> None:
    loader = SemiSupervisedDataLoader(manager, indices=range(8), n_obs=99)
    ((everything, some),) = loader
    assert (everything.n_obs, some.n_obs) == (99, 6)


def test_bad_arguments(manager: AnnDataManager) -> None:
    with pytest.raises(DataError, match="None of the 2 observations has a label"):
        SemiSupervisedDataLoader(manager, indices=[2, 6])
    with pytest.raises(DataError, match="n_samples_per_label must be at least 1, got 0"):
        SemiSupervisedDataLoader(manager, 0)
