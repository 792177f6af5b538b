"""Going on: resumed, repeated and interrupted trainings end bitwise equal to one that was not."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyro.optim
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tests.train.toys import (
    QUIET,
    Amortised,
    Mean,
    assert_same,
    assert_same_training,
    counts,
    differ,
    parameters,
    scvi,
    toy,
)

from pyrovi import settings
from pyrovi.errors import TrainingError
from pyrovi.train import SaveCheckpoint

WARM = {"n_epochs_kl_warmup": 4}
PLANS = {
    "adam": {},
    "plateau": {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 10.0},
    "by epoch": {
        "optim": lambda: pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.5}
        )
    },
    "by step": {
        "optim": lambda: pyro.optim.OneCycleLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "max_lr": 0.1,
             "total_steps": 60}
        ),
        "scheduler_interval": "step",
    },
}  # fmt: skip


def plan(name):
    return WARM | {k: v() if callable(v) else v for k, v in PLANS[name].items()}


class StopAfter(Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch + 1 == self.epochs:
            trainer.should_stop = True


class Interrupt(Callback):
    def __init__(self, epoch, batch, error=KeyboardInterrupt):
        self.at, self.error = (epoch, batch), error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            raise self.error


@pytest.mark.parametrize("name", PLANS)
def test_stop_and_resume_equals_one_run(name, tmp_path):
    whole = scvi()
    whole.train(6, batch_size=20, plan_kwargs=plan(name), **QUIET)
    scvi().train(
        3, batch_size=20, plan_kwargs=plan(name), enable_checkpointing=True,
        default_root_dir=str(tmp_path), **QUIET,
    )  # fmt: skip
    resumed = scvi()
    resumed.train(
        6, batch_size=20, plan_kwargs=plan(name), ckpt_path=tmp_path / "last.ckpt", **QUIET
    )
    assert_same_training(whole, resumed)
    assert list(resumed.history["elbo_train"].index) == list(range(6))


@pytest.mark.parametrize("name", PLANS)
def test_two_calls_equal_one(name):
    """Also if the optimiser is built anew for each call."""
    whole, twice = scvi(), scvi()
    whole.train(6, batch_size=20, plan_kwargs=plan(name), **QUIET)
    twice.train(3, batch_size=20, plan_kwargs=plan(name), **QUIET)
    twice.train(3, batch_size=20, plan_kwargs=plan(name), **QUIET)
    assert_same_training(whole, twice)


def weights_of(model):
    return model.history["kl_weight"]["kl_weight"].tolist()


@pytest.mark.parametrize("of", ["epochs", "steps"])
def test_warmup_asked_for_in_a_later_call_begins_with_it(of, tmp_path):
    model = toy(Amortised)
    size = {"batch_size": None, "train_size": 1.0}  # one step per epoch
    model.train(20, **size, **QUIET)
    model.save(tmp_path / "m")
    loaded = Amortised.load(tmp_path / "m", model.adata)
    for again in (model, loaded):
        asked = {f"n_{of}_kl_warmup": 8}
        for n in (6, 4, 1):  # the same run going on
            again.train(n, plan_kwargs=asked, **size, **QUIET)
        assert weights_of(again)[20:] == [min(i / 8, 1) for i in range(11)]
        again.train(2, plan_kwargs={**asked, "min_kl_weight": 0.5}, **size, **QUIET)
        assert weights_of(again)[31:] == [0.5, 0.5625]
        again.train(1, lr=1e-4, **size, **QUIET)  # not asked for: it is behind
        assert weights_of(again)[33:] == [1]


def test_later_warmup_resumes_from_a_checkpoint(tmp_path):
    whole, stopped = toy(Amortised), toy(Amortised)
    for model, epochs in ((whole, 6), (stopped, 3)):
        model.train(4, **QUIET)
        model.train(
            epochs, plan_kwargs=WARM, enable_checkpointing=True,
            default_root_dir=str(tmp_path / str(epochs)), **QUIET,
        )  # fmt: skip
    resumed = toy(Amortised)
    resumed.train(10, plan_kwargs=WARM, ckpt_path=tmp_path / "3" / "last.ckpt", **QUIET)
    assert weights_of(resumed)[-6:] == weights_of(whole)[-6:] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert_same(parameters(whole), parameters(resumed))


def test_two_calls_equal_one_with_queries_between():
    whole, twice = scvi(), scvi()
    whole.train(4, batch_size=20, plan_kwargs=WARM, **QUIET)
    twice.train(2, batch_size=20, plan_kwargs=WARM, **QUIET)
    twice.get_latent_representation()
    twice.sample_posterior("latent", num_samples=2)
    twice.train(2, batch_size=20, plan_kwargs=WARM, **QUIET)
    assert_same_training(whole, twice)


def test_interrupted_run_resumes_with_its_own_default_warmup(tmp_path):
    whole = scvi()
    whole.train(6, batch_size=20, **QUIET)
    scvi().train(
        6, batch_size=20, enable_checkpointing=True, default_root_dir=str(tmp_path),
        callbacks=[StopAfter(2)], **QUIET,
    )  # fmt: skip
    resumed = scvi()
    resumed.train(6, batch_size=20, ckpt_path=tmp_path / "last.ckpt", **QUIET)
    assert_same_training(whole, resumed)
    assert resumed.history["kl_weight"]["kl_weight"].iloc[-1] == 1


@pytest.mark.parametrize("name", ["adam", "by step"])
@pytest.mark.parametrize("stop", [(1, 2), (3, 0)])
def test_resume_within_an_epoch(name, stop, tmp_path):
    """Four minibatches an epoch, a checkpoint every three steps: within epochs and at ends."""
    whole = scvi()
    whole.train(5, batch_size=20, plan_kwargs=plan(name), **QUIET)
    saver = SaveCheckpoint(tmp_path, every_n_train_steps=3)
    with pytest.raises(KeyboardInterrupt):
        scvi().train(
            5, batch_size=20, plan_kwargs=plan(name), callbacks=[saver, Interrupt(*stop)], **QUIET
        )
    resumed = scvi()
    resumed.train(
        5, batch_size=20, plan_kwargs=plan(name), ckpt_path=tmp_path / "last.ckpt", **QUIET
    )
    assert_same_training(whole, resumed)


def test_resume_within_an_epoch_of_a_second_call(tmp_path):
    whole, twice = scvi(), scvi()
    whole.train(5, batch_size=20, plan_kwargs=WARM, **QUIET)
    twice.train(2, batch_size=20, plan_kwargs=WARM, **QUIET)
    saver = SaveCheckpoint(tmp_path, every_n_train_steps=3)
    with pytest.raises(KeyboardInterrupt):
        twice.train(3, batch_size=20, plan_kwargs=WARM, callbacks=[saver, Interrupt(3, 2)], **QUIET)
    resumed = scvi()
    resumed.train(5, batch_size=20, plan_kwargs=WARM, ckpt_path=tmp_path / "last.ckpt", **QUIET)
    assert_same(parameters(whole), parameters(resumed))


def test_lightning_checkpoint_of_the_best_epoch_resumes(tmp_path):
    """ModelCheckpoint with a monitor writes after validation, before the epoch is closed."""
    whole = scvi()
    whole.train(5, batch_size=20, plan_kwargs=WARM, **QUIET)
    saver = ModelCheckpoint(tmp_path, monitor="elbo_validation", save_top_k=-1, filename="{epoch}")
    scvi().train(3, batch_size=20, plan_kwargs=WARM, callbacks=[saver], **QUIET)
    resumed = scvi()
    resumed.train(5, batch_size=20, plan_kwargs=WARM, ckpt_path=tmp_path / "epoch=1.ckpt", **QUIET)
    assert_same_training(whole, resumed)


def test_checkpoint_that_cannot_be_exact_is_refused(tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    scvi().train(2, batch_size=20, train_size=1.0, callbacks=[saver], **QUIET)
    with pytest.raises(TrainingError, match="after the last minibatch"):
        scvi().train(3, batch_size=20, train_size=1.0, ckpt_path=tmp_path / "step=4.ckpt", **QUIET)


def test_mid_epoch_checkpoint_with_other_minibatches_is_refused(tmp_path):
    saver = SaveCheckpoint(tmp_path, every_n_train_steps=3)
    scvi().train(1, batch_size=20, callbacks=[saver], **QUIET)
    with pytest.raises(ValueError, match="batch_size"):
        scvi().train(2, batch_size=10, ckpt_path=tmp_path / "last.ckpt", **QUIET)


def test_keyboard_interrupt_keeps_what_was_learnt_and_goes_on_exactly():
    handler = signal.getsignal(signal.SIGINT)
    whole, stopped = scvi(), scvi()
    whole.train(4, batch_size=20, plan_kwargs=WARM, **QUIET)
    start = parameters(stopped)
    with pytest.raises(KeyboardInterrupt):
        stopped.train(4, batch_size=20, plan_kwargs=WARM, callbacks=[Interrupt(2, 0)], **QUIET)
    assert signal.getsignal(signal.SIGINT) is handler
    assert stopped.is_trained
    assert not stopped.module.training
    assert differ(start, parameters(stopped))
    assert len(stopped.history["elbo_train"]) == 2
    stopped.train(2, batch_size=20, plan_kwargs=WARM, **QUIET)
    assert_same_training(whole, stopped)


@pytest.mark.slow
def test_kill_9_loses_at_most_one_interval(tmp_path):
    """A process killed without warning resumes from last.ckpt to the uninterrupted result."""
    script = textwrap.dedent(
        """
        import sys, time
        import torch
        from lightning.pytorch.callbacks import Callback
        from tests.train.toys import QUIET, scvi

        torch.set_num_threads(1)

        class Slow(Callback):
            def on_train_epoch_start(self, trainer, plan):
                print(trainer.current_epoch, flush=True)
                time.sleep(0.2)

        scvi().train(30, batch_size=20, plan_kwargs={"n_epochs_kl_warmup": 4}, callbacks=[Slow()],
                     enable_checkpointing=True, default_root_dir=sys.argv[1], **QUIET)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    begun = 0
    for line in process.stdout:
        begun = int(line)
        if begun == 4:
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / ".last.ckpt.partial").write_bytes(b"half a checkpoint")  # as a kill may leave it
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["epoch"] >= begun - 1
    whole, resumed = scvi(), scvi()
    whole.train(7, batch_size=20, plan_kwargs=WARM, **QUIET)
    resumed.train(7, batch_size=20, plan_kwargs=WARM, ckpt_path=tmp_path / "last.ckpt", **QUIET)
    assert_same_training(whole, resumed)


