"""The scvi-tools side of the acceptance of SCANVI: ``python scanvi_peer.py JOB.json``.

Runs in the environment that ``tests/benchmarks/peers.py`` makes. The job names a file of counts, a
seed, numbers of epochs, and the columns of labels; for each of these the probabilities of the
labels are written to a file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import scvi
import torch


def run(job: dict[str, Any]) -> None:
    """Fit SCVI once, and SCANVI from it for each column of labels."""
    scvi.settings.seed = job["seed"]
    adata = ad.read_h5ad(job["data"])
    options = {"accelerator": "cpu", "enable_progress_bar": False}
    scvi.model.SCVI.setup_anndata(adata, batch_key=job["batch_key"])
    first = scvi.model.SCVI(adata)
    first.train(max_epochs=job["scvi_epochs"], **options)
    for column, result in job["results"].items():
        model = scvi.model.SCANVI.from_scvi_model(first, job["unlabeled"], labels_key=column)
        model.train(max_epochs=job["scanvi_epochs"], **options)
        model.predict(soft=True).to_csv(result)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(json.loads(Path(sys.argv[1]).read_text()))
