"""What the two sides of the quality benchmark share: a job, its data, the judge, the result.

Both ``quality_pyrovi.py`` and ``quality_scvi.py`` import this file, each in its own environment, so
that data, split, timing and judgement are the same code. It must not import either package.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

N_NEIGHBORS = 15


@dataclass(frozen=True)
class Job:
    """One training run and its evaluation; all that either side may know."""

    data: str
    """Prepared h5ad: raw counts in ``X``."""
    split: str
    """npz with the positions ``train`` and ``test``."""
    labels_key: str
    """Column of ``obs`` with the labels of the k-NN judge; training never sees it."""
    batch_key: str | None
    gene_likelihood: str
    max_epochs: int
    n_epochs_kl_warmup: int | None
    """Epochs of the KL warm-up; ``None``: the package's own default."""
    seed: int
    n_hidden: int = 128
    n_latent: int = 10
    n_layers: int = 1
    dropout_rate: float = 0.1
    batch_size: int = 128
    lr: float = 1e-3
    eps: float = 0.01
    weight_decay: float = 1e-6
    n_elbo_samples: int = 20
    n_marginal_samples: int = 100

    def plan_kwargs(self) -> dict[str, Any]:
        """Arguments of the training plan: their names are the same on both sides."""
        options = {"lr": self.lr, "eps": self.eps, "weight_decay": self.weight_decay}
        if self.n_epochs_kl_warmup is not None:
            options["n_epochs_kl_warmup"] = self.n_epochs_kl_warmup
        return options

    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model: their names are the same on both sides."""
        names = ("n_hidden", "n_latent", "n_layers", "dropout_rate", "gene_likelihood")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Fitted:
    """What a side says about its fitted model."""

    latent: np.ndarray
    """Posterior means of all cells, shape ``(n_obs, n_latent)``."""
    elbo: float
    """Un-annealed ELBO per test cell."""
    marginal_ll: float
    """Importance-weighted log-likelihood per test cell."""
    epoch_seconds: list[float]
    package: str
    """Name of the distribution that was measured."""


def knn_accuracy(
    latent: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray
) -> float:
    """Share of test cells whose label the majority of their nearest training cells gives."""
    from sklearn.neighbors import KNeighborsClassifier

    judge = KNeighborsClassifier(n_neighbors=N_NEIGHBORS).fit(latent[train], labels[train])
    return float(judge.score(latent[test], labels[test]))


def epoch_timer() -> Any:
    """A Lightning callback that keeps the time of each training epoch in ``seconds``.

    It is the CPU time of the process, which other processes of the machine do not lengthen. With
    one thread it is the wall time of an idle machine.
    """
    import lightning.pytorch as pl

    class EpochTimer(pl.Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_epoch_start(self, *_: Any) -> None:
            self._start = time.process_time()

        def on_train_epoch_end(self, *_: Any) -> None:
            self.seconds.append(time.process_time() - self._start)

    return EpochTimer()


def main(fit: Callable[[Job, ad.AnnData, np.ndarray, np.ndarray], Fitted]) -> None:
    """Run the job file ``sys.argv[1]`` with one side's ``fit``; write ``sys.argv[2]``."""
    import torch

    torch.set_num_threads(1)
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    adata = ad.read_h5ad(job.data)
    split = np.load(job.split)
    fitted = fit(job, adata, split["train"], split["test"])
    labels = adata.obs[job.labels_key].to_numpy().astype(str)
    result = {
        "job": asdict(job),
        "elbo": fitted.elbo,
        "marginal_ll": fitted.marginal_ll,
        "knn_accuracy": knn_accuracy(fitted.latent, labels, split["train"], split["test"]),
        "seconds_per_epoch": statistics.median(fitted.epoch_seconds),
        "versions": {
            name: version(name) for name in (fitted.package, "torch", "lightning", "anndata")
        },
    }
    Path(sys.argv[2]).write_text(json.dumps(result, indent=1))
