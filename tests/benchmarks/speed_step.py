"""Where the time of a training step goes; and what the compiled loops change of its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import anndata
import pyro
import torch
from speed_common import Job, answer

from pyrovi.dataloaders import AnnDataLoader
from pyrovi.distributions import (
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
    compiled_counts,
)
from pyrovi.model import SCVI
from pyrovi.train import SVITrainingPlan

ROUNDS = 8


def main() -> None:
    """Milliseconds of a step, and of its parts."""
    job = Job.given()
    adata = anndata.read_h5ad(job.data)
    SCVI.setup_anndata(adata)
    model = SCVI(adata, gene_likelihood=job.likelihood)
    call: dict[str, Any] = {"train_size": 1.0, "batch_size": job.batch_size, "accelerator": "cpu"}
    call["enable_progress_bar"] = False
    model.train(1, **call)
    module = model.module.train()
    loader = AnnDataLoader(model.adata_manager, batch_size=job.batch_size, shuffle=True)
    plan = SVITrainingPlan(module)
    optimizer = torch.optim.Adam(module.parameters(), eps=0.01, fused=True)

    def step(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def density(batch: Any) -> None:
        leaves = made[batch.n]
        loss = -likelihood(module, batch["X"], *leaves).mean()
        torch.autograd.grad(loss, [module.log_theta, *leaves], allow_unused=True)

    made = {n: parameters(module, n) for n in {batch.n for batch in loader}}
    # every part is done for all minibatches in turn, as they are loaded
    parts: dict[str, Callable[[Any], object]] = {
        "loading": lambda batch: None,
        "density": density,
        "optimiser": lambda batch: optimizer.step(),
        "by hand": lambda batch: step(by_hand(module, batch)),
        "pyro": lambda batch: step(plan.objective(batch, 1.0)[0]),
    }
    found: dict[str, list[float]] = {name: [] for name in [*parts, "train"]}
    n_steps = len(loader)
    with pyro.validation_enabled(False):
        for _ in range(ROUNDS + 1):
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter)
            for name, part in parts.items():
                found[name].append(seconds(part, loader) / n_steps)
            began = time.perf_counter()
            model.train(1, **call)
            found["train"].append((time.perf_counter() - began) / n_steps)
            module.train()
    # differences are small beside what other work on the machine adds: the shortest times
    least = {name: 1e3 * min(times[1:]) for name, times in found.items()}
    answer([least["train"]], **least, elbos=held_out_elbos(adata, job))


def held_out_elbos(adata: anndata.AnnData, job: Job) -> list[float]:
    """ELBO of held-out cells after an epoch, with the compiled loops and without."""
    elbos = []
    for applies in (compiled_counts.applies, lambda *_: False):
        compiled_counts.applies = applies  # type: ignore[assignment]
        model = SCVI(adata, gene_likelihood=job.likelihood)
        model.train(1, batch_size=job.batch_size, accelerator="cpu", enable_progress_bar=False)
        elbos.append(model.get_elbo(indices=model.validation_indices))
    return elbos


def seconds(part: Callable[[Any], object], loader: Iterable[Any]) -> float:
    """Time of a part for all minibatches, and of loading them."""
    began = time.perf_counter()
    for batch in loader:
        part(batch)
    return time.perf_counter() - began


def parameters(module: Any, n: int) -> tuple[torch.Tensor, ...]:
    """Made-up parameters of the likelihood of a minibatch."""
    n_genes = len(module.log_theta)
    leaves = torch.rand(n, n_genes), torch.randn(n, n_genes)
    return tuple(leaf.requires_grad_() for leaf in leaves)


def likelihood(module: Any, X: torch.Tensor, mu: torch.Tensor, zi: torch.Tensor) -> torch.Tensor:
    """Log likelihood of each cell."""
    theta = module.log_theta.exp()
    fn: Any = NegativeBinomial(mu=mu + 1e-8, theta=theta, validate_args=False)
    if module.gene_likelihood == "zinb":
        fn = ZeroInflatedNegativeBinomial(
            mu=mu + 1e-8, theta=theta, zi_logits=zi, validate_args=False
        )
    log_prob: torch.Tensor = fn.log_prob(X)
    return log_prob.sum(-1)


def by_hand(module: Any, batch: Any) -> torch.Tensor:
    """The loss of a minibatch, in plain PyTorch."""
    X = batch["X"]
    loc, scale = module.encoder(X.log1p())
    z = loc + scale * torch.randn_like(loc)
    out = module.decoder(z, X.sum(-1, keepdim=True).log(), batch["batch"])
    kl = 0.5 * (scale.square() + loc.square() - 1).sum(-1) - scale.log().sum(-1)
    return (kl - likelihood(module, X, out.rate, out.dropout)).mean()


if __name__ == "__main__":
    main()
