"""The scvi-tools side of the acceptance of SCANVI: ``python scanvi_peer.py JOBS.json RESULTS.json``.

Runs in the environment that ``tests/benchmarks/peers.py`` makes. A job is a file of counts, the
columns of batches and labels, a seed and numbers of epochs; a result is the file with the
probabilities of the labels.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import scvi
import torch

UNKNOWN = "Unknown"


def fit(job: dict[str, Any]) -> Any:
    """Probabilities of the labels of all cells, cells x labels."""
    scvi.settings.seed = job["seed"]
    adata = ad.read_h5ad(job["data"])
    options = {"accelerator": "cpu", "enable_progress_bar": False}
    scvi.model.SCVI.setup_anndata(adata, batch_key="donor", labels_key=job["labels_key"])
    first = scvi.model.SCVI(adata)
    first.train(max_epochs=job["scvi_epochs"], **options)
    model = scvi.model.SCANVI.from_scvi_model(first, unlabeled_category=UNKNOWN)
    model.train(max_epochs=job["scanvi_epochs"], **options)
    return model.predict(soft=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for one in json.loads(Path(sys.argv[1]).read_text()):
        fit(one).to_csv(one["result"])
        print(one["result"], flush=True)
