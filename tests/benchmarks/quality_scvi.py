"""The scvi-tools side of the quality benchmark: ``python quality_scvi.py JOB.json RESULT.json``.

Runs in the environment that ``peers.py`` makes.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import scvi
from quality_common import Fitted, Job, epoch_timer, main


def fit(job: Job, adata: ad.AnnData, train: np.ndarray, test: np.ndarray) -> Fitted:
    """Train on the training cells; evaluate on the test cells."""
    scvi.settings.seed = job.seed
    scvi.model.SCVI.setup_anndata(adata, batch_key=job.batch_key)
    model = scvi.model.SCVI(adata, **job.model_kwargs())
    timer = epoch_timer()
    model.train(
        max_epochs=job.max_epochs,
        batch_size=job.batch_size,
        accelerator="cpu",
        datasplitter_kwargs={"external_indexing": [train, np.array([], dtype=int), test]},
        plan_kwargs=job.plan_kwargs(),
        enable_progress_bar=False,
        callbacks=[timer],
    )
    # get_elbo uses one draw of z and full KL weight: averaging calls averages over draws.
    elbo = np.mean([float(model.get_elbo(indices=test)) for _ in range(job.n_elbo_samples)])
    # return_mean would average the means of minibatches of unequal size.
    marginal = model.get_marginal_ll(
        indices=test, n_mc_samples=job.n_marginal_samples, return_mean=False
    )
    return Fitted(
        latent=model.get_latent_representation(),
        elbo=float(elbo),
        marginal_ll=float(marginal.double().mean()),
        epoch_seconds=timer.seconds,
        package="scvi-tools",
    )


if __name__ == "__main__":
    main(fit)
