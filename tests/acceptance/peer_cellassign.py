"""CellAssign of scvi-tools: ``python peer_cellassign.py DATA.h5ad MARKERS.csv SEEDS OUT.json``.

The data have size factors in ``obs["s"]``. Writes the probabilities of the types (cells x types)
for each seed, and the seconds and epochs of the fit.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scvi


def main() -> None:
    """Fit once per seed, with the defaults of the package."""
    warnings.simplefilter("ignore")
    data, table, seeds, out = sys.argv[1:]
    markers = pd.read_csv(table, index_col=0)
    adata = ad.read_h5ad(data)[:, markers.index].copy()
    adata.X = np.asarray(adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X)
    found = {}
    for seed in json.loads(seeds):
        scvi.settings.seed = seed
        scvi.external.CellAssign.setup_anndata(adata, size_factor_key="s")
        model = scvi.external.CellAssign(adata, markers)
        start = time.perf_counter()
        model.train(accelerator="cpu", enable_progress_bar=False)
        seconds = time.perf_counter() - start
        epochs = len(model.history["elbo_train"])
        probabilities = model.predict()[list(markers.columns)].to_numpy()
        found[seed] = {"p": probabilities.tolist(), "seconds": seconds, "epochs": epochs}
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
