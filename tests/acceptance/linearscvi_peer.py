"""scvi-tools' side of LinearSCVI: ``python linearscvi_peer.py JOBS.json``; prints JSON.

A job names a data file, a split and the options of both sides.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import anndata
import numpy as np
import scvi

warnings.filterwarnings("ignore")
results = []
for job in json.loads(Path(sys.argv[1]).read_text()):
    adata = anndata.read_h5ad(job["file"])
    split = np.load(job["split"])
    train, test = split["train"], split["test"]
    scvi.settings.seed = job["seed"]
    scvi.model.LinearSCVI.setup_anndata(adata, batch_key=job["batch_key"])
    model = scvi.model.LinearSCVI(adata, n_latent=job["n_latent"])
    model.train(
        max_epochs=job["max_epochs"],
        accelerator="cpu",
        datasplitter_kwargs={"external_indexing": [train, np.array([], dtype=int), test]},
        plan_kwargs=job["plan_kwargs"],
        enable_progress_bar=False,
    )
    marginal = model.get_marginal_ll(
        indices=test, n_mc_samples=job["n_mc_samples"], return_mean=False
    )
    loadings = model.get_loadings().to_numpy()
    results.append({"test": float(marginal.double().mean()), "loadings": loadings.tolist()})
print(json.dumps(results))
