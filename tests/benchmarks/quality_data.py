"""Data of the quality benchmark, prepared once for both sides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
from scipy import sparse

TEST_SHARE = 0.25


@dataclass(frozen=True)
class Dataset:
    """A file of the data folder and how it is used."""

    name: str
    file: str
    title: str
    labels_key: str
    batch_key: str | None
    n_genes: int | None
    """Most variable genes to keep; ``None`` keeps all."""
    max_epochs: int
    n_epochs_kl_warmup: int
    """KL warm-up of the rows where both sides have the same."""


PBMC3K = Dataset(
    "pbmc3k",
    "pbmc3k_10x_v1_labelled.h5ad",
    "PBMC 3k (10x Genomics)",
    "cell_type",
    None,
    n_genes=2000,
    max_epochs=80,
    n_epochs_kl_warmup=20,
)
KANG = Dataset(
    "kang",
    "kang2018_ctrl_8donors_1287genes.h5ad",
    "Kang 2018, control arm, 8 donors",
    "cell_type",
    "donor",
    n_genes=None,
    max_epochs=30,
    n_epochs_kl_warmup=10,
)


def most_variable_genes(counts: sparse.csr_matrix, n_genes: int) -> np.ndarray:
    """Positions, in increasing order, of the genes with the largest variance of log1p(CP10k).

    Parameters
    ----------
    counts
        Counts, cells by genes.
    n_genes
        Number of genes.
    """
    values = sparse.csr_matrix(counts, dtype=np.float64)
    totals = np.asarray(values.sum(1)).ravel()
    values = sparse.diags_array(1e4 / totals) @ values
    values.data = np.log1p(values.data)
    mean = np.asarray(values.mean(0)).ravel()
    variance = np.asarray(values.multiply(values).mean(0)).ravel() - mean**2
    return np.sort(np.argsort(-variance, kind="stable")[:n_genes])


def split(n_obs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of training and test cells, a quarter of all, drawn at random by ``seed``."""
    order = np.random.default_rng(seed).permutation(n_obs)
    n_test = round(TEST_SHARE * n_obs)
    return np.sort(order[n_test:]), np.sort(order[:n_test])


def prepare(dataset: Dataset, source: Path, folder: Path, n_seeds: int) -> Path:
    """Write the prepared data and the splits into ``folder``; returns the data file.

    Splits are ``<name>-split<seed>.npz``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    adata = ad.read_h5ad(source / dataset.file)
    if dataset.n_genes is not None:
        adata = adata[:, most_variable_genes(adata.X, dataset.n_genes)]
    keep = [k for k in (dataset.labels_key, dataset.batch_key) if k is not None]
    slim = ad.AnnData(sparse.csr_matrix(adata.X), obs=adata.obs[keep].copy(), var=adata.var[[]])
    path = folder / f"{dataset.name}.h5ad"
    slim.write_h5ad(path)
    for seed in range(n_seeds):
        train, test = split(slim.n_obs, seed)
        np.savez(folder / f"{dataset.name}-split{seed}.npz", train=train, test=test)
    return path
