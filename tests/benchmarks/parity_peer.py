"""The scvi-tools side of ``parity_scvi.py``: ``python parity_peer.py DATA.h5ad CASES.json OUT``.

For every case it fits a model for a moment. It writes its parameters, the ELBO of every cell at the
posterior mean of its latents, and the loss of a training step with its gradient, all in double
precision, to ``OUT/<case>.npz``.
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


def elbo_at_mean(module: Any, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """ELBO of each cell with z (and l, where it is latent) at the mean of its encoder."""
    with torch.no_grad():
        inferred = module.inference(**module._get_inference_input(tensors))
        qz, ql = inferred["qz"], inferred["ql"]
        inferred["z"] = module.z_encoder.z_transformation(qz.loc)
        if ql is not None:
            inferred["library"] = ql.loc
        generated = module.generative(**module._get_generative_input(tensors, inferred))
        prior = torch.distributions.Normal(torch.zeros_like(qz.loc), 1.0)
        elbo = generated["px"].log_prob(tensors["X"]).sum(-1) - kl_divergence(qz, prior).sum(-1)
        if ql is not None:
            elbo = elbo - kl_divergence(ql, generated["pl"]).sum(-1)
    return elbo.numpy()


def training_step(
    module: Any, tensors: dict[str, torch.Tensor], kl_weight: float
) -> dict[str, np.ndarray]:
    """Loss and gradient of a step in training mode, its noise seeded with 0."""
    module.train()
    module.zero_grad()
    torch.manual_seed(0)
    _, _, losses = module(tensors, loss_kwargs={"kl_weight": kl_weight})
    losses.loss.backward()
    gradients = {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
    return {"loss": losses.loss.detach().numpy()} | {
        f"gradient {name}": gradient.numpy() for name, gradient in gradients.items()
    }


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
        module = model.module.double().eval()
        (tensors,) = model._make_data_loader(adata, batch_size=adata.n_obs)
        tensors = {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}
        state = {f"state {k}": v.numpy().copy() for k, v in module.state_dict().items()}
        # one-hot codes are cast by Tensor.float, which does not go with double precision
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            elbo = elbo_at_mean(module, tensors)
            step = training_step(module, tensors, case["kl_weight"])
        np.savez(out / f"{case['name']}.npz", elbo=elbo, **state, **step)


if __name__ == "__main__":
    main()
