"""Fitting small pairs without a trainer: Adam with a learning rate that falls to 0."""

from __future__ import annotations

import math
from typing import Any

import torch
from tests.module.stories import Pair
from torch import Tensor

from pyrovi.dataloaders import Minibatch
from pyrovi.module import PyroBaseModule
from pyrovi.module.guides import make_guide
from pyrovi.module.guides.distributions import mirrored


def minibatch(X: Tensor, rows: Tensor | None = None) -> Minibatch:
    """Some rows of the data, of all of them by default."""
    rows = torch.arange(len(X)) if rows is None else rows
    return Minibatch({"X": X[rows]}, rows, len(X))


def pair_of(story: Any, X: Tensor, guide: Any, **options: Any) -> Pair:
    """A materialised pair of a story of ``X`` and a guide by name."""
    pair = Pair(story, make_guide(guide, story, **options))
    n_vars = X.shape[1]
    pair.materialise(lambda n: Minibatch({"X": torch.ones(n, n_vars)}, torch.arange(n), len(X)))
    return pair


def fit(
    pair: PyroBaseModule,
    X: Tensor,
    *,
    steps: int,
    batch_size: int | None = None,
    lr: float = 0.05,
    antithetic: bool = False,
) -> None:
    """Maximise the ELBO; ``antithetic`` reflects the noise of every second step."""
    elbo: Any = pair.default_elbo()
    optimiser = torch.optim.Adam(pair.parameters(), lr=lr, betas=(0.9, 0.99))
    torch.manual_seed(0)
    pair.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        rows = torch.randperm(len(X))[:batch_size]
        optimiser.zero_grad()
        state = torch.get_rng_state()
        if antithetic:
            torch.manual_seed(step // 2)
        with mirrored(antithetic and step % 2 == 1):
            loss = elbo.differentiable_loss(pair.run_model, pair.run_guide, minibatch(X, rows))
        if antithetic:
            torch.set_rng_state(state)
        (loss / len(X)).backward()
        optimiser.step()
    pair.eval()


def draws(pair: PyroBaseModule, X: Tensor, num: int = 4_000) -> dict[str, Tensor]:
    """Draws of all latents given all the data."""
    from pyrovi.posterior.stories import guide_trace, latent_values
    from pyrovi.posterior.vectorise import map_draws

    torch.manual_seed(1)
    everything = minibatch(X)
    return map_draws(
        lambda values: latent_values(guide_trace(pair, everything, values)), {}, num, module=pair
    )


def elbo_of(pair: PyroBaseModule, X: Tensor, particles: int = 500) -> float:
    """The ELBO of all the data."""
    elbo: Any = pair.default_elbo()
    torch.manual_seed(2)
    with torch.no_grad():
        losses = [elbo.loss(pair.run_model, pair.run_guide, minibatch(X)) for _ in range(particles)]
    return -sum(losses) / particles
