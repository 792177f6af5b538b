"""pyrovi's side of the speed benchmark."""

from __future__ import annotations

import anndata
import torch
from speed_common import Job, answer, measure

import pyrovi as pv
from pyrovi.dataloaders import AnnDataLoader
from pyrovi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial


def epoch(job: Job) -> None:
    """Train SCVI for an epoch."""
    adata = anndata.read_h5ad(job.data)
    pv.model.SCVI.setup_anndata(adata)
    model = pv.model.SCVI(adata, gene_likelihood=job.likelihood)

    def once() -> None:
        model.train(
            1, train_size=1.0, batch_size=job.batch_size, accelerator="cpu",
            enable_progress_bar=False,
        )  # fmt: skip

    answer(measure(once, job.repeats))


def log_prob(job: Job) -> None:
    """Density of a minibatch of counts and its gradient."""
    X = torch.as_tensor(anndata.read_h5ad(job.data)[: job.batch_size].X.toarray())
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
            fn = ZeroInflatedNegativeBinomial(
                mu=mu, theta=theta, zi_logits=zi_logits, validate_args=False
            )
        fn.log_prob(X).sum(-1).mean().backward()

    answer(measure(once, 10 * job.repeats))


def loading(job: Job) -> None:
    """All minibatches of an epoch, in random order."""
    adata = anndata.read_h5ad(job.data)
    pv.model.SCVI.setup_anndata(adata)
    manager = pv.model.SCVI(adata).adata_manager
    loader = AnnDataLoader(manager, batch_size=job.batch_size, shuffle=True)
    answer(measure(lambda: sum(batch.n for batch in loader), job.repeats))


JOB = Job.given()
{"epoch": epoch, "log_prob": log_prob, "loading": loading}[JOB.task](JOB)
