"""Data, split and scores of the comparison of totalVI's, for both packages (without either)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse, special, stats

EPOCHS, WARMUP, DRAWS = 60, 30, 20
N_TRAIN, N_HELD_OUT, N_SECOND, N_GENES = 1500, 400, 700, 1500
MEASURED, LACKING = "PBMC10k", "PBMC5k"

LINEAGES = {
    "CD3": ("CD3D", "CD3G"),
    "CD19": ("MS4A1", "CD79A"),
    "CD14": ("LYZ", "S100A8", "S100A9"),
    "CD16": ("FCGR3A",),
    "CD8a": ("CD8A", "CD8B"),
    "CD56": ("NKG7", "GNLY", "KLRD1"),
}
"""Protein -> genes whose counts say that a cell has it."""

ENOUGH = {"CD14": 20, "CD56": 6}
"""Counts of these genes from which a cell has the protein; 2 for others. Monocytes have tens of
transcripts of their markers, and ambient ones reach other cells."""


def data(folder: Path) -> tuple[anndata.AnnData, pd.DataFrame]:
    """Cells of two batches, the second one without proteins, and its true proteins in some."""
    first = anndata.read_h5ad(next(folder.glob("citeseq_pbmc10k*")))
    second = anndata.read_h5ad(next(folder.glob("citeseq_pbmc5k_v3_4000hvg_RNAonly*")))
    truth = anndata.read_h5ad(next(folder.glob("citeseq_scvitools_pbmc5k_200cells*")))
    names = list(first.obsm["protein_expression"].columns)
    rng = np.random.default_rng(0)
    first = first[rng.permutation(first.n_obs)[: N_TRAIN + N_HELD_OUT]].copy()
    known = second.obs_names.isin(truth.obs_names)
    others = rng.permutation(np.flatnonzero(~known))[: N_SECOND - known.sum()]
    second = second[np.concatenate([np.flatnonzero(known), others])].copy()
    X = sparse.vstack([first.X, second.X], format="csc")
    variance = X.multiply(X).mean(0).A1 - np.square(X.mean(0).A1)
    wanted = {gene for genes in LINEAGES.values() for gene in genes}
    order = np.argsort(-variance - 1e9 * first.var_names.isin(wanted))
    genes = np.sort(order[:N_GENES])
    proteins = np.zeros((X.shape[0], len(names)))
    proteins[: first.n_obs] = first.obsm["protein_expression"].to_numpy()
    obs_names = [f"{name}_{b}" for b, part in ((MEASURED, first), (LACKING, second))
                 for name in part.obs_names]  # fmt: skip
    batch = pd.Categorical([MEASURED] * first.n_obs + [LACKING] * second.n_obs)
    both = anndata.AnnData(
        sparse.csr_matrix(X[:, genes], dtype=np.float32),
        obs=pd.DataFrame({"batch": batch}, index=obs_names),
        var=pd.DataFrame(index=first.var_names[genes]),
        obsm={"protein_expression": pd.DataFrame(proteins, index=obs_names, columns=names)},
    )
    both = both[np.asarray(both.X.sum(1)).ravel() > 0].copy()
    true = truth.obsm["protein_expression"][names]
    true.index = [f"{name}_{LACKING}" for name in true.index]
    return both, true


def split(adata: anndata.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Training cells of both batches, and held-out cells of the one with proteins."""
    measured = np.flatnonzero(adata.obs["batch"] == MEASURED)
    held_out = measured[N_TRAIN:]
    return np.setdiff1d(np.arange(adata.n_obs), held_out), held_out


def log_nb(x: np.ndarray, mu: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Log mass of the negative binomial distribution with mean and inverse dispersion."""
    mu, theta = mu.astype(np.float64) + 1e-8, theta.astype(np.float64)
    return stats.nbinom(theta, theta / (theta + mu)).logpmf(x)


def log_likelihoods(adata: anndata.AnnData, draws: list[dict[str, Any]]) -> dict[str, float]:
    """Mean log likelihood of a cell's RNA and proteins over draws of the latents, and a bound.

    Each draw has ``mean``, ``theta``, ``background``, ``foreground``, ``phi`` and ``pi``, and
    ``log_ratio``, the log density of the latents in the prior minus that in the guide, per cell.
    The bound of the log likelihood of both is that of importance weights.
    """
    x = np.asarray(adata.X.todense(), dtype=np.float64)
    y = adata.obsm["protein_expression"].to_numpy()
    rna, protein, weight = [], [], []
    for draw in draws:
        rna.append(log_nb(x, draw["mean"], draw["theta"]).sum(1))
        pi = draw["pi"].astype(np.float64)
        back = np.log(pi) + log_nb(y, draw["background"], draw["phi"])
        fore = np.log1p(-pi) + log_nb(y, draw["foreground"], draw["phi"])
        protein.append(np.logaddexp(back, fore).sum(1))
        weight.append(rna[-1] + protein[-1] + draw["log_ratio"])
    joint = special.logsumexp(weight, axis=0) - np.log(len(weight))
    return {
        "rna": float(np.mean(rna)),
        "protein": float(np.mean(protein)),
        "joint": float(np.mean(joint)),
    }


def areas(adata: anndata.AnnData, probability: pd.DataFrame) -> dict[str, float]:
    """Area under the ROC curve of the foreground probability, against RNA of the lineage."""
    found = {}
    for protein, genes in LINEAGES.items():
        counts = np.asarray(adata[:, list(genes)].X.sum(1)).ravel()
        has, lacks = counts >= ENOUGH.get(protein, 2), counts == 0
        if protein in ENOUGH:
            lacks = counts <= ENOUGH[protein] / 4
        column = probability[next(c for c in probability if c.split("_")[0] == protein)]
        ranks = stats.rankdata(np.concatenate([column[has], column[lacks]]))
        n_has, n_lacks = has.sum(), lacks.sum()
        area = (ranks[:n_has].sum() - n_has * (n_has + 1) / 2) / (n_has * n_lacks)
        found[protein] = float(area)
    return found


def imputed_correlations(imputed: pd.DataFrame, true: pd.DataFrame) -> dict[str, float]:
    """Correlation of the logs of imputed and measured proteins, over the cells that have both."""
    shared = true.loc[true.index.isin(imputed.index)]
    guess = np.log1p(imputed.loc[shared.index])
    return {name: float(np.corrcoef(guess[name], np.log1p(shared[name]))[0, 1]) for name in shared}
