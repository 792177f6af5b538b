"""Cell types across donors: SCANVI against that of scvi-tools, on the same cells and labels."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from tests.benchmarks.peers import peer_python

import pyrovi as pv

pytestmark = [pytest.mark.acceptance, pytest.mark.filterwarnings("ignore")]

N_CELLS, SEEDS = 3000, (0, 1, 2)
SCVI_EPOCHS, SCANVI_EPOCHS = 20, 10
LONG_EPOCHS = 60
UNKNOWN = "Unknown"
DONORS = (("101", "1016"), ("1244", "107"), ("1039", "1488"))
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}
N_BINS = 15
PEER = Path(__file__).with_name("scanvi_peer.py")


@pytest.fixture
def cells(pyrovi_data: Path, tmp_path: Path) -> Path:
    """Cells of eight donors, with a column of partly hidden labels for each case and seed."""
    file = next(pyrovi_data.glob("kang2018_ctrl*"), None)
    if file is None:
        pytest.skip("needs kang2018_ctrl_8donors among the real data")
    adata = anndata.read_h5ad(file)
    chosen = np.random.default_rng(0).choice(adata.n_obs, N_CELLS, replace=False)
    adata = adata[np.sort(chosen)].copy()
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    adata.obs["donor"] = adata.obs["donor"].astype(str)
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        hidden = {
            "50 % hidden": rng.random(adata.n_obs) < 0.5,
            "90 % hidden": rng.random(adata.n_obs) < 0.9,
            "two donors hidden": adata.obs["donor"].isin(DONORS[seed]).to_numpy(),
        }
        for case, mask in hidden.items():
            adata.obs[f"{case}, {seed}"] = np.where(mask, UNKNOWN, truth)
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    return path


def scores(probabilities: pd.DataFrame, adata: anndata.AnnData, column: str) -> dict[str, float]:
    """Accuracy, macro F1, log loss and expected calibration error of the hidden labels."""
    hidden = (adata.obs[column] == UNKNOWN).to_numpy()
    truth = adata.obs["cell_type"].astype(str).to_numpy()[hidden]
    labels = sorted({*probabilities.columns, *truth})
    p = probabilities.reindex(columns=labels, fill_value=0.0).to_numpy()[hidden]
    found, largest = np.array(labels)[p.argmax(1)], p.max(1)
    right = found == truth
    of_truth = p[np.arange(len(truth)), np.searchsorted(labels, truth)]
    both = [((found == k) & (truth == k)).sum() for k in labels]
    either = [(found == k).sum() + (truth == k).sum() for k in labels]
    bins = np.minimum((largest * N_BINS).astype(int), N_BINS - 1)
    gaps = [
        (bins == b).mean() * abs(largest[bins == b].mean() - right[bins == b].mean())
        for b in np.unique(bins)
    ]
    return {
        "accuracy": right.mean(),
        "macro F1": float(np.mean(2 * np.array(both) / np.maximum(either, 1))),
        "log loss": -np.log(np.maximum(of_truth, 1e-12)).mean(),
        "ECE": float(sum(gaps)),
    }


def peer_jobs(cells: Path, columns: dict[int, list[str]]) -> Iterator[tuple[str, Path]]:
    """Run scvi-tools; the columns and where their results are."""
    for seed, of_seed in columns.items():
        results = {c: cells.with_name(f"{c.replace('%', '')}.csv") for c in of_seed}
        job = {
            "data": str(cells), "batch_key": "donor", "unlabeled": UNKNOWN, "seed": seed,
            "scvi_epochs": SCVI_EPOCHS, "scanvi_epochs": SCANVI_EPOCHS,
            "results": {c: str(path) for c, path in results.items()},
        }  # fmt: skip
        file = cells.with_name(f"job_{seed}.json")
        file.write_text(json.dumps(job))
        subprocess.run([peer_python("scvi"), PEER, file], check=True, capture_output=True)
        yield from results.items()


def test_label_transfer_across_donors(cells: Path, table: list[dict[str, Any]]) -> None:
    adata = anndata.read_h5ad(cells)
    cases = sorted({c.rpartition(", ")[0] for c in adata.obs if "hidden" in c})
    columns = {seed: [f"{case}, {seed}" for case in cases] for seed in SEEDS}
    rows = []
    for seed in SEEDS:
        pv.settings.seed = seed
        pv.model.SCVI.setup_anndata(adata, batch_key="donor")
        scvi = pv.model.SCVI(adata)
        scvi.train(SCVI_EPOCHS, **QUIET)
        for column in columns[seed]:
            model = pv.model.SCANVI.from_scvi_model(scvi, UNKNOWN, labels_key=column)
            model.train(SCANVI_EPOCHS, **QUIET)
            found = scores(model.predict(soft=True), adata, column)
            rows.append({"column": column, "fit": "pyrovi", **found})
    for column, path in peer_jobs(cells, columns):
        found = scores(pd.read_csv(path, index_col=0), adata, column)
        rows.append({"column": column, "fit": "scvi-tools", **found})
    frame = pd.DataFrame(rows)
    for row in frame.round(4).to_dict("records"):
        table.append({"case": f"SCANVI: {row.pop('column')}", **row})
    frame["case"] = frame["column"].str.rpartition(", ")[0]
    wide = frame.pivot_table(index=["case", "column"], columns="fit")
    for case in cases:
        of_case = wide.loc[case]
        for score, sign in (("accuracy", 1), ("macro F1", 1), ("log loss", -1), ("ECE", -1)):
            ours, theirs = (of_case[score][fit] * sign for fit in ("pyrovi", "scvi-tools"))
            noise = (ours - theirs).std() / len(SEEDS) ** 0.5
            print(case, score, f"{(ours - theirs).mean():.4f} +- {noise:.4f}")
            # the largest of four scores and three cases: three standard errors
            assert (ours - theirs).mean() > -3 * noise - 0.005, (case, score)


def test_long_training_stays_calibrated(cells: Path, table: list[dict[str, Any]]) -> None:
    """Trained until it knows its labels by heart, the classifier is over-confident without help."""
    adata = anndata.read_h5ad(cells)
    column = "50 % hidden, 0"
    pv.settings.seed = 0
    pv.model.SCANVI.setup_anndata(adata, column, UNKNOWN, batch_key="donor")
    model = pv.model.SCANVI(adata)
    model.train(LONG_EPOCHS, **QUIET)
    found = {}
    fitted = model.module.temperature.item()
    for name, temperature in (("calibrated", fitted), ("temperature 1", 1.0)):
        model.module.temperature.fill_(temperature)
        found[name] = scores(model.predict(soft=True), adata, column)
        row = {name_: round(value, 4) for name_, value in found[name].items()}
        table.append({"case": f"SCANVI: {LONG_EPOCHS} epochs, {column}", "fit": name, **row})
    assert fitted > 1.2
    assert found["calibrated"]["log loss"] < found["temperature 1"]["log loss"] - 0.01
    assert found["calibrated"]["ECE"] < min(0.03, found["temperature 1"]["ECE"])
