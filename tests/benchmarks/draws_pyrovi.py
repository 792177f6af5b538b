"""pyrovi's side of the benchmark of posterior draws."""

from __future__ import annotations

import json
import sys
import time

import anndata
import numpy as np
import pyro
import pyro.distributions as dist
import torch

import pyrovi as pv


def factors(X: torch.Tensor, *, n_vars: int, n_factors: int) -> None:
    """X_n ~ N(z_n W, 1), W and z_n standard normal."""
    W = pyro.sample("W", dist.Normal(torch.zeros(n_factors, n_vars), 1.0).to_event(2))
    with pv.obs_plate():
        z = pyro.sample("z", dist.Normal(torch.zeros(n_factors), 1.0).to_event(1))
        mu = pyro.deterministic("mu", z @ W, event_dim=1)
        pyro.sample("X", dist.Normal(mu, 1.0).to_event(1), obs=X)


def make_model(job: dict) -> pv.model.PyroModel:
    """The model of a job, trained for one epoch."""
    import functools

    rng = np.random.default_rng(0)
    X = rng.normal(size=(job["n_obs"], job["n_vars"])).astype(np.float32)
    story = functools.partial(factors, n_factors=job["n_factors"])
    model = pv.from_pyro(story, anndata.AnnData(X), {"X": pv.fields.layer()}, guide="normal")
    model.train(max_epochs=1, batch_size=job["batch_size"], train_size=1.0, accelerator="cpu",
                enable_progress_bar=False)  # fmt: skip
    return model


def main() -> None:
    """Print the median seconds of three calls, after one that warms up."""
    job = json.loads(sys.argv[1])
    model = make_model(job)
    options = {"batch_size": job["batch_size"]}
    model.sample_posterior(job["sites"], num_samples=2, **options)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        model.sample_posterior(job["sites"], num_samples=job["num_samples"], **options)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": sorted(seconds)[1]}))


if __name__ == "__main__":
    main()
