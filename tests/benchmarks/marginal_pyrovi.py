"""Time of the importance-weighted marginal log-likelihood: 300 observations, 20 x 200 draws."""

from __future__ import annotations

import json
import time
from typing import Any

import anndata
import numpy as np
import pyro
import pyro.distributions as dist
import torch

import pyrovi as pv


def factors(X: Any, library: Any, *, n_vars: int, n_factors: int = 5) -> None:
    """X_n ~ NB(mean l_n softmax(b + z_n W), inverse dispersion theta)."""
    b = pyro.sample("b", dist.Normal(torch.zeros(n_vars), 1.0).to_event(1))
    theta = pyro.sample("theta", dist.LogNormal(torch.zeros(n_vars), 1.0).to_event(1))
    W = pyro.sample("W", dist.Normal(torch.zeros(n_factors, n_vars), 0.5).to_event(2))
    with pv.obs_plate():
        z = pyro.sample("z", dist.Normal(torch.zeros(n_factors), 1.0).to_event(1))
        mu = library * torch.softmax(b + z @ W, -1)
        likelihood = pv.distributions.NegativeBinomial(mu=mu, theta=theta)
        pyro.sample("X", likelihood.to_event(1), obs=X)


def main() -> None:
    """Print the seconds of one call, after one that warms up."""
    X = np.random.default_rng(0).poisson(5.0, (300, 50)).astype(np.float32)
    fields = {"X": pv.fields.layer(), "library": pv.fields.total()}
    model = pv.from_pyro(factors, anndata.AnnData(X), fields, guide="amortized")
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    model.marginal_log_likelihood(num_samples=1, num_inner=200)
    start = time.perf_counter()
    model.marginal_log_likelihood(num_samples=20, num_inner=200)
    print(json.dumps({"seconds": time.perf_counter() - start}))


main()
