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
from pyrovi.errors import ModelError
from pyrovi.model.draws import example_on_device, posterior_globals
from pyrovi.module.base import evaluation_mode
from pyrovi.module.ledger import Role
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.bounds import elbo_story, global_kl_story, importance_story
from pyrovi.posterior.engine import draws_at_once
from pyrovi.posterior.globals import global_chunks
from pyrovi.posterior.vectorise import DrawMapper, Story

if TYPE_CHECKING:
    from pyrovi.data import AnnDataManager
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
    """Evidence lower bound per observation, the one that training maximises; higher is better.

    Parameters
    ----------
    adata, indices, batch_size
        Observations; ``None`` for all of the model's own.
    num_samples
        Draws of the latents to average over.
    return_mean
        Return the mean over observations, plus what all training observations share, divided by
        their number: the log density of what is observed (and of ``pyro.factor`` terms) outside
        the observation plate, less the KL of the global latents. Otherwise an array with the local
        terms of each observation.
    seed
        Root seed.

    Raises
    ------
    ModelError
        If the posterior is stored draws (of MCMC, Pathfinder or a mode): they have no density.

    Notes
    -----
    Masks and scales (``poutine.mask``, ``poutine.scale``) of model and guide weigh the terms as
    they do in training; the plate's ``N / n`` does not. KL terms are taken in closed form where
    the module's own ELBO (``module.default_elbo()``) does so.

    ``history["elbo_*"]`` records the negative of this as a loss, as scvi-tools does.
    """
    _refuse_stored(model)
    manager = model.manager_of(adata)
    parts, shared = _observation_means(
        model, manager, indices, num_samples=num_samples, batch_size=batch_size, seed=seed
    )
    local = parts["reconstruction"] - parts["kl_local"]
    if not return_mean:
        return local
    shared -= _global_kl(model, manager, num_samples, seed)
    return float(local.mean()) + shared / model.n_obs_training


def _refuse_stored(model: BaseModelClass) -> None:
    if isinstance(model.module.posterior, StoredDraws):
        assert model._training is not None
        raise ModelError(
            f"An ELBO needs the density of the posterior, and method={model._training.method!r} "
            "gives draws without one. Compare models by get_marginal_ll() or LOO; "
            "method='laplace' and 'svi' have an ELBO."
        )


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

    Of the sites in the observation plate, with their masks and scales as in :meth:`get_elbo`.

    Parameters
    ----------
    adata, indices, num_samples, batch_size, return_mean, seed
        As in :meth:`get_elbo`.

    Returns
    -------
    dict
        ``{"reconstruction_loss": value}``.
    """
    parts, _ = _observation_means(
        model, adata, indices, num_samples=num_samples, batch_size=batch_size, seed=seed
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

    Densities are masked as the story says, but not scaled: ``poutine.scale`` weights a term of the
    objective and is no part of a likelihood. What is observed outside the observation plate belongs
    to no observation and is left out.

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
    manager = model.manager_of(adata)
    globals_ = posterior_globals(model, num_global_samples, seed, manager)
    result = []
    # all pairs of a global and a local draw
    repeated = {k: v.repeat_interleave(n_mc_samples, 0) for k, v in globals_.items()}
    num_pairs = num_global_samples * n_mc_samples
    for minibatch, run in _minibatches(model, manager, indices, batch_size, "importance", seed):
        weights = run(importance_story, minibatch, repeated, num_pairs)["log_weight"].double()
        result.append((weights.logsumexp(0) - math.log(num_pairs)).cpu().numpy())
    values = np.concatenate(result)
    return float(values.mean()) if return_mean else values


def _observation_means(
    model: BaseModelClass,
    adata: Any,
    indices: Any,
    *,
    num_samples: int,
    batch_size: int | None,
    seed: int | None,
) -> tuple[dict[str, np.ndarray], float]:
    """Mean over draws of the parts of the ELBO of each observation, and of what they share."""
    manager = model.manager_of(adata)
    globals_ = posterior_globals(model, num_samples, seed, manager)
    collected, shared, n = [], 0.0, 0
    for minibatch, run in _minibatches(model, manager, indices, batch_size, "bound", seed):
        values = run(elbo_story, minibatch, globals_, num_samples)
        # training, too, weighs the minibatches by their size
        shared += float(values.pop("shared").double().mean()) * minibatch.n
        n += minibatch.n
        collected.append({name: v.double().mean(0).cpu().numpy() for name, v in values.items()})
    parts = {name: np.concatenate([c[name] for c in collected]) for name in collected[0]}
    return parts, shared / n


def _minibatches(
    model: BaseModelClass,
    manager: AnnDataManager,
    indices: Any,
    batch_size: int | None,
    purpose: str,
    seed: int | None,
) -> Iterator[tuple[Minibatch, Callable[..., dict[str, torch.Tensor]]]]:
    """Minibatches of a query, each with a function that runs its story for many draws."""
    _, _, loader = model.loader(manager, indices)
    device, mapper = model.device, DrawMapper(model.module)
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


def _global_kl(
    model: BaseModelClass, manager: AnnDataManager, num_samples: int, seed: int | None
) -> float:
    """KL of the global latents, averaged over the draws that the local terms are computed with."""
    if not model.sites.names(Role.GLOBAL):
        return 0.0
    story = global_kl_story(model.module, example_on_device(model, manager))
    chunks = global_chunks(model.module, story, num_samples, seed=seed)
    return sum(float(chunk["kl_global"].double().sum()) for chunk in chunks) / num_samples
