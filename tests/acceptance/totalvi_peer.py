"""scvi-tools' TOTALVI on the same cells, in its own interpreter: totalvi_peer.py DATA SEED."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scvi
import torch
from totalvi_scores import (
    DRAWS,
    EPOCHS,
    MEASURED,
    WARMUP,
    areas,
    data,
    imputed_correlations,
    log_likelihoods,
    split,
)

warnings.simplefilter("ignore")


def draws_of(model: Any, indices: np.ndarray) -> list[dict[str, Any]]:
    """Parameters of the likelihoods at draws of the latents, and the ratio of their densities."""
    found = []
    for _ in range(DRAWS):
        parts = []
        for tensors in model._make_data_loader(adata=model.adata, indices=indices, batch_size=512):
            inference, generative = model.module.forward(tensors, compute_loss=False)
            y, z = generative["py_norm_"], inference["untran_z"]
            log_beta = generative["log_pro_back_mean"]
            prior, guide = inference["back_mean_prior"], generative["py_"]
            log_q = torch.distributions.Normal(guide["back_alpha"], guide["back_beta"])
            ratio = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
            ratio = ratio - inference["qz"].log_prob(z).sum(1)
            ratio = ratio + (prior.log_prob(log_beta) - log_q.log_prob(log_beta)).sum(1)
            n = len(z)
            parts.append({
                "mean": generative["px_"]["rate"],
                "theta": generative["px_"]["r"].expand(n, -1),
                "background": y["rate_back"],
                "foreground": y["rate_fore"],
                "phi": generative["py_"]["r"].expand(n, -1),
                "pi": torch.sigmoid(y["mixing"]),
                "log_ratio": ratio,
            })  # fmt: skip
        found.append({k: torch.cat([p[k] for p in parts]).numpy() for k in parts[0]})
    return found


def main() -> None:
    """Fit, score, print JSON."""
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    scvi.settings.seed = seed
    adata, true = data(folder)
    train, held_out = split(adata)
    scvi.model.TOTALVI.setup_anndata(adata, "protein_expression", batch_key="batch")
    model = scvi.model.TOTALVI(adata)
    model.train(
        max_epochs=EPOCHS,
        n_epochs_kl_warmup=WARMUP,
        early_stopping=False,
        reduce_lr_on_plateau=False,
        external_indexing=[train, np.array([], dtype=int), held_out],
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
    )
    model.module.eval()
    with torch.inference_mode():
        scores: dict[str, Any] = log_likelihoods(adata[held_out], draws_of(model, held_out))
    probability = model.get_protein_foreground_probability(
        indices=held_out, n_samples=DRAWS, return_mean=True
    )
    scores["auc"] = areas(adata[held_out], probability)
    lacking = np.flatnonzero(adata.obs_names.isin(true.index))
    _, imputed = model.get_normalized_expression(
        indices=lacking,
        transform_batch=MEASURED,
        n_samples=DRAWS,
        return_mean=True,
        include_protein_background=True,
    )
    scores["imputation"] = imputed_correlations(imputed, true)
    print("RESULT " + json.dumps(scores))


if __name__ == "__main__":
    main()
