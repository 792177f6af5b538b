"""The demonstration writes what it promises, and its files agree with each other."""

from __future__ import annotations

import json

import arviz as az
import numpy as np
import pandas as pd
import pytest

import pyrovi as pv
from pyrovi.demo import run_demo
from pyrovi.errors import MissingKeyError


@pytest.fixture
def adata():
    made = pv.data.synthetic_iid(batch_size=40, n_genes=15)
    made.obs_names = [f"cell_{i}" for i in range(made.n_obs)]
    return made


@pytest.mark.slow
def test_files_agree(adata, tmp_path) -> None:
    steps: list[str] = []
    result = run_demo(
        adata,
        tmp_path / "out",
        labels_key="labels",
        batch_key="batch",
        max_epochs=2,
        num_draws=5,
        say=steps.append,
    )
    names = sorted(path.name for path in result.out.iterdir())
    figures = ["elbo", "predictive_library_size", "predictive_mean_variance", "predictive_zeros"]
    assert names == sorted(
        [f"{name}.png" for name in [*figures, "umap"]]
        + ["latent.csv", "latent.npy", "model", "posterior.nc", "report.html", "report.json"]
    )
    assert list(result.seconds) == steps

    model = pv.load(result.out / "model", adata)
    latent = model.get_latent_representation()
    np.testing.assert_array_equal(np.load(result.out / "latent.npy"), latent)
    table = pd.read_csv(result.out / "latent.csv", index_col=0)
    np.testing.assert_allclose(table, latent, rtol=1e-5)
    assert list(table.index) == list(adata.obs_names)

    idata = az.from_netcdf(result.out / "posterior.nc")
    assert idata.posterior["z"].shape == (1, 5, 80, 10)
    assert list(idata.posterior["obs"].values) == list(adata.obs_names)

    values = json.loads((result.out / "report.json").read_text())["values"]
    assert values["bounds"]["training"]["elbo"] == result.bounds.loc["training", "elbo"]
    assert values["predictive"]["total"]["in 90% interval"] == result.checks.coverage("total")
    assert (result.out / "report.html").read_text().count("data:image/png;base64,") >= 5


def test_a_missing_column_is_refused_before_training(adata, tmp_path) -> None:
    with pytest.raises(MissingKeyError, match="obs has no column 'type'; its columns are: batch"):
        run_demo(adata, tmp_path / "out", labels_key="type")
    assert not (tmp_path / "out").exists()
