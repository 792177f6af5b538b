"""Data on the device: the same minibatches, cut there."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pyrovi.data import AnnDataManager
from pyrovi.dataloaders import AnnDataLoader, AnnTorchDataset, DeviceBackedLoader
from pyrovi.errors import DataError

INDICES = np.arange(40, 3, -1)


def test_one_full_minibatch(manager: AnnDataManager, x: np.ndarray) -> None:
    loader = DeviceBackedLoader(AnnTorchDataset(manager), INDICES, n_obs=99)
    (batch,) = loader
    assert len(loader) == 1
    assert batch.indices.tolist() == INDICES.tolist()
    assert batch.n_obs == 99
    np.testing.assert_array_equal(batch["X"].numpy(), x[INDICES])
    (again,) = loader
    assert again["X"].data_ptr() == batch["X"].data_ptr()  # nothing is copied each epoch


@pytest.mark.parametrize("sparse", [False, True])
def test_the_same_minibatches_as_from_memory(manager: AnnDataManager, sparse: bool) -> None:
    rows = AnnTorchDataset(manager, load_sparse_tensor=sparse)
    on_device = DeviceBackedLoader(rows, INDICES, batch_size=7, shuffle=True)
    from_memory = AnnDataLoader(manager, INDICES, batch_size=7, shuffle=True)
    for _ in range(2):
        for one, other in zip(on_device, from_memory, strict=True):
            assert torch.equal(one.indices, other.indices)
            assert list(one) == list(other)
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_resuming(manager: AnnDataManager) -> None:
    rows = AnnTorchDataset(manager, ["X"])
    loader = DeviceBackedLoader(rows, batch_size=7, shuffle=True)
    whole = [b.indices.tolist() for b in loader]
    loader.set_epoch(0)
    assert [b.indices.tolist() for b in itertools.islice(loader, 3)] == whole[:3]
    other = DeviceBackedLoader(rows, batch_size=7, shuffle=True)
    other.load_state_dict(loader.state_dict())
    assert [b.indices.tolist() for b in other] == whole[3:]
    with pytest.raises(DataError, match="batch_size=7, this one 8"):
        DeviceBackedLoader(rows, batch_size=8, shuffle=True).load_state_dict(
            {**loader.state_dict(), "epoch": 0, "batches_seen": 3}
        )


def test_dropping_the_last_minibatch(manager: AnnDataManager) -> None:
    loader = DeviceBackedLoader(AnnTorchDataset(manager), batch_size=10, drop_last=True)
    assert [batch.n for batch in loader] == [10] * 5


def test_ranks_share_the_observations(manager: AnnDataManager, ranks: Callable[..., None]) -> None:
    seen = []
    for rank in range(3):
        ranks(rank, 3)
        (batch,) = DeviceBackedLoader(AnnTorchDataset(manager), distributed_sampler=True)
        assert (batch.n, batch.n_obs) == (18, 53)
        seen += batch.indices.tolist()
    assert seen == [*range(53), 0]
