"""``model.train``: how the data reach the training."""

from __future__ import annotations

import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
import torch
from lightning.pytorch.callbacks import Callback
from tests.train.toys import (
    QUIET,
    Amortised,
    Local,
    assert_same,
    assert_same_training,
    counts,
    normal_data,
    parameters,
    scvi,
    toy,
)

import pyrovi as pv
from pyrovi.dataloaders import DeviceBackedLoader
from pyrovi.errors import DataError, TrainingError
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


def test_minibatches_on_the_device_are_those_of_memory():
    """The same bits, of minibatches that are cut from what is there."""
    ends, seen = [], []
    for on_device in (False, True):
        model = scvi()
        look = _Look()
        model.train(3, batch_size=20, on_device=on_device, callbacks=[look], **QUIET)
        ends.append(model)
        seen.append(look.seen)
    assert_same_training(*ends)
    assert seen[0] == seen[1] == [18] * 12  # 72 training observations, 4 minibatches an epoch
    assert isinstance(look.loader, DeviceBackedLoader)
    assert look.loader.device.type == "cpu"


def test_options_of_data_on_the_device():
    model, given = scvi(), {"datasplitter_kwargs": {"num_workers": 2}}
    for options in ({"on_device": True, "batch_size": 20}, {"batch_size": None}):
        with pytest.raises(TrainingError, match="'num_workers', which data on the device"):
            model.train(1, **options, **given, **QUIET)
        with pytest.raises(TrainingError, match="load_sparse_tensor=True has no effect"):
            model.train(1, **options, load_sparse_tensor=True, **QUIET)
    for options in ({"batch_size": 64}, {"on_device": True}):
        with pytest.raises(TrainingError, match=r"of train itself: train\(.*=(64|True)"):
            model.train(1, batch_size=None, datasplitter_kwargs=options, **QUIET)
    model.train(1, batch_size=20, on_device=True, n_restarts=2, num_workers=1, **QUIET)
    assert model._training.options["on_device"]


@pytest.mark.parametrize("size", [0, -1, "all", 64.5, [3]])
@pytest.mark.parametrize("make", [scvi, lambda: pv.from_pyro(_mean, {"x": np.zeros(9)})])
def test_wrong_batch_sizes_are_named(make, size):
    with pytest.raises(DataError, match=f"batch_size must be .* got {re.escape(repr(size))}"):
        make().train(1, batch_size=size, **QUIET)


def _mean(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pv.obs_plate():
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


class _Look(Callback):
    def __init__(self):
        self.seen, self.loader = [], None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(batch.n)
        self.loader = trainer.train_dataloader


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


def test_two_learning_rates_are_an_error():
    model = toy(Amortised)
    with pytest.raises(TrainingError, match=r"lr=0.1 and plan_kwargs=\{'lr': 0.2\}"):
        model.train(1, lr=0.1, plan_kwargs={"lr": 0.2}, **QUIET)
