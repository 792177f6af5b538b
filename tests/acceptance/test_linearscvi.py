"""LinearSCVI on PBMC: loadings over restarts, and held-out likelihood, beside scvi-tools'."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from tests.benchmarks.peers import peer_python
from tests.benchmarks.quality_data import PBMC3K, prepare

from pyrovi._settings import settings
from pyrovi.model import LinearSCVI
from pyrovi.posterior.alignment import best_turns

pytestmark = [pytest.mark.acceptance, pytest.mark.filterwarnings("ignore")]

SEEDS, N_LATENT, EPOCHS, N_MC = 3, 5, 60, 50
PLAN: dict[str, Any] = {"lr": 5e-3, "n_epochs_kl_warmup": 10}
PEER = Path(__file__).with_name("linearscvi_peer.py")


def agreement(fits: list[np.ndarray], symmetry: Any) -> float:
    """Mean absolute correlation of matched loadings over all pairs of fits."""
    centred = [(fit - fit.mean(0)).T for fit in fits]
    found = []
    for i, one in enumerate(centred):
        for other in centred[i + 1 :]:
            turn = best_turns(one[None], other, symmetry)[0]
            turned = turn.T @ one
            pairs = zip(turned, other, strict=True)
            found += [abs(np.corrcoef(a, b)[0, 1]) for a, b in pairs]
    return float(np.mean(found))


def own(job: dict[str, Any]) -> dict[str, Any]:
    """As the peer's script."""
    adata = anndata.read_h5ad(job["file"])
    split = np.load(job["split"])
    settings.seed = job["seed"]
    LinearSCVI.setup_anndata(adata, batch_key=job["batch_key"])
    model = LinearSCVI(adata, n_latent=job["n_latent"])
    division = [split["train"], np.zeros(0, int), split["test"]]
    model.train(
        job["max_epochs"],
        accelerator="cpu",
        datasplitter_kwargs={"external_indexing": division},
        plan_kwargs=job["plan_kwargs"],
        enable_progress_bar=False,
    )
    test = model.get_marginal_ll(indices=split["test"], n_mc_samples=job["n_mc_samples"])
    return {"test": test, "loadings": model.get_loadings().to_numpy()}


def test_loadings_and_likelihood(
    pyrovi_data: Path, tmp_path: Path, table: list[dict[str, Any]]
) -> None:
    if not (pyrovi_data / PBMC3K.file).is_file():
        pytest.skip(f"needs {PBMC3K.file} among the real data")
    file = prepare(PBMC3K, pyrovi_data, tmp_path, 1)
    job = {"file": str(file), "split": str(tmp_path / "pbmc3k-split0.npz"), "batch_key": None}
    job |= {"n_latent": N_LATENT, "max_epochs": EPOCHS, "n_mc_samples": N_MC, "plan_kwargs": PLAN}
    jobs = [{**job, "seed": seed} for seed in range(SEEDS)]  # one split: only the fits differ
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = [str(peer_python()), str(PEER), str(tmp_path / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {"scvi-tools": json.loads(done.stdout.splitlines()[-1]), "pyrovi": list(map(own, jobs))}
    summary = {}
    for fit, results in found.items():
        loadings = [np.array(result["loadings"], float) for result in results]
        test = np.array([result["test"] for result in results])
        row = {f"test log-lik, seed {s}": round(float(v), 2) for s, v in enumerate(test)}
        row |= {s: round(agreement(loadings, s), 3) for s in ("permutation", "rotation")}
        table.append({"case": "LinearSCVI, PBMC 3k, loadings over seeds", "fit": fit, **row})
        print(table[-1], flush=True)
        summary[fit] = (test, row["rotation"])
    (mine, turned), (peer, peer_turned) = summary["pyrovi"], summary["scvi-tools"]
    noise = np.hypot(mine.std(ddof=1), peer.std(ddof=1)) / SEEDS**0.5
    assert mine.mean() > peer.mean() - 2 * noise - 0.5
    assert turned > peer_turned - 0.03
    assert turned > 0.9
