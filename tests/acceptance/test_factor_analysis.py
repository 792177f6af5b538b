"""PPCA and factor analysis of log-normalised counts: the closed form, and scikit-learn's."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.linalg import subspace_angles
from tests.benchmarks.peers import peer_python
from tests.benchmarks.quality_data import split

from pyrovi._settings import settings
from pyrovi.model import PPCA, FactorAnalysis

pytestmark = [pytest.mark.acceptance, pytest.mark.filterwarnings("ignore")]

SEEDS, N_LATENT = 3, 10
N_VARS = (1000, 2000)
"""Fewer than the training cells, and more: scikit-learn's noise of PPCA is right for the first."""

PEER = Path(__file__).with_name("factor_analysis_peer.py")


def log_normalised(folder: Path) -> anndata.AnnData:
    """log1p of counts per 10,000."""
    file = next(folder.glob("cell_lines_5cl*.h5ad"), None)
    if file is None:
        pytest.skip("needs cell_lines_5cl among the real data")
    adata = anndata.read_h5ad(file)
    counts = sp.csr_matrix(adata.X, dtype=np.float64)
    values = sp.csr_matrix(sp.diags_array(1e4 / np.asarray(counts.sum(1)).ravel()) @ counts)
    values.data = np.log1p(values.data)
    adata.X = values.astype(np.float32)
    return adata


def most_varying(adata: anndata.AnnData, train: np.ndarray, n_vars: int) -> anndata.AnnData:
    """The variables of the largest variance in the training cells, none of them constant."""
    variance = adata.X[train].toarray().var(0)
    kept = np.sort(np.argsort(-variance)[:n_vars])
    return adata[:, kept[variance[kept] > 0]].copy()


def with_peer(adata: anndata.AnnData, folder: Path) -> list[dict[str, Any]]:
    """Per number of variables and seed: data, split, and what scikit-learn finds."""
    cases, jobs = [], []
    for n_vars, seed in itertools.product(N_VARS, range(SEEDS)):
        train, test = split(adata.n_obs, seed)
        seen = most_varying(adata, train, n_vars)
        file = folder / f"{n_vars}_{seed}.npz"
        np.savez(file, train=seen.X[train].toarray(), test=seen.X[test].toarray())
        jobs.append({"file": str(file), "n_latent": N_LATENT, "seed": seed})
        cases.append({"adata": seen, "train": train, "test": test, "seed": seed})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [str(peer_python()), str(PEER), str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for case, found in zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True):
        case["peer"] = found
    return cases


def test_against_scikit_learn(
    pyrovi_data: Path, tmp_path: Path, table: list[dict[str, Any]]
) -> None:
    cases = with_peer(log_normalised(pyrovi_data), tmp_path)
    for cls, case in itertools.product((PPCA, FactorAnalysis), cases):
        settings.seed = case["seed"]
        adata, train, test = case["adata"], case["train"], case["test"]
        cls.setup_anndata(adata)
        model = cls(adata, n_latent=N_LATENT)
        division = {"external_indexing": [train, np.zeros(0, int), test]}
        start = time.perf_counter()
        model.train(datasplitter_kwargs=division, enable_progress_bar=False)
        seconds = time.perf_counter() - start
        own = {"train": model.get_elbo(indices=train), "test": model.get_elbo(indices=test)}
        peer = case["peer"][cls.__name__]
        W = model.get_loadings().to_numpy().astype(float)
        angle = subspace_angles(W, np.array(peer["components"]).T).max()
        row = {f"{k} log-lik": round(v, 3) for k, v in own.items()}
        row |= {"angle to peer": round(float(angle), 5), "seconds": round(seconds, 1)}
        name = f"{cls.__name__}, cell lines, {adata.n_vars} genes, seed {case['seed']}"
        table.append({"case": name, "fit": "pyrovi", **row})
        row = {f"{k} log-lik": round(peer[k], 3) for k in own} | {
            "seconds": round(peer["seconds"], 1)
        }
        table.append({"case": name, "fit": "scikit-learn", **row})
        print(*table[-2:], sep="\n", flush=True)
        for part in own:
            assert own[part] > peer[part] - 0.1
            if cls is FactorAnalysis or adata.n_vars < len(train):
                assert own[part] == pytest.approx(peer[part], rel=1e-3)
            else:
                assert own[part] > peer[part] + 1
        if cls is PPCA:  # its maximum is known; factor analysis stops earlier there
            assert own["train"] == pytest.approx(closed_form(adata.X[train].toarray()), rel=1e-5)
            assert angle < 1e-2


def closed_form(X: np.ndarray) -> float:
    """Largest log-likelihood per observation (Tipping & Bishop 1999, eq. 4 at its maximum)."""
    X = X.astype(np.float64)
    n, d = X.shape
    eigenvalues = np.zeros(d)
    lengths = np.linalg.svd(X - X.mean(0), compute_uv=False)
    eigenvalues[: len(lengths)] = lengths**2 / n
    sigma2 = eigenvalues[N_LATENT:].mean()
    log_det = np.log(eigenvalues[:N_LATENT]).sum() + (d - N_LATENT) * np.log(sigma2)
    return float(-0.5 * (d * np.log(2 * np.pi) + log_det + d))
