"""Counts of donors under conditions, simulated with NumPy from the story of HierarchicalGLM."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd

import pyrovi as pv


def simulated(
    n_genes: int = 60,
    n_donors: int = 10,
    n_cells: int = 50,
    seed: int = 0,
    crossed: bool = False,
    tau: float = 0.25,
) -> tuple[anndata.AnnData, dict[str, np.ndarray]]:
    """Donors within conditions (or in both), and the true values of the sites."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), n_cells)
    condition = (donor >= n_donors // 2).astype(int)
    if crossed:
        condition = np.arange(len(donor)) % 2
    size = rng.lognormal(0.0, 0.3, len(donor))
    truth = {
        "alpha": rng.normal(0.0, 1.2, n_genes),
        "theta": rng.lognormal(np.log(5), 0.6, n_genes),
        "beta": tau * rng.standard_t(3, (1, n_genes)),
        "sigma": rng.lognormal(np.log(0.25), 0.4, n_genes),
    }
    truth["u"] = rng.normal(size=(n_donors, n_genes)) * truth["sigma"]
    eta = truth["alpha"] + condition[:, None] * truth["beta"] + truth["u"][donor]
    mu = size[:, None] / size.mean() * np.exp(eta)
    counts = rng.poisson(rng.gamma(truth["theta"], mu / truth["theta"])).astype(np.float32)
    obs = pd.DataFrame(
        {
            "donor": [f"d{d}" for d in donor],
            "condition": np.array(["ctrl", "stim"])[condition],
            "size": size,
            "age": donor * 3.0 + 20,
            "lane": np.array(["l0", "l1"])[np.arange(len(donor)) // 2 % 2],
        },
        index=[f"cell{i}" for i in range(len(donor))],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    return anndata.AnnData(counts, obs, var), truth


def regression(adata: Any, *, epochs: int = 0, **setup: Any) -> pv.model.HierarchicalGLM:
    """A model of such data, trained for so many epochs of all cells at once."""
    options: dict[str, Any] = {"condition_key": "condition", "donor_key": "donor"}
    pv.model.HierarchicalGLM.setup_anndata(adata, **options | {"size_factor_key": "size"} | setup)
    model = pv.model.HierarchicalGLM(adata)
    if epochs:
        model.train(max_epochs=epochs, batch_size=None, enable_progress_bar=False)
    return model
