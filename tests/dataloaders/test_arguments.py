"""What is no batch size and no manager: the same errors everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pytest

import pyrovi as pv
from pyrovi.data import AnnDataManager
from pyrovi.dataloaders import (
    AnnDataLoader,
    AnnTorchDataset,
    BatchSampler,
    BlockPlan,
    ConcatDataLoader,
    DataSplitter,
    DeviceBackedDataSplitter,
    DeviceBackedLoader,
    SemiSupervisedDataLoader,
    SemiSupervisedDataSplitter,
)
from pyrovi.errors import DataError

USERS: list[Callable[[Any, Any], Any]] = [
    lambda manager, size: AnnDataLoader(manager, batch_size=size),
    lambda manager, size: ConcatDataLoader(manager, [range(9)], batch_size=size),
    lambda manager, size: SemiSupervisedDataLoader(manager, batch_size=size),
    lambda manager, size: DeviceBackedLoader(AnnTorchDataset(manager), batch_size=size),
    lambda manager, size: DataSplitter(manager, batch_size=size).train_dataloader(),
    lambda manager, size: SemiSupervisedDataSplitter(manager, batch_size=size).train_dataloader(),
    lambda manager, size: DeviceBackedDataSplitter(manager, batch_size=size).train_dataloader(),
]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "batch_size must be at least 1, got 0"),
        (-3, "batch_size must be at least 1, got -3"),
        (2.5, "batch_size must be a whole number of observations, got 2.5; leave it out"),
        ("all", "whole number of observations, got 'all'"),
        (True, "whole number of observations, got True"),
    ],
)
def test_wrong_batch_sizes_are_named(manager: AnnDataManager, size: Any, message: str) -> None:
    for user in USERS:
        with pytest.raises(DataError, match=message):
            user(manager, size)
    for sampler in (BatchSampler, BlockPlan):
        with pytest.raises(DataError, match=message):
            sampler(100, size)


def test_whole_numbers_of_any_type_are_batch_sizes(manager: AnnDataManager) -> None:
    for user in USERS:
        assert len(user(manager, np.int32(7))) == len(user(manager, 7))


def test_what_is_no_manager_is_named(adata: anndata.AnnData) -> None:
    pv.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = pv.model.SCVI(adata, n_hidden=4, n_latent=2)
    for user in USERS:
        with pytest.raises(DataError, match=r"got anndata\.AnnData; register the data"):
            user(adata, 7)
        with pytest.raises(DataError, match=r"got pyrovi\.SCVI; give its adata_manager"):
            user(model, 7)
