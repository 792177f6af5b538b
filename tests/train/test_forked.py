"""Training in forked processes, as in a notebook: what this process knows of it afterwards."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tests.train.toys import (
    QUIET,
    Amortised,
    Local,
    Mean,
    assert_same,
    assert_same_training,
    parameters,
    scvi,
    toy,
)

from pyrovi._parallel import run_in_processes
from pyrovi.data import open_store
from pyrovi.data.sources import ArraySource
from pyrovi.errors import DataError, InferenceError, TrainingError
from pyrovi.model import SCVI
from pyrovi.train import progress

FORKS = {"strategy": "ddp_fork", "devices": 2, **QUIET}
NO_WARMUP = {"plan_kwargs": {"n_epochs_kl_warmup": 0}}


def test_two_processes_take_the_steps_of_one():
    """Nothing is random in this model: halves of the data have the mean gradient of all."""
    one, two = toy(Mean, guide="delta"), toy(Mean, guide="delta")
    for epochs in (3, 2):  # the second call goes on with the optimiser of the first
        one.train(epochs, batch_size=24, train_size=1.0, lr=0.1, **QUIET)
        two.train(epochs, batch_size=12, train_size=1.0, lr=0.1, **FORKS)
    for name, value in parameters(one).items():
        assert torch.allclose(value, parameters(two)[name], atol=1e-6)
    assert two.is_trained
    assert not two.module.training
    assert two._training.epochs == two._training.state["steps"] == 5
    assert int(two._training.state["optimizer"]["state"][0]["step"]) == 5
    assert one.history.keys() == two.history.keys()
    for name, frame in one.history.items():
        assert np.allclose(frame, two.history[name], rtol=1e-5), name


def test_going_on_and_resuming_are_one_run(tmp_path):
    """Parameters, optimiser and history, to the last bit."""
    options = {"batch_size": 3, **NO_WARMUP, **FORKS}
    whole, parts, resumed = (toy(Amortised) for _ in range(3))
    whole.train(4, **options)
    parts.train(2, enable_checkpointing=True, default_root_dir=str(tmp_path), **options)
    resumed.train(4, ckpt_path=tmp_path / "last.ckpt", **options)
    parts.train(2, **options)
    assert_same_training(parts, whole)
    assert_same_training(resumed, whole)


def test_the_reason_to_stop_comes_back():
    stop = {"early_stopping": True, "early_stopping_patience": 1, "lr": 0.3, "batch_size": 20}
    model = scvi()
    model.train(60, **stop, **NO_WARMUP, **FORKS)
    assert model._training.epochs == len(model.history["elbo_validation"]) < 60
    assert "elbo_validation has not improved for 1 checks" in model._training.stopping_reason


def test_a_loss_that_is_nan_is_told_as_in_one_process():
    told, options = [], {"plan_kwargs": {"lr": 1e20}, "max_epochs": 3, **QUIET}
    for more in ({}, {"strategy": "ddp_fork", "devices": 1}):
        model = scvi()
        with pytest.raises(InferenceError, match="Usual remedies") as caught:
            model.train(**options, **more)
        told.append(str(caught.value).split(" in epoch ")[0])
    before = "A forked process failed, and the parameters are those from before the training: "
    assert told[1] == before + told[0]
    assert "end of the epoch before" not in str(caught.value)  # which is not handed back


class _Raise(Callback):
    """Ends the training in its process."""

    def __init__(self, error):
        self.error = error

    def on_train_epoch_end(self, trainer, plan):
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DataError("one line\nanother line"), DataError, "the training: one line\nanother line"),
        (
            OSError("the disk\n  is gone"),
            TrainingError,
            "the training: OSError: the disk\n  is gone",
        ),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_what_ends_a_process_ends_the_training(error, kind, message):
    """An interrupt of the forked process alone, too, which torch takes for its success."""
    model = toy(Amortised)
    with pytest.raises(kind) as caught:
        model.train(2, callbacks=[_Raise(error)], **FORKS | {"devices": 1})
    assert str(caught.value).endswith(message)
    assert not model.is_trained


def test_errors_of_the_processes_are_told():
    model = toy(Local)
    before = parameters(model)
    with pytest.raises(TrainingError, match=r"from before the training: .*not data-parallel"):
        model.train(1, **FORKS)
    assert not model.is_trained
    assert_same(parameters(model), before)


class _Interrupt(Callback):
    """Reaches, once training is under way, the process that waits for it."""

    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx):
        if trainer.local_rank == 0:
            os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)


@pytest.fixture
def interruptible():
    """A job in the background of a shell ignores interrupts, and so do its tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_the_processes(interruptible):
    model = toy(Amortised)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        model.train(2, callbacks=[_Interrupt()], **FORKS)
    assert time.monotonic() - started < 30
    assert not model.is_trained
    assert "MASTER_PORT" not in os.environ  # that port may be taken for a while
    model.train(1, **FORKS)
    assert model.is_trained


def test_only_the_process_of_a_notebook_can_show_a_bar(monkeypatch):
    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=shell))
    assert progress._in_notebook()
    assert run_in_processes(lambda _: progress._in_notebook(), [0, 1], 2) == [False, False]


def test_processes_that_cannot_be_forked_are_refused(monkeypatch, tmp_path):
    model = toy(Amortised)
    with pytest.raises(TrainingError, match=r"'ddp_spawn'.*python train.py.*strategy='ddp'"):
        model.train(1, **FORKS | {"strategy": "ddp_spawn"})
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_initialized", lambda: True)
        with pytest.raises(TrainingError, match=r"not possible once this one uses a GPU.*train.py"):
            model.train(1, **FORKS)
    cells = scvi().adata
    cells.write_h5ad(tmp_path / "cells.h5ad")
    cells = open_store(tmp_path / "cells.h5ad")
    SCVI.setup_anndata(cells, batch_key="batch")
    monkeypatch.setattr(ArraySource, "fork_safe", False, raising=False)
    with pytest.raises(DataError, match="cannot read these data: their store runs threads"):
        SCVI(cells, n_hidden=4, n_latent=2).train(1, **FORKS)
