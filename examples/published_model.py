"""A published model: SCVI on counts from two batches, asked for everything by name.

Run: python examples/published_model.py [--tiny]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import pyrovi as pv


def main(tiny: bool) -> None:
    adata = pv.data.synthetic_iid(batch_size=50 if tiny else 400, n_genes=30 if tiny else 200)
    adata.obs_names = [f"cell_{i}" for i in range(adata.n_obs)]

    pv.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = pv.model.SCVI(adata, n_latent=5, gene_likelihood="nb")
    model.train(max_epochs=5 if tiny else 100, accelerator="cpu", enable_progress_bar=False)

    # the evidence lower bound of cells that training has not seen; higher is better
    held_out = model.get_elbo(indices=model.validation_indices)
    print(f"held-out ELBO per cell: {held_out:.2f} nats")

    latent = model.get_latent_representation()
    print(f"latent space: {latent.shape[0]} cells x {latent.shape[1]} dimensions")

    # every quantity is a site of the model; results carry the names of cells and genes
    print(model.sites)
    gene = adata.var_names[0]
    rho = model.sample_posterior("rho", num_samples=50, indices=[0, 1, 2], reduce=["q05", "q95"])
    print(rho["rho"].sel(var=gene).to_pandas())

    # what if these cells had come from the first batch? an intervention on the covariate
    def first_batch(minibatch):
        tensors = dict(minibatch.tensors)
        tensors["batch"] = tensors["batch"] * 0
        return minibatch.replace(tensors=tensors)

    corrected = model.sample_posterior("rho", reduce="mean", intervention=first_batch)
    print(f"corrected expression: {dict(corrected.sizes)}")

    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")  # tensors and JSON
        again = pv.load(Path(folder) / "model", adata)
    assert np.array_equal(again.get_latent_representation(), latent)
    print("saved and loaded: the same latent space")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few seconds, for tests")
    main(parser.parse_args().tiny)
