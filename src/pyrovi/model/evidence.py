"""Evidence bounds of a fitted model on given observations. Functions of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrovi._rng import stream
from pyrovi._settings import settings
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.model.queries import example_on_device, posterior_globals
from pyrovi.module.ledger import Role
from pyrovi.posterior.bounds import elbo_story, global_kl_story, importance_story
from pyrovi.posterior.vectorise import Story, map_draws

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

CHUNK = 16
"""Importance samples that are held at a time."""


def get_elbo(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    *,
    num_samples: int = 10,
    batch_size: int | None = None,
    return_mean: bool = True,
    seed: int | None = None,
) -> float | np.ndarray:
    """Evidence lower bound per observation; higher is better.

    Parameters
    ----------
    adata, indices, batch_size
        Observations; ``None`` for all of the model's own.
    num_samples
        Draws of the latents to average over.
    return_mean
        Return the mean over observations, less the KL of the global latents shared among the
        training observations: the bound that training maximises. Otherwise an array with the local
        terms of each observation.
    seed
        Root seed.

    Notes
    -----
    ``history["elbo_*"]`` records the negative of this as a loss, as scvi-tools does.
    """
    parts = _observation_means(
        model, adata, indices, elbo_story, num_samples=num_samples, batch_size=batch_size, seed=seed
    )
    local = parts["reconstruction"] - parts["kl_local"]
    if not return_mean:
        return local
    return float(local.mean()) - _global_kl(model, num_samples, seed) / model.n_obs_training


def get_reconstruction_error(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    *,
    num_samples: int = 10,
    batch_size: int | None = None,
    return_mean: bool = True,
    seed: int | None = None,
) -> dict[str, float | np.ndarray]:
    """Negative expected log-likelihood per observation; lower is better.

    Parameters
    ----------
    adata, indices, num_samples, batch_size, return_mean, seed
        As in :meth:`get_elbo`.

    Returns
    -------
    dict
        ``{"reconstruction_loss": value}``.
    """
    parts = _observation_means(
        model, adata, indices, elbo_story, num_samples=num_samples, batch_size=batch_size, seed=seed
    )
    loss = -parts["reconstruction"]
    return {"reconstruction_loss": float(loss.mean()) if return_mean else loss}


def get_marginal_ll(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    *,
    n_mc_samples: int = 1000,
    batch_size: int | None = None,
    return_mean: bool = True,
    num_global_samples: int = 1,
    seed: int | None = None,
) -> float | np.ndarray:
    r"""Importance-weighted marginal log-likelihood of each observation, locals integrated out.

    .. math:: \log \frac{1}{S} \sum_s \frac{p(x_n, z_{ns} \mid g)}{q(z_{ns} \mid x_n, g)}

    a lower bound in expectation that tightens with ``n_mc_samples`` (Burda et al. 2016). Global
    latents ``g``, if there are any, are drawn ``num_global_samples`` times and the likelihoods
    averaged.

    Parameters
    ----------
    adata, indices, batch_size, return_mean, seed
        As in :meth:`get_elbo`.
    n_mc_samples
        Importance samples of the local latents.
    num_global_samples
        Draws of the global latents.

    Returns
    -------
    float or numpy.ndarray
        Mean over observations, or one value each.
    """
    _, _, loader = model.loader(adata, indices)
    globals_ = posterior_globals(model, num_global_samples, seed)
    device, result = model.device, []
    for position, minibatch in enumerate(loader(batch_size or settings.batch_size)):
        minibatch = minibatch.to(device)
        story = importance_story(model.module, minibatch)
        with stream("draws", "importance", position, seed=seed):
            per_global = [
                _log_mean_weight(story, {k: v[g] for k, v in globals_.items()}, n_mc_samples)
                for g in range(num_global_samples)
            ]
        stacked = torch.stack(per_global)
        result.append((stacked.logsumexp(0) - np.log(num_global_samples)).cpu().numpy())
    values = np.concatenate(result)
    return float(values.mean()) if return_mean else values


def _log_mean_weight(
    story: Story, globals_: dict[str, torch.Tensor], num_samples: int
) -> torch.Tensor:
    """Log-mean-exp of the weights, in chunks of draws so that memory stays bounded."""
    total: torch.Tensor | None = None
    for start in range(0, num_samples, CHUNK):
        size = min(CHUNK, num_samples - start)
        repeated = {name: value.expand(size, *value.shape) for name, value in globals_.items()}
        chunk = map_draws(story, repeated, size)["log_weight"].double().logsumexp(0)
        total = chunk if total is None else torch.logaddexp(total, chunk)
    assert total is not None
    return total - np.log(num_samples)


def _observation_means(
    model: BaseModelClass,
    adata: Any,
    indices: Any,
    make_story: Callable[[Any, Minibatch], Story],
    *,
    num_samples: int,
    batch_size: int | None,
    seed: int | None,
) -> dict[str, np.ndarray]:
    """Mean over draws of what a story gives for each observation."""
    _, _, loader = model.loader(adata, indices)
    globals_ = posterior_globals(model, num_samples, seed)
    device, collected = model.device, []
    for position, minibatch in enumerate(loader(batch_size or settings.batch_size)):
        minibatch = minibatch.to(device)
        with stream("draws", "bound", position, seed=seed):
            values = map_draws(make_story(model.module, minibatch), globals_, num_samples)
        collected.append({name: v.double().mean(0).cpu().numpy() for name, v in values.items()})
    return {name: np.concatenate([c[name] for c in collected]) for name in collected[0]}


def _global_kl(model: BaseModelClass, num_samples: int, seed: int | None) -> float:
    """KL of the global latents, averaged over their draws."""
    if not model.sites.names(Role.GLOBAL):
        return 0.0
    draws = posterior_globals(model, num_samples, seed)
    story = global_kl_story(model.module, example_on_device(model))
    with stream("draws", "bound", seed=seed):
        return float(map_draws(story, draws, num_samples)["kl_global"].mean())
