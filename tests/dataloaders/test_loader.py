"""AnnDataLoader: every observation once per epoch, in an order that can be repeated and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pyrovi._settings import settings
from pyrovi.data import AnnDataManager
from pyrovi.dataloaders import AnnDataLoader, AnnTorchDataset, BatchSampler, Minibatch
from pyrovi.errors import DataError, MissingKeyError


def order(loader: Any) -> list[int]:
    return torch.cat([batch.indices for batch in loader]).tolist()


def test_minibatches_hold_the_rows_of_their_indices(manager: AnnDataManager, x: np.ndarray) -> None:
    loader = AnnDataLoader(manager, batch_size=10, shuffle=True)
    seen = []
    for batch in loader:
        assert isinstance(batch, Minibatch)
        assert batch.n_obs == loader.n_obs == 53
        np.testing.assert_array_equal(batch["X"].numpy(), x[batch.indices])
        assert batch["X"].dtype == torch.float32
        assert batch["batch"].dtype == torch.int64
        assert batch["batch"][:, 0].tolist() == (batch.indices % 3).tolist()
        assert batch["length"].shape == (11, 1)
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(53))
    assert len(loader) == 6


def test_selection_by_positions_or_mask(manager: AnnDataManager) -> None:
    indices = np.array([50, 3, 3, 7])
    loader = AnnDataLoader(manager, indices, batch_size=3)
    assert order(loader) == [50, 3, 3, 7]
    assert loader.n_obs == 4
    assert sorted(order(AnnDataLoader(manager, indices, shuffle=True))) == [3, 3, 7, 50]
    indices[:] = 0
    assert order(loader) == [50, 3, 3, 7]
    mask = np.arange(53) % 10 == 1
    assert order(AnnDataLoader(manager, mask)) == [1, 11, 21, 31, 41, 51]


@pytest.mark.parametrize(
    ("indices", "message"),
    [([], "selects no observation"), ([True] * 52, "mask of length 52"), ([53], "position 53")],
)
def test_bad_selections(manager: AnnDataManager, indices: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        AnnDataLoader(manager, indices)


def test_unknown_options_are_named(manager: AnnDataManager) -> None:
    with pytest.raises(DataError, match=r"'zzz' is no option of a loader.*num_workers"):
        AnnDataLoader(manager, zzz=3)


def test_passes_move_on_and_set_epoch_goes_back(manager: AnnDataManager) -> None:
    loader = AnnDataLoader(manager, batch_size=10, shuffle=True)
    passes = [order(loader) for _ in range(3)]
    assert len({tuple(p) for p in passes}) == 3
    loader.set_epoch(1)
    assert order(loader) == passes[1]
    other = AnnDataLoader(manager, batch_size=10, shuffle=True)
    other.sampler.set_epoch(2)  # what Lightning calls
    assert order(other) == passes[2]
    assert order(AnnDataLoader(manager, batch_size=10, shuffle=True, seed=1)) != passes[0]


def test_an_interrupted_pass_begins_again(manager: AnnDataManager) -> None:
    loader = AnnDataLoader(manager, batch_size=10, shuffle=True)
    first = [batch.indices.tolist() for batch in islice(loader, 2)]
    assert [batch.indices.tolist() for batch in loader][:2] == first


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("n_done", [0, 1, 4, 5, 6])
def test_resuming_gives_exactly_what_was_to_come(
    manager: AnnDataManager, n_done: int, n_workers: int
) -> None:
    def make() -> AnnDataLoader:
        return AnnDataLoader(manager, batch_size=10, shuffle=True, num_workers=n_workers)

    loader = make()
    whole = [batch.indices.tolist() for batch in chain(loader, loader, loader)]
    loader = make()
    list(loader)
    batches = iter(loader)
    given = [next(batches).indices.tolist() for _ in range(n_done)]
    assert given == whole[6 : 6 + n_done]
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = make()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    resumed.set_epoch(state["epoch"])  # as a trainer does; must not rewind
    rest = [batch.indices.tolist() for batch in resumed]
    if n_done < 6:
        assert rest == whole[6 + n_done : 12]
        rest = [batch.indices.tolist() for batch in resumed]
    assert rest == whole[12:]


def test_a_state_within_an_epoch_fits_only_the_same_order(manager: AnnDataManager) -> None:
    loader = AnnDataLoader(manager, batch_size=10, shuffle=True)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    for options in ({"seed": 3}, {"batch_size": 7}, {"indices": range(40)}, {"shuffle": False}):
        other = AnnDataLoader(manager, **{"batch_size": 10, "shuffle": True, **options})
        with pytest.raises(DataError, match="Cannot continue an epoch: the saved loader has"):
            other.load_state_dict(state)
    list(batches)
    other = AnnDataLoader(manager, batch_size=7, shuffle=True)
    other.load_state_dict(loader.state_dict())  # between epochs everything fits
    assert other.state_dict()["epoch"] == 1


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"num_workers": 2, "load_sparse": True}])
def test_workers_change_nothing(
    manager: AnnDataManager, x: np.ndarray, options: dict[str, Any]
) -> None:
    sparse = bool(options.pop("load_sparse", False))
    settings.seed = 4
    alone = AnnDataLoader(manager, batch_size=10, shuffle=True)
    workers = AnnDataLoader(
        manager, batch_size=10, shuffle=True, load_sparse_tensor=sparse, **options
    )
    for _ in range(2):
        for one, other in zip(alone, workers, strict=True):
            assert one.indices.tolist() == other.indices.tolist()
            assert (other["X"].layout == torch.sparse_csr) == sparse
            assert torch.equal(one["X"], other.to("cpu")["X"])


def test_workers_can_stay_alive(manager: AnnDataManager) -> None:
    options = {"num_workers": 1, "persistent_workers": True}
    loader = AnnDataLoader(manager, batch_size=10, shuffle=True, **options)
    alone = AnnDataLoader(manager, batch_size=10, shuffle=True)
    assert [order(loader) for _ in range(3)] == [order(alone) for _ in range(3)]


def test_the_default_number_of_workers_is_the_setting(manager: AnnDataManager) -> None:
    settings.dl_num_workers = 1
    assert AnnDataLoader(manager).num_workers == 1
    assert AnnDataLoader(manager, num_workers=0).num_workers == 0


def test_the_default_batch_size_is_the_setting(manager: AnnDataManager) -> None:
    settings.batch_size = 20
    assert [batch.n for batch in AnnDataLoader(manager)] == [18, 18, 17]


def test_minibatches_are_of_about_one_size(manager: AnnDataManager) -> None:
    assert [b.n for b in AnnDataLoader(manager, batch_size=13)] == [11, 11, 11, 10, 10]
    assert [b.n for b in AnnDataLoader(manager, batch_size=13, drop_last=True)] == [13] * 4


def test_global_random_state_is_left_alone(manager: AnnDataManager) -> None:
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    order(AnnDataLoader(manager, batch_size=10, shuffle=True))
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


def test_plate_size_and_fields_can_be_chosen(manager: AnnDataManager) -> None:
    loader = AnnDataLoader(manager, [0, 1], n_obs=40, data_and_attributes={"batch": np.float32})
    (batch,) = loader
    assert batch.n_obs == 40
    assert list(batch) == ["batch"]
    assert batch["batch"].dtype == torch.float32
    with pytest.raises(MissingKeyError, match="'size_factor' is not registered"):
        AnnDataLoader(manager, data_and_attributes=["size_factor"])


def test_ndarrays(manager: AnnDataManager, x: np.ndarray) -> None:
    batches = list(AnnDataLoader(manager, batch_size=30, iter_ndarray=True))
    assert all(type(value) is np.ndarray for batch in batches for value in batch.values())
    np.testing.assert_array_equal(np.concatenate([batch["X"] for batch in batches]), x)
    with pytest.raises(DataError, match="exclude one another"):
        AnnDataLoader(manager, iter_ndarray=True, load_sparse_tensor=True)


def test_a_shared_dataset(manager: AnnDataManager) -> None:
    rows = AnnTorchDataset(manager, ["X"])
    (batch,) = AnnDataLoader(rows, [4, 2])
    assert list(batch) == ["X"]
    assert batch.indices.tolist() == [4, 2]
    with pytest.raises(DataError, match="fixed by the AnnTorchDataset"):
        AnnDataLoader(rows, data_and_attributes=["X"])


def test_ranks_share_the_observations(manager: AnnDataManager, ranks) -> None:
    shares, sizes = [], []
    for rank in range(4):
        ranks(rank, 4)
        loader = AnnDataLoader(manager, batch_size=5, shuffle=True, distributed_sampler=True)
        batches = list(loader)
        assert {batch.n_obs for batch in batches} == {53}
        sizes.append([batch.n for batch in batches])
        shares += [i for batch in batches for i in batch.indices.tolist()]
    assert sizes == [[5, 5, 4]] * 4
    assert set(shares) == set(range(53))
    assert len(shares) == 56
    # Queries see everything on every rank.
    assert order(AnnDataLoader(manager)) == list(range(53))


def test_own_batch_sampler(manager: AnnDataManager) -> None:
    sampler = BatchSampler(3, 2, rank=1, world=2)
    loader = AnnDataLoader(manager, [9, 8, 7], sampler=sampler)
    assert order(loader) == [7, 9]
    assert sampler.positions.tolist() == [0, 1, 2]
    assert loader.state_dict()["epoch"] == 1
    assert order(AnnDataLoader(manager, sampler=BatchSampler(np.array([5, 4]), 2))) == [5, 4]
    with pytest.raises(DataError, match="position 3, expected positions from 0 to 2"):
        AnnDataLoader(manager, [9, 8, 7], sampler=BatchSampler(4, 2))


def test_foreign_sampler(manager: AnnDataManager) -> None:
    loader = AnnDataLoader(manager, [9, 8, 7], sampler=[[2, 0], [1]])
    assert [batch.indices.tolist() for batch in loader] == [[7, 9], [8]]
    assert loader.state_dict() == {}
    loader.set_epoch(3)
    loader.load_state_dict({})
    with pytest.raises(DataError, match="sampler excludes shuffle"):
        AnnDataLoader(manager, sampler=[[0]], shuffle=True)


def test_reassigned_observations(manager: AnnDataManager) -> None:
    loader = AnnDataLoader(manager, [1, 2, 3], batch_size=2)
    loader.reassign(np.array([6, 5, 4]))
    assert order(loader) == [6, 5, 4]
    with pytest.raises(DataError, match=r"reassigned to 3 other observations .* got 2"):
        loader.reassign(np.array([6, 5]))
    with pytest.raises(DataError, match="position 53"):
        loader.reassign(np.array([6, 5, 53]))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_backed_h5ad(
    adata: anndata.AnnData,
    x: np.ndarray,
    tmp_path: Path,
    register: Callable[..., AnnDataManager],
    n_workers: int,
) -> None:
    adata.X = sp.csr_matrix(x)
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    loader = AnnDataLoader(register(backed), batch_size=10, shuffle=True, num_workers=n_workers)
    expected = AnnDataLoader(register(adata), batch_size=10, shuffle=True)
    for batch, same in zip(loader, expected, strict=True):
        assert batch.indices.tolist() == same.indices.tolist()
        for name in same:
            assert torch.equal(batch[name], same[name]), name


def test_backed_zarr_with_workers(
    x: np.ndarray, tmp_path: Path, manager_of: Callable[[Any], Any]
) -> None:
    import zarr
    from anndata.io import sparse_dataset, write_elem

    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    write_elem(group, "X", sp.csr_matrix(x))
    manager = manager_of(sparse_dataset(group["X"]))
    for n_workers in (0, 1):
        loader = AnnDataLoader(
            manager, batch_size=10, shuffle=True, num_workers=n_workers, timeout=60 * n_workers
        )
        for batch in loader:
            np.testing.assert_array_equal(batch["X"].numpy(), x[batch.indices])


def own_form(batch: Minibatch) -> tuple[str, int]:
    return "own", batch.n


@pytest.mark.parametrize("options", [{}, {"load_sparse_tensor": True}, {"num_workers": 1}])
def test_a_collate_fn_of_ones_own_is_used(manager: AnnDataManager, options: Any) -> None:
    loader = AnnDataLoader(manager, batch_size=10, collate_fn=own_form, **options)
    assert next(iter(loader))[0] == "own"
