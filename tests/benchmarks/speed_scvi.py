"""scvi-tools' side of the speed benchmark; runs in its own environment."""

from __future__ import annotations

import warnings

import anndata
import torch
from scvi.dataloaders import AnnDataLoader
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from scvi.model import SCVI
from speed_common import Job, answer, measure

warnings.filterwarnings("ignore")


def epoch(job: Job) -> None:
    adata = anndata.read_h5ad(job.data)
    SCVI.setup_anndata(adata)
    model = SCVI(adata, gene_likelihood=job.likelihood)

    def once() -> None:
        model.train(
            1, train_size=1.0, batch_size=job.batch_size, accelerator="cpu",
            enable_progress_bar=False, logger=False,
        )  # fmt: skip

    answer(measure(once, job.repeats))


def log_prob(job: Job) -> None:
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
    adata = anndata.read_h5ad(job.data)
    SCVI.setup_anndata(adata)
    manager = SCVI(adata).adata_manager
    loader = AnnDataLoader(manager, batch_size=job.batch_size, shuffle=True)
    answer(measure(lambda: sum(len(batch["X"]) for batch in loader), job.repeats))


JOB = Job.given()
{"epoch": epoch, "log_prob": log_prob, "loading": loading}[JOB.task](JOB)
