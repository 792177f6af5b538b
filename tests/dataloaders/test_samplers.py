"""Orders of epochs: pure functions of seed and epoch, shared evenly among ranks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrovi._settings import settings
from pyrovi.dataloaders import BatchDistributedSampler, BatchSampler
from pyrovi.errors import DataError


def batches(sampler: BatchSampler, epoch: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return [batch.tolist() for batch in sampler]


def flat(sampler: BatchSampler, epoch: int = 0) -> list[int]:
    return [position for batch in batches(sampler, epoch) for position in batch]


@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 25),
    world=st.integers(1, 7),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_ranks_cover_everything_in_equal_steps(
    n: int, batch_size: int, world: int, shuffle: bool, epoch: int
) -> None:
    ranks = [BatchSampler(n, batch_size, shuffle, rank=r, world=world) for r in range(world)]
    shares = [batches(sampler, epoch) for sampler in ranks]
    lengths = [[len(batch) for batch in share] for share in shares]
    assert all(length == lengths[0] for length in lengths)
    assert [len(sampler) for sampler in ranks] == [len(share) for share in shares]
    assert max(lengths[0]) <= batch_size
    assert max(lengths[0]) - min(lengths[0]) <= 1
    assert len(lengths[0]) == -(-sum(lengths[0]) // batch_size)
    seen = Counter(i for share in shares for batch in share for i in batch)
    assert set(seen) == set(range(n))
    # What is seen twice is only what fills the last run.
    assert sum(seen.values()) == -(-n // world) * world
    if not shuffle and n >= world:
        assert [i for share in shares for batch in share for i in batch][:n] == list(range(n))


@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 25),
    world=st.integers(1, 7),
    drop_last=st.booleans(),
)
def test_dropping_repeats_nothing(n: int, batch_size: int, world: int, drop_last: bool) -> None:
    per_rank = n // world
    n_batches = per_rank // batch_size if drop_last else -(-per_rank // batch_size)
    options = {"drop_last": drop_last, "drop_dataset_tail": True, "world": world}
    if n_batches == 0:
        with pytest.raises(DataError, match=f"No minibatch is left of {n} observations"):
            BatchSampler(n, batch_size, True, **options)
        return
    shares = [batches(BatchSampler(n, batch_size, True, rank=r, **options)) for r in range(world)]
    seen = [i for share in shares for batch in share for i in batch]
    assert len(seen) == len(set(seen))
    assert {len(share) for share in shares} == {n_batches}
    if drop_last:
        assert {len(batch) for share in shares for batch in share} == {batch_size}
    else:
        assert len(seen) == per_rank * world


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    sampler = BatchSampler(50, 8, shuffle=True, seed=1)
    third = flat(sampler, 3)
    assert sorted(third) == list(range(50))
    assert flat(sampler, 0) != third
    assert flat(sampler, 3) == third
    np.random.seed(5)
    torch.manual_seed(5)
    assert flat(BatchSampler(50, 8, shuffle=True, seed=1), 3) == third
    assert flat(BatchSampler(50, 13, shuffle=True, seed=1), 3) == third
    assert flat(BatchSampler(50, 8, shuffle=True, seed=2), 3) != third


def test_the_default_seed_is_the_setting() -> None:
    settings.seed = 11
    assert flat(BatchSampler(50, 8, True)) == flat(BatchSampler(50, 8, True, seed=11))
    settings.seed = 12
    assert flat(BatchSampler(50, 8, True)) != flat(BatchSampler(50, 8, True, seed=11))


def test_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    flat(BatchSampler(50, 8, True))
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


def test_given_positions_are_permuted_not_changed() -> None:
    positions = np.array([10, 20, 20, 40])
    assert flat(BatchSampler(positions, 3)) == [10, 20, 20, 40]
    assert sorted(flat(BatchSampler(positions, 3, shuffle=True))) == [10, 20, 20, 40]
    assert positions.tolist() == [10, 20, 20, 40]


def test_seek_skips_minibatches_and_set_epoch_of_the_same_epoch_keeps_them_skipped() -> None:
    sampler = BatchSampler(50, 8, shuffle=True)
    whole = batches(sampler, 2)
    sampler.seek(2, 3)
    sampler.set_epoch(2)
    assert [batch.tolist() for batch in sampler] == whole[3:]
    assert len(sampler) == len(whole)
    assert len(batches(sampler, 4)) == len(whole)
    for epoch, start in [(-1, 0), (0, 8), (0, -1)]:
        with pytest.raises(DataError, match=f"no minibatch {start} in epoch {epoch}"):
            sampler.seek(epoch, start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "world": 2}, "from 0 to world - 1 = 1, got 2"),
        ({"batch_size": 11, "drop_last": True}, "No minibatch is left of 10 observations"),
    ],
)
def test_bad_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        BatchSampler(10, **{"batch_size": 4, **options})


def test_distributed_sampler_reads_or_takes_the_rank(ranks) -> None:
    assert flat(BatchDistributedSampler(10, 4, shuffle=False)) == list(range(10))
    ranks(1, 3)
    sampler = BatchDistributedSampler([None] * 10, 3, shuffle=False)
    assert batches(sampler) == [[4, 5], [6, 7]]
    sampler = BatchDistributedSampler(10, 3, shuffle=False, num_replicas=2, rank=0)
    assert batches(sampler) == [[0, 1, 2], [3, 4]]
    assert isinstance(sampler, torch.utils.data.DistributedSampler)
