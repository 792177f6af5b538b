"""Commands in this process, on small data and a model that the command line has trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import pyrovi as pv
from pyrovi.cli import app

Run = Callable[..., Result]


def run_command(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


@pytest.fixture
def run() -> Run:
    return run_command


@pytest.fixture(scope="session")
def data_file(tmp_path_factory) -> Path:
    adata = pv.data.synthetic_iid(batch_size=30, n_genes=12)
    adata.obs_names = [f"cell_{i}" for i in range(adata.n_obs)]
    adata.layers["counts"] = adata.X.copy()
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def model_dir(data_file, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    done = run_command(
        "train", data_file, "--batch-key", "batch", "--layer", "counts", "--n-latent", 3,
        "-a", "n_hidden=8", "-a", "gene_likelihood=nb", "--max-epochs", 2, "--seed", 5,
        "--accelerator", "cpu", "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return out
