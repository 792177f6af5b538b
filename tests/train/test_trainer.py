"""Callbacks, loggers, the progress bar and the options of the trainer."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from tests.train.toys import QUIET, Amortised, Mean, assert_same, parameters, scvi, toy

from pyrovi.errors import TrainingError
from pyrovi.train import BestCheckpoint, ELBOConvergence
from pyrovi.train import progress as progress_file

SGD = {"optim": torch.optim.SGD}


def worse(model):
    """Options under which validation only ever gets worse: a full-speed climb is not possible, so
    the validation observations are far from the training ones."""
    model.adata.X[16:] -= 20
    return {"datasplitter_kwargs": {"external_indexing": [range(16), range(16, 24)]}}


def test_early_stopping_waits_for_the_warmup_and_restores_the_best():
    model = toy(Mean, guide="delta")
    model.train(
        40, lr=0.05, early_stopping=True, early_stopping_patience=3,
        plan_kwargs={"n_epochs_kl_warmup": 5}, **worse(model), **QUIET,
    )  # fmt: skip
    epochs = len(model.history["elbo_train"])
    assert epochs == 5 + 1 + 3  # warm-up, the best, and patience
    assert "elbo_validation has not improved" in model._training.stopping_reason
    best = model.history["elbo_validation"].iloc[5, 0]
    held_out = -model.get_elbo(indices=model.validation_indices)
    assert held_out == pytest.approx(best, rel=1e-5)


def test_best_epoch_by_a_training_metric():
    model = toy(Mean, guide="delta")
    states = []

    class Keep(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            states.append({k: v.clone() for k, v in pl_module.module.state_dict().items()})

    model.train(
        6, batch_size=None, train_size=1.0, callbacks=[BestCheckpoint("elbo_train", "max"), Keep()],
        plan_kwargs={"n_epochs_kl_warmup": 0, "lr": 0.1}, **QUIET,
    )  # fmt: skip
    values = model.history["elbo_train"]["elbo_train"]
    assert_same(parameters(model), states[int(values.idxmax())])


EVERY_OTHER = {"check_val_every_n_epoch": 2}


def test_plateau_counts_epochs_with_a_validation_only():
    """Validation gets worse in every check (epochs 1, 3, 5, ...): the third bad one reduces."""
    model = toy(Mean, guide="delta")
    plateau = {"reduce_lr_on_plateau": True, "lr_patience": 1, "lr_factor": 0.5, **SGD}
    model.train(
        11, plan_kwargs={**plateau, "lr": 0.01, "n_epochs_kl_warmup": 0}, **EVERY_OTHER,
        **worse(model), **QUIET,
    )  # fmt: skip
    assert model.history["elbo_validation"].index.tolist() == [1, 3, 5, 7, 9]
    rates = model.history["lr-SGD"]["lr-SGD"].tolist()
    assert rates == pytest.approx([0.01] * 6 + [0.005] * 4 + [0.0025])


def test_early_stopping_and_best_epoch_with_a_validation_every_other_epoch():
    model = toy(Mean, guide="delta")
    model.train(
        40, lr=0.05, early_stopping=True, early_stopping_patience=3,
        plan_kwargs={"n_epochs_kl_warmup": 0}, **EVERY_OTHER, **worse(model), **QUIET,
    )  # fmt: skip
    assert model.history["elbo_validation"].index.tolist() == [1, 3, 5, 7]  # the best, and patience
    assert len(model.history["elbo_train"]) == 8
    best = model.history["elbo_validation"].iloc[0, 0]
    held_out = -model.get_elbo(indices=model.validation_indices)
    assert held_out == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"early_stopping": True},
        {"restore_best": True},
        {"plan_kwargs": {"reduce_lr_on_plateau": True}},
    ],
    ids=str,
)
def test_watching_validation_without_any_is_refused(options):
    with pytest.raises(TrainingError, match="no validation observations"):
        toy(Amortised).train(2, train_size=1.0, **options, **QUIET)


def test_unknown_monitor_is_refused():
    for options in ({"early_stopping": True}, {"restore_best": True}):
        with pytest.raises(TrainingError, match="'nonsense' has not been logged"):
            toy(Amortised).train(3, early_stopping_monitor="nonsense", **options, **QUIET)


class Poison(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            next(pl_module.module.parameters()).data.fill_(torch.nan)


@pytest.mark.parametrize("epoch", [0, 2])
def test_nan_stops_with_the_parameters_of_the_epoch_before(epoch):
    """In the first epoch a distribution complains, in later ones the loss is looked at."""
    good = toy(Amortised)
    if epoch:
        good.train(epoch, plan_kwargs={"n_epochs_kl_warmup": 1}, **QUIET)
    model = toy(Amortised)
    with pytest.raises(TrainingError, match="smaller lr"):
        model.train(4, plan_kwargs={"n_epochs_kl_warmup": 1}, callbacks=[Poison(epoch)], **QUIET)
    assert_same(parameters(good), parameters(model))
    assert not model.module.training
    model.train(1, **QUIET)  # and it can be trained on
    assert all(p.isfinite().all() for p in model.module.parameters())


def test_convergence_stops_what_is_flat_and_not_what_improves():
    flat = toy(Amortised)
    flat.train(
        60, plan_kwargs={**SGD, "lr": 0.0, "n_epochs_kl_warmup": 0},
        callbacks=[ELBOConvergence(window=5)], **QUIET,
    )  # fmt: skip
    assert len(flat.history["elbo_train"]) == 21  # the first look at four quarters of 5 or more
    assert "within its noise" in flat._training.stopping_reason
    improving = toy(Mean, guide="delta")
    improving.train(
        30, batch_size=None, plan_kwargs={**SGD, "lr": 0.01, "n_epochs_kl_warmup": 0},
        callbacks=[ELBOConvergence(window=5)], **QUIET,
    )  # fmt: skip
    assert len(improving.history["elbo_train"]) == 30
    assert improving._training.stopping_reason is None


def test_loggers_write_files(tmp_path):
    model = toy(Amortised)
    model.train(2, logger=["csv"], default_root_dir=str(tmp_path), **QUIET)
    (metrics,) = tmp_path.rglob("metrics.csv")
    header = metrics.read_text().splitlines()[0]
    assert "elbo_train" in header
    assert "lr-Adam" in header
    with pytest.raises(TrainingError, match="is not known"):
        toy(Amortised).train(1, logger="nonsense", **QUIET)


def test_tensorboard_writes_files(tmp_path):
    pytest.importorskip("tensorboard")
    toy(Amortised).train(1, logger="tensorboard", default_root_dir=str(tmp_path), **QUIET)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_gradient_clipping_bounds_the_step():
    before, model = toy(Mean, guide="delta"), toy(Mean, guide="delta")
    model.train(
        1, batch_size=None, train_size=1.0, gradient_clip_val=0.01,
        plan_kwargs={**SGD, "lr": 1.0}, **QUIET,
    )  # fmt: skip
    old, new = parameters(before), parameters(model)
    moved = torch.cat([(new[n] - old[n]).flatten() for n in old])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_two_accumulated_minibatches_are_one_of_twice_the_size():
    ends = []
    for size, accumulate in ((6, 2), (12, 1)):
        model = toy(Mean, guide="delta")
        model.train(
            3, batch_size=size, train_size=1.0, accumulate_grad_batches=accumulate,
            plan_kwargs={"n_epochs_kl_warmup": 0}, **QUIET,
        )  # fmt: skip
        ends.append(parameters(model))
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=1e-5), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(precision):
    model = scvi()
    start = parameters(model)
    model.train(2, batch_size=20, precision=precision, **QUIET)
    assert np.isfinite(model.history["elbo_validation"].to_numpy()).all()
    assert any(not torch.equal(start[n].double(), v.double()) for n, v in parameters(model).items())


def test_unknown_arguments_and_epochs_are_refused():
    with pytest.raises(TrainingError, match="nonsense"):
        toy(Amortised).train(1, nonsense=1, **QUIET)
    with pytest.raises(TrainingError, match="max_epochs"):
        toy(Amortised).train(0, **QUIET)


def test_progress_bar_shows_epochs_and_elbo(monkeypatch):
    written = io.StringIO()
    make = progress_file.Progress
    monkeypatch.setattr(
        progress_file,
        "Progress",
        lambda *columns, **options: make(
            *columns,
            **{**options, "disable": False},
            console=Console(file=written, force_terminal=True, width=120),
        ),
    )
    toy(Amortised).train(3, accelerator="cpu", enable_progress_bar=True)
    assert "3/3" in written.getvalue()
    assert "elbo" in written.getvalue()
    assert "validation" in written.getvalue()


def test_training_is_silent(capfd, caplog, recwarn):
    caplog.set_level(logging.INFO)
    model = scvi()
    model.train(2, batch_size=20, accelerator="cpu")
    model.train(1, batch_size=None, train_size=1.0, accelerator="cpu")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert [r.getMessage() for r in caplog.records] == []
    assert [str(w.message) for w in recwarn if "pandas" not in w.category.__module__] == []
