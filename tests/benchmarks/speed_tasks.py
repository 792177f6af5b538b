"""What the speed benchmark measures, the same of pyrovi and of scvi-tools."""

from __future__ import annotations

from typing import Any

import anndata
import torch
from speed_common import Job, answer, measure


def run(SCVI: Any, AnnDataLoader: Any, NegativeBinomial: Any, ZINB: Any, **options: Any) -> None:
    """Measure the job on the command line.

    Parameters
    ----------
    SCVI, AnnDataLoader, NegativeBinomial, ZINB
        The classes of a package.
    options
        Further arguments of its ``train``.
    """
    job = Job.given()
    adata = anndata.read_h5ad(job.data)
    if job.task == "log_prob":
        _log_prob(job, adata, NegativeBinomial, ZINB)
        return
    SCVI.setup_anndata(adata)
    if job.task == "epoch":
        model = SCVI(adata, gene_likelihood=job.likelihood)
        call = {"train_size": 1.0, "batch_size": job.batch_size, "accelerator": "cpu", **options}
        answer(measure(lambda: model.train(1, **call), job.repeats))
        return
    manager = SCVI(adata).adata_manager
    loader = AnnDataLoader(manager, batch_size=job.batch_size, shuffle=True)
    answer(measure(lambda: sum(len(batch["X"]) for batch in loader), 10 * job.repeats))


def _log_prob(job: Job, adata: anndata.AnnData, NegativeBinomial: Any, ZINB: Any) -> None:
    """Density of a minibatch of counts and its gradient."""
    X = torch.as_tensor(adata[: job.batch_size].X.toarray())
    torch.manual_seed(0)
    mu = (X.mean(0) + 0.01) * torch.rand_like(X).add(0.5)
    theta, zi_logits = torch.rand(X.shape[1]).add(0.5), torch.randn_like(X)
    leaves = [t.requires_grad_() for t in (mu, theta, zi_logits)]

    def once() -> None:
        for leaf in leaves:
            leaf.grad = None
        if job.likelihood == "nb":
            fn = NegativeBinomial(mu=mu, theta=theta, validate_args=False)
        else:
            fn = ZINB(mu=mu, theta=theta, zi_logits=zi_logits, validate_args=False)
        fn.log_prob(X).sum(-1).mean().backward()

    answer(measure(once, 10 * job.repeats))
