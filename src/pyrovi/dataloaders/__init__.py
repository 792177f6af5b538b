"""Minibatches of registered data: datasets, samplers, loaders and splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrovi._lazy import lazy_attributes
from pyrovi.dataloaders.block_plan import BlockPlan
from pyrovi.dataloaders.concat import ConcatDataLoader
from pyrovi.dataloaders.dataset import AnnTorchDataset
from pyrovi.dataloaders.device_loader import DeviceBackedLoader
from pyrovi.dataloaders.distributed import distributed_rank_and_size
from pyrovi.dataloaders.loader import AnnDataLoader
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.dataloaders.samplers import BatchDistributedSampler, BatchSampler
from pyrovi.dataloaders.semi_supervised import SemiSupervisedDataLoader
from pyrovi.dataloaders.splits import Split, external_split, split_observations

if TYPE_CHECKING:
    from pyrovi.dataloaders.device_splitter import DeviceBackedDataSplitter
    from pyrovi.dataloaders.splitter import DataSplitter, SemiSupervisedDataSplitter

# These are Lightning data modules; Lightning is imported with them.
_LAZY = {
    "DataSplitter": "pyrovi.dataloaders.splitter",
    "SemiSupervisedDataSplitter": "pyrovi.dataloaders.splitter",
    "DeviceBackedDataSplitter": "pyrovi.dataloaders.device_splitter",
}

__all__ = [
    "AnnDataLoader",
    "AnnTorchDataset",
    "BatchDistributedSampler",
    "BatchSampler",
    "BlockPlan",
    "ConcatDataLoader",
    "DataSplitter",
    "DeviceBackedDataSplitter",
    "DeviceBackedLoader",
    "Minibatch",
    "SemiSupervisedDataLoader",
    "SemiSupervisedDataSplitter",
    "Split",
    "distributed_rank_and_size",
    "external_split",
    "split_observations",
]

__getattr__, _ = lazy_attributes(__name__, _LAZY)


def __dir__() -> list[str]:
    return sorted(__all__)
