"""Counts with a known effect, and a small model that was trained on them."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd

import pyrovi as pv

N_GENES = 30
UP, DOWN = slice(0, 4), slice(4, 8)


def planted_adata(n: int = 400, seed: int = 3) -> tuple[anndata.AnnData, np.ndarray]:
    """Two groups that differ in eight genes, in two batches; and the true log2 fold changes."""
    rng = np.random.default_rng(seed)
    rho = np.tile(rng.gamma(3.0, size=N_GENES), (2, 1))
    rho[0, UP] *= 4
    rho[1, DOWN] *= 4
    rho /= rho.sum(1, keepdims=True)
    group, batch = rng.integers(2, size=n), rng.integers(2, size=n)
    rate = rho[group] * rng.lognormal(6.0, 0.3, size=(n, 1))
    rate[batch == 1, 10:15] *= 3
    counts = rng.poisson(rng.gamma(10.0, rate / 10.0)).astype(np.float32)
    obs = pd.DataFrame(
        {"group": np.array(["a", "b"])[group], "batch": batch, "half": np.arange(n) % 2},
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)])
    return anndata.AnnData(counts, obs=obs, var=var), np.log2(rho[0] / rho[1])


def planted_model(adata: Any, *, epochs: int = 0, **options: Any) -> pv.model.SCVI:
    pv.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = pv.model.SCVI(
        adata, n_latent=3, n_hidden=24, dropout_rate=0.0, **{"gene_likelihood": "nb", **options}
    )
    if epochs:
        model.train(
            max_epochs=epochs,
            batch_size=64,
            train_size=1.0,
            plan_kwargs={"lr": 5e-3},
            enable_progress_bar=False,
        )
    return model
