"""DataSplitter as Lightning uses it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from pyrovi._settings import settings
from pyrovi.data import AnnDataManager
from pyrovi.dataloaders import (
    AnnDataLoader,
    DataSplitter,
    SemiSupervisedDataLoader,
    SemiSupervisedDataSplitter,
)
from pyrovi.errors import DataError


class Recorder(pl.LightningModule):
    """Writes down what it is given; a weight makes it trainable."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[tuple[int, tuple[int, ...]]] = []
        self.validated: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.trained.append((self.current_epoch, tuple(batch.indices.tolist())))
        return self.weight * batch["X"].mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    splitter: pl.LightningDataModule, ckpt_path: Path | None = None, **options: Any
) -> tuple[Recorder, pl.Trainer]:
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, "num_sanity_val_steps": 0, **options},
    )
    trainer.fit(module, datamodule=splitter, ckpt_path=ckpt_path)
    return module, trainer


def test_importing_the_loaders_leaves_lightning_alone() -> None:
    code = (
        "import sys, pyrovi.dataloaders as d; assert 'DataSplitter' in dir(d); "
        "assert not any(m.partition('.')[0] == 'lightning' for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sets_and_loaders(manager: AnnDataManager) -> None:
    splitter = DataSplitter(manager, train_size=0.6, validation_size=0.3, batch_size=10)
    assert (splitter.n_train, splitter.n_val, splitter.n_test) == (32, 15, 6)
    loaders = [
        splitter.train_dataloader(),
        splitter.val_dataloader(),
        splitter.test_dataloader(),
    ]
    seen = [[i for b in loader for i in b.indices.tolist()] for loader in loaders]
    assert sorted(seen[0]) == splitter.train_idx.tolist() != seen[0]
    assert seen[1:] == [splitter.val_idx.tolist(), splitter.test_idx.tolist()]
    assert sorted(chain.from_iterable(seen)) == list(range(53))
    # The objective is the training objective on other observations.
    assert {batch.n_obs for loader in loaders for batch in loader} == {32}


def test_the_seed_is_read_at_construction(manager: AnnDataManager) -> None:
    settings.seed = 3
    splitter = DataSplitter(manager)
    expected = [b.indices.tolist() for b in splitter.train_dataloader()]
    same = DataSplitter(manager)
    settings.seed = 4
    assert [b.indices.tolist() for b in same.train_dataloader()] == expected
    assert DataSplitter(manager).train_idx.tolist() != splitter.train_idx.tolist()


def test_external_indexing(manager: AnnDataManager) -> None:
    splitter = DataSplitter(manager, external_indexing=[[9, 1], [4], [5]])
    assert splitter.train_idx.tolist() == [9, 1]
    assert (splitter.val_idx.tolist(), splitter.test_idx.tolist()) == ([4], [5])
    with pytest.raises(DataError, match="either external_indexing or sizes, got both"):
        DataSplitter(manager, train_size=0.5, external_indexing=[[9, 1]])


def test_options_reach_the_loaders(manager: AnnDataManager) -> None:
    splitter = DataSplitter(
        manager,
        batch_size=10,
        drop_last=True,
        load_sparse_tensor=True,
        data_and_attributes=["X"],
        num_workers=1,
    )
    train, val = splitter.train_dataloader(), splitter.val_dataloader()
    assert len(train) == 4
    assert train.num_workers == val.num_workers == 1
    assert sum(batch.n for batch in val) == 5
    (batch,) = val
    assert list(batch) == ["X"]
    assert batch["X"].layout == torch.sparse_csr


def test_every_rank_loads_its_share(manager: AnnDataManager, ranks: Callable[..., None]) -> None:
    splitter = DataSplitter(manager, batch_size=10)
    shares = []
    for rank in range(2):
        ranks(rank, 2)
        batches = list(splitter.train_dataloader())
        assert [b.n for b in batches] == [8, 8, 8]
        assert {b.n_obs for b in batches} == {48}
        shares += [i for b in batches for i in b.indices.tolist()]
    assert sorted(shares) == splitter.train_idx.tolist()
    whole = DataSplitter(manager, distributed_sampler=False).train_dataloader()
    assert sum(batch.n for batch in whole) == 48


def test_fit_sees_each_training_observation_once_per_epoch(manager: AnnDataManager) -> None:
    splitter = DataSplitter(manager, batch_size=10, load_sparse_tensor=True)
    module, _ = fit(splitter)
    loader = splitter.train_dataloader()
    expected = [(e, tuple(b.indices.tolist())) for e in range(2) for b in loader]
    assert module.trained == expected
    validated = torch.cat([batch.indices for batch in module.validated])
    assert validated.tolist() == splitter.val_idx.tolist() * 2
    assert all(batch["X"].layout == torch.strided for batch in module.validated)


def test_fit_without_validation_observations(manager: AnnDataManager) -> None:
    module, _ = fit(DataSplitter(manager, train_size=1.0, batch_size=10))
    assert len(module.trained) == 12
    assert module.validated == []


class Save(pl.Callback):
    """Writes a checkpoint after a number of steps."""

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.steps = path, steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("n_workers", [0, 1])
@pytest.mark.parametrize("steps", [3, 4, 5, 7, 10])
def test_fit_resumes_within_an_epoch(
    manager: AnnDataManager, tmp_path: Path, steps: int, n_workers: int
) -> None:
    """With five steps an epoch, a resumed fit does exactly the steps that were left."""

    def splitter() -> DataSplitter:
        return DataSplitter(manager, train_size=0.9, batch_size=10, num_workers=n_workers)

    path = tmp_path / "a.ckpt"
    whole, _ = fit(splitter(), max_epochs=3, callbacks=[Save(path, steps)])
    assert len(whole.trained) == 15
    resumed, _ = fit(splitter(), path, max_epochs=3)
    assert resumed.trained == whole.trained[steps:]


def test_semi_supervised_sets_are_stratified(manager: AnnDataManager) -> None:
    splitter = SemiSupervisedDataSplitter(manager, 0.5, 0.25, n_samples_per_label=4, batch_size=10)
    labelled = np.arange(53) % 4 != 2
    parts = [splitter.train_idx, splitter.val_idx, splitter.test_idx]
    assert [int(labelled[part].sum()) for part in parts] == [20, 10, 10]
    assert sorted(np.concatenate(parts).tolist()) == list(range(53))
    loader = splitter.train_dataloader()
    assert isinstance(loader, SemiSupervisedDataLoader)
    assert {b.n_obs for b, _ in loader} == {splitter.n_train}
    assert {b.n_obs for _, b in loader} == {20}
    assert len(loader.subsample_labels()) == 8
    val = splitter.val_dataloader()
    assert isinstance(val, AnnDataLoader)
    assert torch.cat([b.indices for b in val]).tolist() == splitter.val_idx.tolist()
    assert {b.n_obs for b in val} == {splitter.n_train}


def test_semi_supervised_without_labelled_training_observations(manager: AnnDataManager) -> None:
    splitter = SemiSupervisedDataSplitter(manager, external_indexing=[[2, 6, 10], [0, 1]])
    assert isinstance(splitter.train_dataloader(), AnnDataLoader)
