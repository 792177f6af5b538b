"""The peers' side of the acceptance of AmortizedLDA: ``python lda_peer.py JOB.json``.

Runs in the environment that ``tests/benchmarks/peers.py`` makes. The job names a file of counts
(``train``, and ``seen``, the first part of the held-out documents), a number of topics, a seed, and
the file that topics and proportions are written to.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def by_scikit_learn(job: dict[str, Any], data: Any) -> dict[str, Any]:
    """Batch variational Bayes with an E step of its own for each document."""
    from sklearn.decomposition import LatentDirichletAllocation

    model = LatentDirichletAllocation(job["n_topics"], max_iter=100, random_state=job["seed"])
    model.fit(data["train"])
    beta = model.components_ / model.components_.sum(1, keepdims=True)
    return {"beta": beta, "theta": model.transform(data["seen"])}


def by_scvi_tools(job: dict[str, Any], data: Any) -> dict[str, Any]:
    """Its AmortizedLDA with its own defaults."""
    import anndata as ad
    import scvi
    import torch

    torch.set_num_threads(1)
    scvi.settings.seed = job["seed"]
    train, seen = (ad.AnnData(data[part].astype(np.float32)) for part in ("train", "seen"))
    scvi.model.AmortizedLDA.setup_anndata(train)
    model = scvi.model.AmortizedLDA(train, n_topics=job["n_topics"])
    model.train(train_size=1.0, accelerator="cpu", enable_progress_bar=False)
    return {
        "beta": model.get_feature_by_topic(n_samples=500).to_numpy().T,
        "theta": model.get_latent_representation(seen, n_samples=500).to_numpy(),
        "perplexity": model.get_perplexity(),
    }


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    fit = {"scikit-learn": by_scikit_learn, "scvi-tools": by_scvi_tools}[job["peer"]]
    np.savez(job["result"], **fit(job, np.load(job["data"])))
