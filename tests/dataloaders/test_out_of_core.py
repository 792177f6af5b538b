"""Data on disk: read by buffers, in bounded memory, and the same as in memory."""

from __future__ import annotations

import gc
import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import pyrovi as pv
from pyrovi.data import AnnDataManager, StoredMatrix, open_store, shuffled_store, sources
from pyrovi.data.joined import JoinedSource
from pyrovi.data.sources import MemorySource
from pyrovi.dataloaders import AnnDataLoader, AnnTorchDataset, BlockPlan, DataSplitter, dataset
from pyrovi.errors import DataError

N_OBS, N_VARS = 600, 30


class Generated:
    """A source that makes its rows, and keeps account of what is read."""

    chunk_rows = 1
    shuffled = False

    def __init__(self, n_rows: int, n_columns: int = 4, is_sparse: bool = False) -> None:
        self.shape = (n_rows, n_columns)
        self.row_bytes = 8 * n_columns
        self.is_sparse = is_sparse
        self.was_read: list[int] = []
        self.broken_at: int | None = None

    def read(self, start: int, stop: int) -> Any:
        if self.broken_at is not None and start <= self.broken_at < stop:
            raise OSError("the disk is gone")
        self.was_read += range(start, stop)
        rows = np.repeat(np.arange(start, stop, dtype=np.float32)[:, None], self.shape[1], 1)
        return sp.csr_matrix(rows) if self.is_sparse else rows


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 observations and more, buffers of 64 rows of `Generated`."""
    monkeypatch.setattr(dataset, "BUFFER_BYTES", 2048)
    monkeypatch.setattr(dataset, "_BLOCK_ROWS", 8)
    monkeypatch.setattr(dataset, "_LEAST_BLOCKS", 4)


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    return pv.data.synthetic_iid(batch_size=N_OBS // 2, n_genes=N_VARS, n_batches=2, seed=1)


def stores(cells: anndata.AnnData, folder: Path) -> dict[str, Callable[[], anndata.AnnData]]:
    dense, sparse = cells.copy(), cells.copy()
    sparse.X = sp.csr_matrix(sparse.X)
    dense.X = sparse.X.toarray()
    dense.write_h5ad(folder / "dense.h5ad")
    sparse.write_h5ad(folder / "csr.h5ad")
    shuffled_store(folder / "csr.h5ad", folder / "csr.zarr")
    return {
        name: lambda name=name: open_store(folder / name)
        for name in ("dense.h5ad", "csr.h5ad", "csr.zarr")
    }


@pytest.mark.parametrize("name", ["dense.h5ad", "csr.h5ad", "csr.zarr"])
@pytest.mark.parametrize("options", [{}, {"load_sparse_tensor": True}, {"pin_memory": True}])
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
@pytest.mark.usefixtures("small_buffers")
def test_rows_of_every_store(
    name: str, options: dict[str, bool], cells: anndata.AnnData, tmp_path: Path
) -> None:
    adata = stores(cells, tmp_path)[name]()
    pv.model.SCVI.setup_anndata(adata, batch_key="batch")
    manager = pv.model.SCVI(adata).adata_manager
    chosen = np.flatnonzero(np.random.default_rng(0).random(N_OBS) < 0.7)
    whole = cells[adata.obs_names]
    x = whole.X.toarray() if sp.issparse(whole.X) else np.asarray(whole.X)
    batch = whole.obs["batch"].cat.codes.to_numpy()
    shuffled = AnnDataLoader(manager, chosen, batch_size=20, shuffle=True, **options)
    assert isinstance(shuffled.sampler, BlockPlan)
    in_order = AnnDataLoader(manager, chosen, batch_size=20, **options)
    for loader, same_order in ((shuffled, False), (in_order, True)):
        seen = []
        for minibatch in loader:
            given = minibatch.to("cpu")
            np.testing.assert_array_equal(given["X"].numpy(), x[given.indices])
            np.testing.assert_array_equal(given["batch"][:, 0].numpy(), batch[given.indices])
            seen += given.indices.tolist()
        assert sorted(seen) == chosen.tolist()
        assert (seen == chosen.tolist()) == same_order


@pytest.mark.usefixtures("small_buffers")
def test_the_plan_in_memory_gives_the_same_minibatches(manager_of: Callable[[Any], Any]) -> None:
    source = Generated(500, is_sparse=True)
    disk = AnnDataLoader(manager_of(source), batch_size=10, shuffle=True, seed=3)
    plan = disk.sampler
    assert isinstance(plan, BlockPlan)
    assert (plan.block_size, plan.shuffle_buffer) == (8, 8)
    memory = AnnDataLoader(
        manager_of(source.read(0, 500)),
        sampler=BlockPlan(500, 10, plan.block_size, plan.shuffle_buffer, seed=3),
    )
    for _ in range(2):
        for one, other in zip(disk, memory, strict=True):
            assert torch.equal(one.indices, other.indices)
            assert torch.equal(one["X"], other["X"])


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("n_done", [0, 1, 6, 7, 30, 49, 50])
def test_resuming_reads_only_what_is_to_come(
    n_done: int, manager_of: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_MANY_ROWS", 1)  # no row is read to be dropped

    def make(source: Generated) -> AnnDataLoader:
        return AnnDataLoader(manager_of(source), batch_size=10, shuffle=True)

    whole = make(Generated(500))
    whole.set_epoch(1)
    expected = [batch.indices.tolist() for batch in chain(whole, whole)]
    loader = make(Generated(500))
    loader.set_epoch(1)
    batches = iter(loader)
    for _ in range(n_done):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    batches.close()
    source = Generated(500)
    resumed = make(source)
    resumed.load_state_dict(state)
    found = [batch.indices.tolist() for batch in resumed]
    end = 50 if n_done < 50 else 100  # a complete epoch is followed by the next one
    assert found == expected[n_done:end]
    assert sorted(source.was_read) == sorted(chain.from_iterable(expected[n_done:end]))


@pytest.mark.usefixtures("small_buffers")
def test_a_plan_that_differs_is_not_resumed(
    manager_of: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = AnnDataLoader(manager_of(Generated(500)), batch_size=10, shuffle=True)
    batches = iter(loader)
    next(batches)
    monkeypatch.setattr(dataset, "_BLOCK_ROWS", 4)
    other = AnnDataLoader(manager_of(Generated(500)), batch_size=10, shuffle=True)
    with pytest.raises(DataError, match="the saved loader has block_size=8, this one 4"):
        other.load_state_dict(loader.state_dict())


def reading_threads() -> list[threading.Thread]:
    gc.collect()
    found = [t for t in threading.enumerate() if t.name.startswith("pyrovi-loader")]
    for thread in found:
        thread.join(5)  # one read may be under way
    return [t for t in found if t.is_alive()]


def interrupt(batches: Iterator[Any]) -> None:
    for _ in batches:
        raise KeyboardInterrupt


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("end", ["closed", "kept", "interrupted", "whole"])
def test_no_thread_is_left(end: str, manager_of: Callable[[Any], Any]) -> None:
    loader = AnnDataLoader(manager_of(Generated(500)), batch_size=10, shuffle=True)
    batches = iter(loader)
    next(batches)
    if end == "closed":
        batches.close()
    elif end == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            interrupt(batches)
    elif end == "whole":
        assert len(list(batches)) == 49
    assert reading_threads() == []  # even while the iterator is kept
    if end == "kept":
        assert len(list(batches)) == 49


@pytest.mark.usefixtures("small_buffers")
def test_an_error_of_the_thread_is_raised(manager_of: Callable[[Any], Any]) -> None:
    source = Generated(500)
    source.broken_at = 250
    loader = AnnDataLoader(manager_of(source), batch_size=10)
    with pytest.raises(OSError, match="the disk is gone"):
        list(loader)
    assert reading_threads() == []


def test_memory_is_bounded_by_the_buffer(
    manager_of: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "BUFFER_BYTES", 2**20)
    source = Generated(40_000, 100, is_sparse=True)  # 32 MB
    for shuffle in (True, False):
        loader = AnnDataLoader(manager_of(source), batch_size=100, shuffle=shuffle)
        tracemalloc.start()
        for _ in loader:
            source.was_read.clear()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # The buffer, the next one with its pieces; 8 MB of dense minibatches; positions.
        assert peak < 8 * 2**20 + 8e6


@pytest.mark.usefixtures("small_buffers")
def test_a_split_of_data_on_disk(manager_of: Callable[[Any], Any], ranks: Any) -> None:
    data = DataSplitter(manager_of(Generated(500)), batch_size=16, seed=0)
    train, validation = data.train_dataloader(), data.val_dataloader()
    seen = [i for batch in train for i in batch.indices.tolist()]
    assert sorted(seen) == data.train_idx.tolist()
    assert [i for b in validation for i in b.indices.tolist()] == data.val_idx.tolist()
    assert {batch.n_obs for batch in train} == {450}
    shares, steps = [], []
    for rank in range(4):
        ranks(rank, 4)
        loader = data.train_dataloader()
        assert isinstance(loader.sampler, BlockPlan)
        batches = [batch.indices.tolist() for batch in loader]
        steps.append(len(batches))
        shares += list(chain.from_iterable(batches))
    assert sorted(shares) == data.train_idx.tolist()  # each once, over all ranks
    assert len(set(steps)) == 1


def test_small_data_on_disk_are_shuffled_as_in_memory(manager_of: Callable[[Any], Any]) -> None:
    source = Generated(500)
    disk = AnnDataLoader(manager_of(source), batch_size=16, shuffle=True)
    memory = AnnDataLoader(manager_of(source.read(0, 500)), batch_size=16, shuffle=True)
    for one, other in zip(disk, memory, strict=True):
        assert torch.equal(one["X"], other["X"])


def test_blocks_fit_the_storage(
    manager_of: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "BUFFER_BYTES", 32 * 10_000)
    source = Generated(50_000)
    rows = AnnTorchDataset(manager_of(source))
    assert rows.buffer_sizes() == (128, 78)
    source.chunk_rows = 400  # what storage hands out at once
    assert rows.buffer_sizes() == (400, 25)
    source.chunk_rows = 5000  # but a buffer holds several
    assert rows.buffer_sizes() == (625, 16)
    source.chunk_rows, source.shuffled = 1, True
    assert rows.buffer_sizes() == (625, 16)
    assert not AnnTorchDataset(manager_of(np.zeros((5, 4), np.float32))).on_disk


@pytest.mark.parametrize("buffers", ["one", "many"])
def test_a_model_trained_from_disk_is_the_one_trained_in_memory(
    buffers: str, cells: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if buffers == "many":
        monkeypatch.setattr(dataset, "BUFFER_BYTES", 2**14)
        monkeypatch.setattr(dataset, "_BLOCK_ROWS", 8)
        # The order of the one on disk for the one in memory, too.
        monkeypatch.setattr(AnnTorchDataset, "on_disk", property(lambda self: True))
        monkeypatch.setattr(AnnTorchDataset, "buffer_sizes", lambda self: (8, 10))
    cells = cells.copy()
    cells.X = sp.csr_matrix(cells.X)
    cells.write_h5ad(tmp_path / "a.h5ad")
    results = []
    for adata in (cells, open_store(tmp_path / "a.h5ad")):
        pv.settings.seed = 2
        pv.model.SCVI.setup_anndata(adata, batch_key="batch")
        model = pv.model.SCVI(adata, n_hidden=8, n_latent=2)
        model.train(max_epochs=2, batch_size=50, accelerator="cpu", enable_progress_bar=False)
        results.append(
            (model.module.state_dict(), model.history, model.get_latent_representation())
        )
    (parameters, history, latent), (others, history2, latent2) = results
    assert all(torch.equal(parameters[name], others[name]) for name in parameters)
    assert history["elbo_train"].equals(history2["elbo_train"])
    assert history["elbo_validation"].equals(history2["elbo_validation"])
    np.testing.assert_array_equal(latent, latent2)


def test_index_types_that_differ_are_made_one() -> None:
    """SciPy would convert the indices of the whole matrix at every minibatch."""
    from pyrovi.dataloaders.rows import as_rows

    matrix = sp.random(50, 9, 0.3, format="csr", dtype=np.float32, rng=0)
    expected = matrix.toarray()
    matrix.indptr = matrix.indptr.astype(np.int64)
    rows = as_rows("X", matrix)
    assert rows.source.indptr.dtype == rows.source.indices.dtype == np.int32
    assert np.shares_memory(rows.source.data, matrix.data)
    np.testing.assert_array_equal(rows.take(np.array([4, 2])).toarray(), expected[[4, 2]])
    assert matrix.indptr.dtype == np.int64  # the caller's matrix is left as it was


def test_workers_are_not_forked_where_they_could_not_read(
    manager_of: Callable[[Any], Any],
) -> None:
    """What reads through such a source is such a source; workers of another kind may read."""
    source = Generated(40)
    assert AnnTorchDataset(manager_of(source)).fork_safe
    source.fork_safe, source.dtype = False, np.dtype(np.float32)
    joined = JoinedSource([MemorySource(np.ones((3, 4))), source], shuffled=False)
    for data in (source, joined, StoredMatrix(joined), StoredMatrix(source).select([3, 1])):
        manager = manager_of(data)
        assert not AnnTorchDataset(manager).fork_safe
        for context in (None, "fork", get_context("fork")):
            with pytest.raises(DataError, match=r"cannot read these data.*Use num_workers=0"):
                AnnDataLoader(manager, num_workers=1, multiprocessing_context=context)
        AnnDataLoader(manager, num_workers=1, multiprocessing_context="spawn")
        AnnDataLoader(manager, num_workers=1, multiprocessing_context=get_context("spawn"))
    (minibatch,) = AnnDataLoader(manager_of(source), num_workers=0)
    np.testing.assert_array_equal(minibatch["X"][:, 0], np.arange(40))


class Asked(Exception):
    """Whether the work could be done in a fork."""


@pytest.mark.filterwarnings("ignore:The model has trained parameters without a prior")
@pytest.mark.parametrize("safe", [True, False])
def test_whoever_forks_asks_the_data(
    safe: bool, cells: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(fork_safe: bool) -> bool:
        raise Asked(fork_safe)

    adata = stores(cells, tmp_path)["dense.h5ad"]()
    pv.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = pv.model.SCVI(adata, n_hidden=4, n_latent=2)
    monkeypatch.setattr(sources.ArraySource, "fork_safe", safe, raising=False)
    monkeypatch.setattr("pyrovi._parallel._can_fork", ask)
    works: list[Callable[..., Any]] = [
        lambda **workers: model.train(1, n_restarts=2, accelerator="cpu", **workers),
        lambda **workers: pv.criticism.cross_validate(model, num_folds=2, **workers),
        lambda **workers: pv.criticism.sbc(model, 2, observations=[0], **workers),
    ]
    for work in works:
        with pytest.raises(Asked) as asked:
            work(num_workers=2)
        assert asked.value.args == (safe,)


def test_missing_rows_are_named(manager_of: Callable[[Any], Any]) -> None:
    source = Generated(500)
    loader = AnnDataLoader(manager_of(source), batch_size=16)
    source.shape = (400, 4)
    with pytest.raises(DataError, match="Row 499 is wanted from a store of 400 rows"):
        list(islice(loader, 3))


def test_the_wrong_genes_are_named(cells: anndata.AnnData, tmp_path: Path) -> None:
    cells[:, ::-1].copy().write_h5ad(tmp_path / "a.h5ad")
    own = cells.copy()
    pv.model.SCVI.setup_anndata(own)
    manager: AnnDataManager = pv.model.SCVI(own).adata_manager
    with pytest.raises(pv.errors.RegistryError, match="var_names"):
        manager.transfer_fields(open_store(tmp_path / "a.h5ad"))
