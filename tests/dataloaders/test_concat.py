"""ConcatDataLoader: one minibatch of every set at every step."""

from __future__ import annotations

import json
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest

from pyrovi.data import AnnDataManager
from pyrovi.dataloaders import ConcatDataLoader
from pyrovi.errors import DataError

LONG, SHORT = np.arange(20, 53), np.arange(7)


def make(manager: AnnDataManager, **options: Any) -> ConcatDataLoader:
    return ConcatDataLoader(manager, [LONG, SHORT], **{"batch_size": 4, "shuffle": True, **options})


def steps(loader: Any) -> list[list[list[int]]]:
    return [[batch.indices.tolist() for batch in batches] for batches in loader]


def test_the_longest_set_is_seen_once_and_the_others_again_and_again(
    manager: AnnDataManager,
) -> None:
    loader = make(manager)
    assert len(loader) == 9
    assert loader.largest_dl is loader.dataloaders[0]
    first = steps(loader)
    assert len(first) == 9
    assert sorted(chain.from_iterable(long for long, _ in first)) == LONG.tolist()
    short = [batch for _, batch in first]
    passes = [[*short[i], *short[i + 1]] for i in range(0, 8, 2)]
    assert all(sorted(p) == SHORT.tolist() for p in passes)
    # Shorter loaders are shuffled anew in each pass instead of being replayed.
    assert len({tuple(p) for p in passes}) > 2


def test_plate_sizes(manager: AnnDataManager) -> None:
    (batches,) = islice(make(manager), 1)
    assert [batch.n_obs for batch in batches] == [33, 7]
    (batches,) = islice(make(manager, n_obs=[50, None]), 1)
    assert [batch.n_obs for batch in batches] == [50, 7]


def test_the_order_is_a_function_of_seed_and_epoch(manager: AnnDataManager) -> None:
    loader = make(manager)
    passes = [steps(loader) for _ in range(3)]
    assert passes[0] != passes[1] != passes[2]
    other = make(manager)
    other.sampler.set_epoch(2)
    assert steps(other) == passes[2]
    other.set_epoch(0)
    assert steps(other) == passes[0]
    assert steps(make(manager, seed=1)) != passes[0]


def test_equal_sets_are_not_shuffled_alike(manager: AnnDataManager) -> None:
    loader = ConcatDataLoader(manager, [LONG, LONG], batch_size=33, shuffle=True)
    ((one, other),) = steps(loader)
    assert one != other


@pytest.mark.parametrize("n_done", [0, 3, 8, 9])
def test_resuming(manager: AnnDataManager, n_done: int) -> None:
    loader = make(manager)
    whole = [*steps(loader), *steps(loader), *steps(loader)]
    loader = make(manager)
    steps(loader)
    batches = iter(loader)
    for _ in range(n_done):
        next(batches)
    resumed = make(manager)
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    rest = steps(resumed)
    assert rest == (whole[9 + n_done : 18] or whole[18:])


def test_bad_arguments(manager: AnnDataManager) -> None:
    with pytest.raises(DataError, match="indices_list is empty"):
        ConcatDataLoader(manager, [])
    with pytest.raises(DataError, match="n_obs has 1 entries for 2 loaders"):
        make(manager, n_obs=[3])
    with pytest.raises(DataError, match="cannot have samplers of their own"):
        next(iter(make(manager, shuffle=False, batch_size=None, sampler=[[0]])))
