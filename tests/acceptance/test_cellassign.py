"""CellAssign on labelled blood cells, against the implementation in scvi-tools.

The same cells, markers and size factors, three seeds, the defaults of both. The markers are common
knowledge of blood cells, not tuned to the data; a data set uses those that it has.
"""

from __future__ import annotations

import json
import subprocess
import time
from itertools import chain
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from tests.benchmarks.peers import peer_python

import pyrovi as pv

pytestmark = [pytest.mark.acceptance, pytest.mark.filterwarnings("ignore")]

SEEDS = [0, 1, 2]
N_CELLS = 1500

MARKERS = {
    "B": ["CD79A", "CD79B", "MS4A1", "CD74", "HLA-DQA1"],
    "CD4 T": ["CD3D", "CD3E", "IL7R", "LTB", "CD4"],
    "CD8 T": ["CD3D", "CD3E", "CD8A", "CD8B", "CCL5", "GZMK"],
    "NK": ["NKG7", "GNLY", "GZMB", "PRF1", "KLRD1", "CCL5"],
    "CD14 monocyte": ["CD14", "LYZ", "S100A8", "S100A9", "FCN1", "CST3"],
    "FCGR3A monocyte": ["FCGR3A", "MS4A7", "LST1", "AIF1", "CST3"],
    "dendritic": ["FCER1A", "CD1C", "CLEC10A", "CST3", "HLA-DQA1", "HLA-DPB1", "CD74"],
    "megakaryocyte": ["PPBP", "PF4", "GNG11", "HIST1H2AC", "CD9"],
}
DATA = {
    "pbmc3k_10x_v1_labelled": {
        "B": "B",
        "Naive CD4 T": "CD4 T",
        "Memory CD4 T": "CD4 T",
        "CD8 T": "CD8 T",
        "NK": "NK",
        "CD14+ Mono": "CD14 monocyte",
        "FCGR3A+ Mono": "FCGR3A monocyte",
        "DC": "dendritic",
        "Platelet": "megakaryocyte",
    },
    "kang2018_ctrl_8donors_1287genes": {
        "B cells": "B",
        "CD4 T cells": "CD4 T",
        "CD8 T cells": "CD8 T",
        "NK cells": "NK",
        "CD14+ Monocytes": "CD14 monocyte",
        "FCGR3A+ Monocytes": "FCGR3A monocyte",
        "Dendritic cells": "dendritic",
        "Megakaryocytes": "megakaryocyte",
    },
}


def read(folder: Path, name: str) -> tuple[anndata.AnnData, pd.DataFrame, np.ndarray]:
    """Some cells with size factors, their markers, and the number of the type of each."""
    file = folder / f"{name}.h5ad"
    if not file.is_file():
        pytest.skip(f"needs {name} among the real data")
    adata = anndata.read_h5ad(file)
    chosen = np.random.default_rng(0).choice(adata.n_obs, N_CELLS, replace=False)
    adata = adata[np.sort(chosen)].copy()
    total = np.asarray(adata.X.sum(1)).ravel()
    adata.obs["s"] = total / total.mean()
    genes = [
        g for g in dict.fromkeys(chain.from_iterable(MARKERS.values())) if g in adata.var_names
    ]
    table = pd.DataFrame({t: [int(g in m) for g in genes] for t, m in MARKERS.items()}, genes)
    types = adata.obs["cell_type"].astype(str).map(DATA[name])
    return adata, table, table.columns.get_indexer(types)


def scores(p: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Accuracy, log loss and expected calibration error (ten bins of the largest probability)."""
    p = p / p.sum(1, keepdims=True)
    right = p.argmax(1) == truth
    largest = p.max(1)
    bins = np.minimum((10 * largest).astype(int), 9)
    error = sum(
        abs(right[bins == b].mean() - largest[bins == b].mean()) * (bins == b).mean()
        for b in np.unique(bins)
    )
    of_truth = np.clip(p[np.arange(len(p)), truth], 1e-6, 1)
    return {
        "accuracy": float(right.mean()),
        "log loss": float(-np.log(of_truth).mean()),
        "ECE": float(error),
    }


@pytest.mark.parametrize("name", list(DATA))
def test_types_of_blood_cells(
    name: str, pyrovi_data: Path, tmp_path: Path, table: list[Any]
) -> None:
    adata, markers, truth = read(pyrovi_data, name)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    markers.to_csv(tmp_path / "markers.csv")
    script = Path(__file__).with_name("peer_cellassign.py")
    out = tmp_path / "peer.json"
    subprocess.run(
        [peer_python(), script, tmp_path / "cells.h5ad", tmp_path / "markers.csv",
         json.dumps(SEEDS), out],
        check=True,
    )  # fmt: skip
    peer = json.loads(out.read_text())
    rows = []
    for seed in SEEDS:
        pv.settings.seed = seed
        pv.model.CellAssign.setup_anndata(adata, size_factor_key="s")
        model = pv.model.CellAssign(adata, markers)
        start = time.perf_counter()
        model.train(enable_progress_bar=False)
        seconds = time.perf_counter() - start
        fits = {
            "pyrovi": (model.predict().to_numpy(), seconds, len(model.history["elbo_train"])),
            "scvi-tools": (
                np.array(peer[str(seed)]["p"]),
                peer[str(seed)]["seconds"],
                peer[str(seed)]["epochs"],
            ),
        }
        for fit, (p, seconds, epochs) in fits.items():
            rows.append({"fit": fit, "seed": seed, **scores(p, truth), "epochs": epochs})
            shown = {k: round(v, 3) for k, v in scores(p, truth).items()}
            case = f"CellAssign {name.split('_')[0]}, seed {seed}"
            table.append({"case": case, "fit": fit, **shown, "seconds": round(seconds, 1)})
            print(table[-1], flush=True)
    results = pd.DataFrame(rows).set_index(["fit", "seed"])
    own, other = results.loc["pyrovi"], results.loc["scvi-tools"]
    noise = np.sqrt(own.var() + other.var())
    assert own["accuracy"].mean() >= other["accuracy"].mean() - 2 * noise["accuracy"]
    for measure in ("log loss", "ECE"):
        assert own[measure].mean() <= other[measure].mean() + 2 * noise[measure], measure
    # one optimum from every seed
    assert own["accuracy"].std() < 0.03