class _Malicious:
    def __reduce__(self):
        return (os.system, (f"touch {_Malicious.target}",))


def test_malicious_checkpoint_is_refused_and_not_executed(tmp_path):
    _Malicious.target = tmp_path / "executed"
    for name, save in {"pickle": pickle.dump, "torch": torch.save}.items():
        with (tmp_path / name).open("wb") as file:
            save({"pyrovi": _Malicious()}, file)
        with pytest.raises(TrainingError, match="never does"):
            scvi().train(2, ckpt_path=tmp_path / name, **QUIET)
    assert not _Malicious.target.exists()


def test_damaged_foreign_and_missing_checkpoints_are_refused(tmp_path):
    model = toy(Amortised)
    model.train(1, enable_checkpointing=True, default_root_dir=str(tmp_path), **QUIET)
    content = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    torch.save({"a": 1}, tmp_path / "foreign.ckpt")
    for name, message in {
        "half": "damaged", "empty": "damaged", "foreign": "not a checkpoint", "no": "There is no",
    }.items():  # fmt: skip
        with pytest.raises(TrainingError, match=message):
            toy(Amortised).train(2, ckpt_path=tmp_path / f"{name}.ckpt", **QUIET)


def test_checkpoint_of_another_model_seed_or_optimiser_is_refused(tmp_path):
    options = {"ckpt_path": tmp_path / "last.ckpt", **QUIET}
    scvi().train(1, enable_checkpointing=True, default_root_dir=str(tmp_path), **QUIET)
    with pytest.raises(TrainingError, match=r"another model: parameter .* has shape"):
        scvi(n_hidden=9).train(2, **options)
    with pytest.raises(TrainingError, match=r"another model: parameter .* is only in"):
        toy(Mean).train(2, **options)
    with pytest.raises(TrainingError, match="optimiser"):
        scvi().train(2, plan_kwargs={"optim": torch.optim.SGD}, **options)
    with pytest.raises(TrainingError, match="scheduler"):
        scvi().train(2, plan_kwargs={"reduce_lr_on_plateau": True}, **options)
    settings.seed = 7
    with pytest.raises(TrainingError, match="another seed"):
        scvi(counts()).train(2, **options)


def test_loaded_model_trains_on(tmp_path):
    model = scvi()
    model.train(3, batch_size=20, **QUIET)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", model.adata)
    before = parameters(loaded)
    loaded.train(2, batch_size=20, **QUIET)
    after = parameters(loaded)
    moved = [n for n, _ in loaded.module.named_parameters() if not torch.equal(before[n], after[n])]
    assert moved == [n for n, _ in loaded.module.named_parameters()]
    assert list(loaded.history["elbo_train"].index) == list(range(5))
    assert loaded.history["kl_weight"]["kl_weight"].iloc[-1] == 1  # no second warm-up
