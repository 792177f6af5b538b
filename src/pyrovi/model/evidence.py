"""Evidence bounds of a fitted model on given observations. Functions of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrovi._rng import stream
from pyrovi._settings import settings
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.model.queries import example_on_device, posterior_globals
from pyrovi.module.base import evaluation_mode
from pyrovi.module.ledger import Role
from pyrovi.posterior.bounds import elbo_story, global_kl_story, importance_story
from pyrovi.posterior.engine import draws_at_once
from pyrovi.posterior.vectorise import DrawMapper, Story, map_draws

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


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
    globals_ = posterior_globals(model, num_global_samples, seed)
    result = []
    # all pairs of a global and a local draw
    repeated = {k: v.repeat_interleave(n_mc_samples, 0) for k, v in globals_.items()}
    num_pairs = num_global_samples * n_mc_samples
    for minibatch, run in _minibatches(model, adata, indices, batch_size, "importance", seed):
        weights = run(importance_story, minibatch, repeated, num_pairs)["log_weight"].double()
        result.append((weights.logsumexp(0) - math.log(num_pairs)).cpu().numpy())
    values = np.concatenate(result)
    return float(values.mean()) if return_mean else values


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
    globals_ = posterior_globals(model, num_samples, seed)
    collected = []
    for minibatch, run in _minibatches(model, adata, indices, batch_size, "bound", seed):
        values = run(make_story, minibatch, globals_, num_samples)
        collected.append({name: v.double().mean(0).cpu().numpy() for name, v in values.items()})
    return {name: np.concatenate([c[name] for c in collected]) for name in collected[0]}


def _minibatches(
    model: BaseModelClass,
    adata: Any,
    indices: Any,
    batch_size: int | None,
    purpose: str,
    seed: int | None,
) -> Iterator[tuple[Minibatch, Callable[..., dict[str, torch.Tensor]]]]:
    """Minibatches of a query, each with a function that runs its story for many draws."""
    _, _, loader = model.loader(adata, indices)
    device, mapper = model.device, DrawMapper()
    for position, minibatch in enumerate(loader(batch_size or settings.batch_size)):
        yield minibatch.to(device), partial(_run, model, mapper, (purpose, position), seed)


def _run(
    model: BaseModelClass,
    mapper: DrawMapper,
    purpose: tuple[str | int, ...],
    seed: int | None,
    make_story: Callable[[Any, Minibatch], Story],
    minibatch: Minibatch,
    draws: Mapping[str, torch.Tensor],
    num_draws: int,
) -> dict[str, torch.Tensor]:
    chunk = draws_at_once(model.module, minibatch.n)
    with evaluation_mode(model.module), stream("draws", *purpose, seed=seed):
        return mapper(make_story(model.module, minibatch), draws, num_draws, chunk)


def _global_kl(model: BaseModelClass, num_samples: int, seed: int | None) -> float:
    """KL of the global latents, averaged over the draws that the local terms are computed with."""
    if not model.sites.names(Role.GLOBAL):
        return 0.0
    story = global_kl_story(model.module, example_on_device(model))
    with evaluation_mode(model.module), stream("draws", "global", seed=seed):
        return float(map_draws(story, {}, num_samples)["kl_global"].double().mean())
