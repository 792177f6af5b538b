"""``model.train``: how the data reach the training."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from lightning.pytorch.callbacks import Callback
from tests.train.toys import (
    QUIET,
    Amortised,
    Local,
    assert_same,
    counts,
    normal_data,
    parameters,
    scvi,
    toy,
)

from pyrovi.errors import TrainingError
from pyrovi.model.training import max_epochs_heuristic


def test_epochs_heuristic():
    assert [max_epochs_heuristic(n) for n in (1, 20_000, 40_000, 10**6, 10**9)] == [
        400,
        400,
        200,
        8,
        1,
    ]


def test_default_epochs_are_the_heuristic(monkeypatch):
    monkeypatch.setattr("pyrovi.model.training.max_epochs_heuristic", lambda n: n // 8)
    model = toy(Amortised)
    model.train(**QUIET)
    assert len(model.history["elbo_train"]) == 3


def test_external_indexing():
    split = [np.arange(10), np.arange(10, 15), np.arange(15, 20)]
    model = toy(Amortised)
    model.train(1, datasplitter_kwargs={"external_indexing": split}, **QUIET)
    for found, given in zip(
        (model.train_indices, model.validation_indices, model.test_indices), split, strict=True
    ):
        assert np.array_equal(np.sort(found), given)
    assert model.n_obs_training == 10


def test_full_batch_on_the_device_with_validation():
    model = scvi()
    model.train(3, batch_size=None, **QUIET)
    assert len(model.history["elbo_validation"]) == 3
    assert model._training.state["steps"] == 3


def test_sparse_minibatches_train_as_dense_ones():
    dense, sparse = counts(), counts()
    sparse.X = sp.csr_matrix(sparse.X)
    ends = []
    for adata, load_sparse in ((dense, False), (sparse, True), (sparse, False)):
        model = scvi(adata)
        model.train(2, batch_size=20, load_sparse_tensor=load_sparse, **QUIET)
        ends.append(parameters(model))
    assert_same(ends[0], ends[1])
    assert_same(ends[0], ends[2])
    with pytest.raises(TrainingError, match="batch_size=None"):
        scvi(sparse).train(1, batch_size=None, load_sparse_tensor=True, **QUIET)


def test_minibatches_of_one_observation():
    """Batch norm cannot train on one: minibatches are of about one size, 41 = 14 + 14 + 13."""
    model = scvi()
    indexing = {"external_indexing": [range(41), range(41, 80)]}
    model.train(2, batch_size=20, datasplitter_kwargs=indexing, **QUIET)
    assert model._training.state["steps"] == 6
    # at most two at a time, 5 = 2 + 2 + 1: every epoch leaves out another one
    pairs = scvi()
    pairs.train(
        2, batch_size=2, datasplitter_kwargs={"external_indexing": [range(5), range(41, 80)]},
        **QUIET,
    )  # fmt: skip
    assert pairs._training.state["steps"] == 4
    plain = toy(Amortised)
    plain.train(2, batch_size=2, datasplitter_kwargs={"external_indexing": [range(5)]}, **QUIET)
    assert plain._training.state["steps"] == 6


def test_failed_training_leaves_the_model_untrained():
    model = toy(Amortised)
    with pytest.raises(TrainingError):
        model.train(2, callbacks=[_Fail()], **QUIET)
    assert not model.is_trained
    model.train(1, **QUIET)
    assert model.is_trained


def test_rows_cannot_be_trained_on_other_data(tmp_path):
    model = toy(Local)
    model.train(1, **QUIET)
    model.save(tmp_path / "m")
    other = normal_data(30)
    loaded = Local.load(tmp_path / "m", other)
    with pytest.raises(TrainingError, match="one row for each of the 24"):
        loaded.train(1, **QUIET)
    z = loaded.sample_posterior("z", num_samples=500)["z"].mean("draw")  # but it can be queried
    assert np.allclose(z, 0.8 * other.X, atol=0.25)


class _Fail(Callback):
    def on_train_start(self, trainer, pl_module):
        raise TrainingError("on purpose")


def test_torch_optimiser_state_is_kept_only_for_the_same_plan():
    model = toy(Amortised)
    model.train(2, batch_size=None, **QUIET)
    model.train(1, batch_size=None, **QUIET)
    step = model._training.state["optimizer"]["state"][0]["step"]
    assert int(step) == 3
    model.train(1, batch_size=None, plan_kwargs={"optim": torch.optim.AdamW}, **QUIET)
    assert int(model._training.state["optimizer"]["state"][0]["step"]) == 1
    assert model._training.state["steps"] == 4
