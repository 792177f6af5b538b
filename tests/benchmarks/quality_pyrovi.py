"""The pyrovi side of the quality benchmark: ``python quality_pyrovi.py JOB.json RESULT.json``."""

from __future__ import annotations

import anndata as ad
import numpy as np
from quality_common import Fitted, Job, epoch_timer, main

import pyrovi as pv


def fit(job: Job, adata: ad.AnnData, train: np.ndarray, test: np.ndarray) -> Fitted:
    """Train on the training cells; evaluate on the test cells."""
    pv.settings.seed = job.seed
    pv.model.SCVI.setup_anndata(adata, batch_key=job.batch_key)
    model = pv.model.SCVI(adata, **job.model_kwargs())
    timer = epoch_timer()
    model.train(
        max_epochs=job.max_epochs,
        batch_size=job.batch_size,
        accelerator="cpu",
        datasplitter_kwargs={"external_indexing": [train, None, test]},
        plan_kwargs=job.plan_kwargs(),
        enable_progress_bar=False,
        callbacks=[timer],
    )
    return Fitted(
        latent=model.get_latent_representation(),
        elbo=model.get_elbo(indices=test, num_samples=job.n_elbo_samples),
        marginal_ll=model.get_marginal_ll(indices=test, n_mc_samples=job.n_marginal_samples),
        epoch_seconds=timer.seconds,
        package="pyrovi",
    )


if __name__ == "__main__":
    main(fit)
