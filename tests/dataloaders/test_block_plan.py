"""BlockPlan: every observation once, mixed well, as a pure function of seed, epoch and rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from pyrovi.dataloaders import BatchSampler, BlockPlan
from pyrovi.errors import DataError


def lists(plan: BlockPlan) -> list[list[int]]:
    return [batch.tolist() for batch in plan]


@settings(deadline=None, max_examples=200)
@given(
    positions=st.sets(st.integers(0, 400), min_size=1, max_size=200),
    batch_size=st.integers(1, 20),
    block_size=st.integers(1, 30),
    shuffle_buffer=st.integers(1, 6),
    world=st.integers(1, 5),
    epoch=st.integers(0, 3),
    drop_last=st.booleans(),
    drop_dataset_tail=st.booleans(),
    data=st.data(),
)
def test_an_epoch(
    positions: set[int],
    batch_size: int,
    block_size: int,
    shuffle_buffer: int,
    world: int,
    epoch: int,
    drop_last: bool,
    drop_dataset_tail: bool,
    data: st.DataObject,
) -> None:
    shuffled = np.random.default_rng(0).permutation(sorted(positions))
    n = len(positions)

    def make(rank: int) -> BlockPlan:
        plan = BlockPlan(
            shuffled,
            batch_size,
            block_size,
            shuffle_buffer,
            drop_last,
            drop_dataset_tail,
            rank,
            world,
            seed=5,
        )
        plan.set_epoch(epoch)
        return plan

    try:
        plans = [make(rank) for rank in range(world)]
    except DataError:
        least = drop_last or drop_dataset_tail
        steps = n // world // batch_size if drop_last else -(-(n // world) // batch_size)
        assert steps == 0 if least else n < world or (batch_size == 1 and n % world)
        return
    epochs = [lists(plan) for plan in plans]
    seen = [i for batches in epochs for batch in batches for i in batch]
    sizes = [len(batch) for batches in epochs for batch in batches]
    assert len(seen) == len(set(seen))
    assert set(seen) <= positions
    assert {len(batches) for batches in epochs} == {len(plans[0])}
    if drop_last:
        assert set(sizes) == {batch_size}
        assert len(plans[0]) == n // world // batch_size
    else:
        assert max(sizes) <= batch_size
        assert min(sizes) >= max(1, max(sizes) - 1)
        assert len(seen) == (n // world * world if drop_dataset_tail else n)
    # The same again; and from any minibatch on.
    rank = data.draw(st.integers(0, world - 1))
    assert lists(make(rank)) == epochs[rank]
    start = data.draw(st.integers(0, len(plans[0])))
    resumed = make(rank)
    resumed.seek(epoch, start)
    assert lists(resumed) == epochs[rank][start:]
    # Buffers hold what they should: minibatches of few blocks.
    ordered = sorted(positions)
    block_of = {position: i // block_size for i, position in enumerate(ordered)}
    for buffer in make(rank).buffers():
        blocks = {block_of[int(i)] for batch in buffer for i in batch}
        rows = sum(len(batch) for batch in buffer)
        assert rows <= max(batch_size, block_size * shuffle_buffer + batch_size)
        assert len(blocks) <= shuffle_buffer + 2 + -(-batch_size // block_size)


def test_epochs_seeds_and_ranks_have_orders_of_their_own() -> None:
    plan = BlockPlan(500, 20, block_size=10, shuffle_buffer=5, seed=1)
    first = lists(plan)
    plan.set_epoch(1)
    assert lists(plan) != first
    assert lists(BlockPlan(500, 20, block_size=10, shuffle_buffer=5, seed=2)) != first
    assert isinstance(plan, DistributedSampler)  # Lightning leaves it as it is
    assert isinstance(plan, BatchSampler)


def test_an_iteration_keeps_the_order_it_was_begun_with() -> None:
    plan = BlockPlan(100, 10, block_size=5, shuffle_buffer=4)
    plan.seek(0, 3)
    expected = lists(plan)
    buffers = plan.buffers()
    plan.seek(4, 0)
    assert [batch.tolist() for buffer in buffers for batch in buffer] == expected


def test_minibatches_of_sorted_storage_are_like_draws_from_all() -> None:
    """Types in storage order: their numbers in a minibatch have the spread of random draws."""
    n, n_types, size = 64_000, 8, 128
    types = np.arange(n) * n_types // n

    def spread(sampler: BatchSampler) -> float:
        counts = [np.bincount(types[batch], minlength=n_types) for batch in sampler]
        return float(np.var(counts, axis=0).mean())

    expected = spread(BatchSampler(n, size, shuffle=True))
    # 128 blocks in a buffer add the variance of a draw of 128 blocks at most.
    mixed = spread(BlockPlan(n, size, block_size=64, shuffle_buffer=128))
    assert 0.9 * expected < mixed < 2.2 * expected
    better = spread(BlockPlan(n, size, block_size=16, shuffle_buffer=512))
    assert better < 1.35 * expected
    one_block = spread(BlockPlan(n, size, block_size=64, shuffle_buffer=1))
    assert one_block > 10 * expected


def test_neighbours_in_storage_are_spread_over_the_buffer() -> None:
    """Steps between two neighbours: on average a third of a buffer, as for independent places."""
    n, size, block, n_blocks = 32_000, 100, 50, 64
    plan = BlockPlan(n, size, block, n_blocks)
    step = np.empty(n)
    for number, batch in enumerate(plan):
        step[batch] = number
    apart = np.abs(np.diff(step))
    within = (np.arange(n - 1) + 1) % block != 0
    steps = block * n_blocks / size
    # The mean distance of two of `steps` places that are drawn at random is steps / 3.
    assert apart[within].mean() == pytest.approx(steps / 3, rel=0.05)
    assert (apart[within] == 0).mean() == pytest.approx(1 / steps, rel=0.1)


def test_every_place_is_reached_over_epochs() -> None:
    """The step of an observation has the mean of a uniform one."""
    plan = BlockPlan(400, 10, block_size=10, shuffle_buffer=4)
    total = np.zeros(400)
    for epoch in range(200):
        plan.set_epoch(epoch)
        for number, batch in enumerate(plan):
            total[batch] += number
    # Uniform over 40 steps: mean 19.5, sd 11.5 / sqrt(200) = 0.82.
    assert np.abs(total / 200 - 19.5).max() < 5 * 0.82


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"world": 11}, "leave a rank with 0 observations for 1 steps"),
        ({"batch_size": 1, "world": 3}, "leave a rank with 3 observations for 4 steps"),
    ],
)
def test_plans_that_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        BlockPlan(**{"positions": 10, "batch_size": 4, **options})
