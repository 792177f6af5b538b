"""DeviceBackedDataSplitter: whole sets on the device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pyrovi.data import AnnDataManager
from pyrovi.dataloaders import DeviceBackedDataSplitter
from pyrovi.errors import DataError


def test_full_sets(manager: AnnDataManager, x: np.ndarray) -> None:
    splitter = DeviceBackedDataSplitter(manager, 0.5, 0.25, accelerator="cpu")
    (train,) = splitter.train_dataloader()
    (val,) = splitter.val_dataloader()
    (test,) = splitter.test_dataloader()
    assert train.indices.tolist() == splitter.train_idx.tolist()
    assert val.indices.tolist() == splitter.val_idx.tolist()
    assert test.indices.tolist() == splitter.test_idx.tolist()
    assert train.n_obs == val.n_obs == test.n_obs == splitter.n_train
    np.testing.assert_array_equal(train["X"].numpy(), x[splitter.train_idx])


def test_shuffling(manager: AnnDataManager) -> None:
    splitter = DeviceBackedDataSplitter(
        manager, 0.5, accelerator="cpu", shuffle=True, shuffle_test_val=True, batch_size=8
    )
    for loader, indices in (
        (splitter.train_dataloader(), splitter.train_idx),
        (splitter.val_dataloader(), splitter.val_idx),
    ):
        orders = [torch.cat([b.indices for b in loader]).tolist() for _ in range(2)]
        assert sorted(orders[0]) == sorted(orders[1]) == indices.tolist()
        assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"accelerator": "cpu"}, "cpu"),
        ({"accelerator": "gpu"}, "cuda"),
        ({"accelerator": "gpu", "device": 1}, "cuda:1"),
        ({"device": "cuda:2"}, "cuda:2"),
        ({"device": torch.device("meta")}, "meta"),
    ],
)
def test_devices(manager: AnnDataManager, options: dict[str, Any], expected: str) -> None:
    splitter = DeviceBackedDataSplitter(manager, **options)
    assert splitter.resolve_device() == torch.device(expected)


def test_the_trainer_decides_where_it_is_attached(manager: AnnDataManager) -> None:
    splitter = DeviceBackedDataSplitter(manager, accelerator="cpu")
    splitter.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    assert splitter.resolve_device() == torch.device("meta")
    (batch,) = splitter.train_dataloader()
    assert batch["X"].device.type == "meta"


def test_unknown_accelerator(manager: AnnDataManager) -> None:
    with pytest.raises(DataError, match=r"accelerator must be 'auto' or one of .* got 'abacus'"):
        DeviceBackedDataSplitter(manager, accelerator="abacus")
