"""Minibatch: a mapping of tensors with the plate it comes from."""

from __future__ import annotations

import pickle

import pytest
import torch

from pyrovi.dataloaders import Minibatch
from pyrovi.errors import DataError, MissingKeyError


@pytest.fixture
def batch() -> Minibatch:
    return Minibatch(
        {"X": torch.arange(6.0).reshape(3, 2), "batch": torch.tensor([[0], [1], [0]])},
        torch.tensor([5, 2, 9]),
        n_obs=40,
    )


def test_it_is_a_mapping_of_tensors(batch: Minibatch) -> None:
    assert list(batch) == ["X", "batch"]
    assert len(batch) == 2
    assert batch.n == 3
    assert batch.n_obs == 40
    assert "X" in batch
    assert "y" not in batch
    assert dict(**batch)["X"] is batch["X"]
    assert batch == batch
    assert repr(batch) == "Minibatch(n=3, n_obs=40, {X: (3, 2), batch: (3, 1)})"


def test_missing_tensor_names_what_there_is(batch: Minibatch) -> None:
    with pytest.raises(MissingKeyError, match="no tensor 'labels'; it has: X, batch"):
        batch["labels"]
    assert batch.get("labels") is None


def test_replace_leaves_the_original(batch: Minibatch) -> None:
    other = batch.replace(n_obs=7)
    assert (other.n_obs, batch.n_obs) == (7, 40)
    assert other["X"] is batch["X"]
    other.tensors["new"] = torch.zeros(3, 1)
    assert "new" not in batch
    with pytest.raises(TypeError, match=r"tensors, indices, n_obs, got .'size'."):
        batch.replace(size=3)


def test_to_makes_sparse_tensors_dense(batch: Minibatch) -> None:
    sparse = batch.replace(tensors={**batch, "X": batch["X"].to_sparse_csr()})
    moved = sparse.to("cpu")
    assert moved["X"].layout == torch.strided
    assert torch.equal(moved["X"], batch["X"])
    assert torch.equal(moved["batch"], batch["batch"])
    assert sparse["X"].layout == torch.sparse_csr


def test_to_moves_everything(batch: Minibatch) -> None:
    moved = batch.to("meta", non_blocking=True)
    assert {t.device.type for t in [*moved.values(), moved.indices]} == {"meta"}
    assert moved.n == 3


def test_pickling(batch: Minibatch) -> None:
    copied = pickle.loads(pickle.dumps(batch))
    assert torch.equal(copied["X"], batch["X"])
    assert torch.equal(copied.indices, batch.indices)
    assert copied.n_obs == 40


def test_bad_arguments() -> None:
    with pytest.raises(DataError, match=r"one-dimensional, got shape \(1, 1\)"):
        Minibatch({}, torch.zeros(1, 1), 3)
    with pytest.raises(DataError, match="at least 1, got 0"):
        Minibatch({}, torch.zeros(1), 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_and_moved_to_cuda(batch: Minibatch) -> None:
    sparse = batch.replace(tensors={**batch, "X": batch["X"].to_sparse_csr()})
    pinned = sparse.pin_memory()
    assert pinned["batch"].is_pinned()
    moved = pinned.to("cuda", non_blocking=True)
    assert moved["X"].layout == torch.strided
    assert torch.equal(moved["X"].cpu(), batch["X"])
