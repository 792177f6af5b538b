"""AmortizedLDA on news texts, against scikit-learn's and scvi-tools' LDA."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from tests.benchmarks.peers import peer_python

import pyrovi as pv

pytestmark = [pytest.mark.acceptance, pytest.mark.filterwarnings("ignore")]

SEEDS, TOPICS, HELD_OUT, TOP = (0, 1, 2), 20, 80, 10


def split(X: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Documents to train on; and two halves of the words of the others."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(X))
    held_out, train = np.sort(order[:HELD_OUT]), np.sort(order[HELD_OUT:])
    seen = rng.binomial(X[held_out], 0.5)
    return {"train": X[train], "seen": seen, "unseen": X[held_out] - seen}


def perplexity(theta: np.ndarray, beta: np.ndarray, unseen: np.ndarray) -> float:
    """Per word, of the second halves given the first; lower is better."""
    return float(np.exp(-(unseen * np.log(theta @ beta)).sum() / unseen.sum()))


def npmi(beta: np.ndarray, X: np.ndarray) -> float:
    """Normalised pointwise mutual information of top words over documents; higher is better."""
    present = (X > 0).astype(float)
    alone, scores = present.mean(0), []
    for topic in beta:
        words = np.argsort(-topic)[:TOP]
        together = present[:, words].T @ present[:, words] / len(X)
        for i, j in zip(*np.triu_indices(TOP, 1), strict=True):
            p, q = together[i, j], alone[words[i]] * alone[words[j]]
            scores.append(-1.0 if p == 0 else (np.log(p / q) / -np.log(p) if p < 1 else 1.0))
    return float(np.mean(scores))


def by_pyrovi(data: dict[str, np.ndarray], names: Any, seed: int) -> dict[str, Any]:
    pv.settings.seed = seed
    pv.settings.enable_progress_bar = False
    train = anndata.AnnData(data["train"].astype(np.float32))
    seen = anndata.AnnData(data["seen"].astype(np.float32))
    train.var_names = seen.var_names = names
    seen.obs_names = [f"held_out_{i}" for i in range(seen.n_obs)]
    pv.model.AmortizedLDA.setup_anndata(train)
    model = pv.model.AmortizedLDA(train, n_topics=TOPICS)
    model.train(train_size=1.0)
    return {
        "beta": model.get_feature_by_topic().to_numpy().T,
        "theta": model.get_latent_representation(seen).to_numpy(),
        "perplexity": model.get_perplexity(),
    }


def by_peer(data: dict[str, np.ndarray], peer: str, seed: int, folder: Path) -> dict[str, Any]:
    file, result = folder / f"data_{seed}.npz", folder / f"{peer}_{seed}.npz"
    np.savez(file, **data)
    job = {"peer": peer, "data": str(file), "n_topics": TOPICS, "seed": seed, "result": str(result)}
    path = folder / f"{peer}_{seed}.json"
    path.write_text(json.dumps(job))
    script = Path(__file__).with_name("lda_peer.py")
    subprocess.run([peer_python("scvi"), script, path], check=True, capture_output=True)
    return dict(np.load(result))


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> dict[str, list[dict[str, float]]]:
    """Fit -> scores of each seed; every fit has the same documents and the same halves."""
    file = pyrovi_file()
    adata = anndata.read_h5ad(file)
    X = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    X, folder = X.astype(int), tmp_path_factory.mktemp("lda")
    found: dict[str, list[dict[str, float]]] = {}
    for seed in SEEDS:
        data = split(X, seed)
        fits = {"pyrovi": by_pyrovi(data, adata.var_names, seed)}
        fits |= {p: by_peer(data, p, seed, folder) for p in ("scikit-learn", "scvi-tools")}
        for fit, result in fits.items():
            score = {
                "completion": perplexity(result["theta"], result["beta"], data["unseen"]),
                "npmi": npmi(result["beta"], X),
                "reported": float(result.get("perplexity", np.nan)),
            }
            found.setdefault(fit, []).append(score)
    return found


def pyrovi_file() -> Path:
    import os

    folder = os.environ.get("PYROVI_DATA")
    file = Path(folder or ".") / "text_reuters_395docs.h5ad"
    if not folder or not file.exists():
        pytest.skip("needs real data: PYROVI_DATA with text_reuters_395docs.h5ad")
    return file


def of(scores: dict[str, list[dict[str, float]]], fit: str, score: str) -> np.ndarray:
    return np.array([row[score] for row in scores[fit]])


def test_held_out_words_and_coherence(scores, table):
    for fit, rows in scores.items():
        for seed, row in zip(SEEDS, rows, strict=True):
            table.append(
                {
                    "case": f"LDA, Reuters, seed {seed}",
                    "fit": fit,
                    "held-out perplexity": round(row["completion"], 1),
                    "NPMI": round(row["npmi"], 3),
                    "reported perplexity": round(row["reported"], 4),
                }
            )
    for peer in ("scikit-learn", "scvi-tools"):
        lower = of(scores, "pyrovi", "completion") - of(scores, peer, "completion")
        noise = max(lower.std(ddof=1), 0.01 * of(scores, peer, "completion").mean())
        assert lower.mean() < noise, (peer, lower)
        higher = of(scores, "pyrovi", "npmi") - of(scores, peer, "npmi")
        assert higher.mean() > -higher.std(ddof=1), (peer, higher)


def test_the_reported_perplexity_is_the_right_way_up(scores):
    """A perplexity is at least 1; scvi-tools 1.4.2 reports the reciprocal of one."""
    assert (of(scores, "pyrovi", "reported") > 1).all()
    assert (of(scores, "scvi-tools", "reported") < 1).all()
