"""Scikit-learn's side: ``python factor_analysis_peer.py JOBS.json``; prints JSON.

A job names a file with ``train`` and ``test`` and a number of factors. ``PCA.score`` is the
log-likelihood of probabilistic PCA at its closed form.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA, FactorAnalysis

results = []
for job in json.loads(Path(sys.argv[1]).read_text()):
    data = np.load(job["file"])
    train, test = data["train"].astype(float), data["test"].astype(float)
    found = {}
    peers = {
        "PPCA": PCA(job["n_latent"], svd_solver="full"),
        "FactorAnalysis": FactorAnalysis(job["n_latent"], random_state=job["seed"]),
    }
    for name, peer in peers.items():
        start = time.perf_counter()
        peer.fit(train)
        seconds = time.perf_counter() - start
        found[name] = {
            "train": float(peer.score(train)),
            "test": float(peer.score(test)),
            "seconds": seconds,
            "components": peer.components_.tolist(),
        }
    results.append(found)
print(json.dumps(results))
