"""Two processes on the CPU: identical replicas that find the optimum of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, os, sys
import pyro, torch
from lightning.pytorch.callbacks import Callback
from pyro.infer import Trace_ELBO
from pyrovi.errors import TrainingError
from tests.train.toys import *

torch.set_num_threads(1)
rank = int(os.environ.get("LOCAL_RANK", 0))
DDP = {"strategy": "ddp", "devices": 2, **QUIET}
report = {}

class Look(Callback):
    def __init__(self):
        self.noise, self.batches = [], 0
    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx):
        self.noise.append(float(torch.rand(())))
        self.batches += 1
    def on_fit_end(self, trainer, plan):
        mine = torch.cat([v.double().flatten() for v in plan.module.state_dict().values()])
        both = plan.all_gather(mine)
        noise = plan.all_gather(torch.tensor(self.noise))
        report[type(plan.module).__name__] = {
            "difference": float((both[0] - both[1]).abs().max()),
            "noise_equal": bool((noise[0] == noise[1]).any()),
            "batches": plan.all_gather(torch.tensor(self.batches)).tolist(),
        }

def conjugate(**options):
    model = toy(Mean, n=25)
    model.train(250, batch_size=5, train_size=1.0, plan_kwargs={
        "loss_fn": Trace_ELBO(num_particles=8, vectorize_particles=True),
        "optim": pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.98})}, **options)
    return {"loc": model.module.loc.tolist(), "scale": model.module.scale.tolist(),
            "sum": model.adata.X.sum(0).tolist()}

report["two"] = conjugate(callbacks=[Look()], **DDP)

still = toy(Mean, n=25, guide="delta")
still.train(1, batch_size=4, datasplitter_kwargs={"external_indexing": [range(16), range(16, 24)]},
            plan_kwargs={"optim": torch.optim.SGD, "lr": 0.0}, **DDP)
report["metrics"] = {k: v.iloc[-1, 0] for k, v in still.history.items()}

model = scvi()
model.train(3, batch_size=10, callbacks=[Look()], **DDP)
report["parameters"] = {name: value.tolist() for name, value in parameters(model).items()}
report["history"] = {name: frame[name].tolist() for name, frame in model.history.items()}
try:
    toy(Local).train(1, **DDP)
except TrainingError as error:
    report["rows"] = str(error)
if rank == 0:
    with open(sys.argv[1], "w") as file:
        json.dump(report, file)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT))
    subprocess.run(
        [sys.executable, folder / "script.py", folder / "report.json"], check=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        cwd=folder, capture_output=True,
    )  # fmt: skip
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("module", ["MeanModule", "VAE"])
def test_replicas_are_identical_and_their_noise_is_not(report, module):
    """The VAE has batch norm, dropout and a zero KL weight in its first epoch."""
    assert report[module]["difference"] == 0.0
    assert not report[module]["noise_equal"]
    first, second = report[module]["batches"]
    assert first == second > 0


def test_optimum_is_the_exact_posterior(report):
    """The plate size is the global N, so the prior counts once."""
    mean = np.array(report["two"]["sum"]) / 26
    assert np.allclose(report["two"]["loc"], mean, atol=0.03)
    assert np.allclose(report["two"]["scale"], (1 / 26) ** 0.5, atol=0.03)


def test_metrics_are_global_means(report):
    import torch
    from tests.train.toys import QUIET, Mean, toy

    model = toy(Mean, n=25, guide="delta")
    model.train(
        1, batch_size=4, datasplitter_kwargs={"external_indexing": [range(16), range(16, 24)]},
        plan_kwargs={"optim": torch.optim.SGD, "lr": 0.0}, **QUIET,
    )  # fmt: skip
    for name, frame in model.history.items():
        assert report["metrics"][name] == pytest.approx(frame.iloc[-1, 0], rel=1e-5), name


def test_forked_processes_train_as_those_of_a_script(report):
    """To the last bit."""
    from tests.train.toys import QUIET, parameters, scvi

    model = scvi()
    model.train(3, batch_size=10, devices=2, strategy="ddp_fork", **QUIET)
    assert {n: v.tolist() for n, v in parameters(model).items()} == report["parameters"]
    assert {n: frame[n].tolist() for n, frame in model.history.items()} == report["history"]


def test_rows_are_refused(report):
    assert "not data-parallel" in report["rows"]
