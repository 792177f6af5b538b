"""The scvi-tools side of ``parity_scvi.py``: ``python parity_peer.py DATA.h5ad CASES.json OUT``.

For every case it fits a model for a moment and writes its parameters, and the ELBO of every cell at
the posterior mean of its latents, in double precision, to ``OUT/<case>.npz``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import anndata as ad
import numpy as np
import scvi
import torch
from torch.distributions import kl_divergence


def elbo_at_mean(model: Any, latent_distribution: str) -> np.ndarray:
    """ELBO of each cell with z (and l, where it is latent) at the mean of its encoder."""
    module = model.module.double().eval()
    (tensors,) = model._make_data_loader(model.adata, batch_size=model.adata.n_obs)
    tensors = {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}
    # one-hot codes are cast by Tensor.float, which would not go with parameters in double precision
    with torch.no_grad(), mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        inferred = module.inference(**module._get_inference_input(tensors))
        qz, ql = inferred["qz"], inferred["ql"]
        inferred["z"] = qz.loc.softmax(-1) if latent_distribution == "ln" else qz.loc
        if ql is not None:
            inferred["library"] = ql.loc
        generated = module.generative(**module._get_generative_input(tensors, inferred))
        prior = torch.distributions.Normal(torch.zeros_like(qz.loc), 1.0)
        elbo = generated["px"].log_prob(tensors["X"]).sum(-1) - kl_divergence(qz, prior).sum(-1)
        if ql is not None:
            elbo = elbo - kl_divergence(ql, generated["pl"]).sum(-1)
    return elbo.numpy()


def main() -> None:
    """Run all cases."""
    data, cases, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    for case in json.loads(cases.read_text()):
        scvi.settings.seed = 0
        adata = ad.read_h5ad(data)
        scvi.model.SCVI.setup_anndata(adata, **case["setup"])
        model = scvi.model.SCVI(adata, **case["model"])
        # a few steps move every parameter and running statistic away from its initial value
        model.train(max_epochs=3, accelerator="cpu", train_size=1.0, enable_progress_bar=False)
        elbo = elbo_at_mean(model, case["model"].get("latent_distribution", "normal"))
        parameters = {k: v.numpy() for k, v in model.module.state_dict().items()}
        np.savez(out / f"{case['name']}.npz", **{"elbo at mean": elbo}, **parameters)


if __name__ == "__main__":
    main()
