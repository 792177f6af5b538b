"""A small trained model, shared by the tests of criticism."""

from __future__ import annotations

import pytest

import pyrovi as pv


@pytest.fixture(scope="session")
def trained():
    adata = pv.data.synthetic_iid(batch_size=30, n_genes=12)
    adata.obs_names = [f"cell_{i}" for i in range(adata.n_obs)]
    pv.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = pv.model.SCVI(adata, n_hidden=8, n_latent=3, gene_likelihood="nb")
    model.train(3, accelerator="cpu", enable_progress_bar=False)
    return model


@pytest.fixture(scope="session")
def checks(trained):
    return pv.criticism.posterior_predictive_checks(trained, num_samples=6, batch_size=16)
