"""Topics of observations and of variables, and how well they predict. Functions of a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from torch import Tensor

from pyrovi._constants import REGISTRY_KEYS
from pyrovi._rng import stream
from pyrovi.distributions import log_multinomial_coefficient
from pyrovi.errors import ModelError
from pyrovi.model.draws import posterior_globals, resolve_num_samples
from pyrovi.model.evidence import _minibatches
from pyrovi.posterior.bounds import elbo_story
from pyrovi.posterior.stories import posterior_story
from pyrovi.posterior.vectorise import Story

if TYPE_CHECKING:
    from pyrovi.dataloaders.minibatch import Minibatch
    from pyrovi.model.base import BaseModelClass
    from pyrovi.module.base import PyroBaseModule


def topic_names(model: BaseModelClass) -> list[str]:
    """Names of the topics: ``"topic_0"``, ``"topic_1"``, ..."""
    return [f"topic_{k}" for k in range(model.module.n_topics)]


def get_latent_representation(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    *,
    n_samples: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Topic proportions of each observation: the posterior mean of :math:`\theta_n`.

    Parameters
    ----------
    adata, indices, batch_size, seed
        As in :meth:`sample_posterior`.
    n_samples
        Number of posterior draws ``S`` that the mean is taken of; ``None``: as there.

    Returns
    -------
    pandas.DataFrame
        Shape ``(n, n_topics)``; rows sum to one. The Monte-Carlo error of an entry is its posterior
        standard deviation divided by the root of ``n_samples``. The whole posterior:
        ``sample_posterior("theta")``.
    """
    draws = model.sample_posterior(
        "h_theta",
        num_samples=n_samples,
        adata=adata,
        indices=indices,
        batch_size=batch_size,
        reduce=_mean_on_simplex,
        seed=seed,
    )["h_theta"]
    return pd.DataFrame(
        draws.to_numpy(), index=pd.Index(draws["obs"].to_numpy()), columns=topic_names(model)
    )


def get_feature_by_topic(
    model: BaseModelClass, *, n_samples: int | None = None, seed: int | None = None
) -> pd.DataFrame:
    r"""Distribution of each topic over the variables: the posterior mean of :math:`\beta_k`.

    Parameters
    ----------
    n_samples
        Number of posterior draws that the mean is taken of; ``None``: as in
        :meth:`sample_posterior`.
    seed
        Root seed; ``None`` for ``settings.seed``.

    Returns
    -------
    pandas.DataFrame
        Shape ``(n_vars, n_topics)``; columns sum to one. The whole posterior:
        ``sample_posterior("beta")``.
    """
    draws = model.sample_posterior(
        "h_beta", num_samples=n_samples, reduce=_mean_on_simplex, seed=seed
    )["h_beta"]
    return pd.DataFrame(
        draws.to_numpy().T, index=pd.Index(draws["var"].to_numpy()), columns=topic_names(model)
    )


def get_perplexity(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    *,
    n_samples: int = 10,
    batch_size: int | None = None,
    seed: int | None = None,
) -> float:
    r"""Perplexity per count, an upper bound; at least 1, and lower is better.

    .. math::
        \exp\Big( -\frac{\sum_n \mathcal{L}_n}{\sum_n N_n} \Big), \qquad
        \mathcal{L}_n \le \log p(x_{n1}, \dots, x_{n N_n})

    (Blei et al. 2003, section 7.1), with the evidence lower bound :math:`\mathcal{L}_n` of the
    single counts in their order, which is that of :meth:`get_elbo` for the observation without the
    multinomial coefficient. A model that gives every variable the same probability has the
    perplexity ``n_vars``.

    Parameters
    ----------
    n_samples
        Number of posterior draws that the bound is averaged over.
    adata, indices, batch_size, seed
        As in :meth:`get_elbo`. For other observations than those of the training it is the held-out
        perplexity; the topics, and what it cost to learn them, are taken as given.

    Raises
    ------
    ModelError
        If there are no counts.

    Notes
    -----
    scvi-tools 1.4.2 returns the reciprocal, of a bound that includes the cost of the topics.
    """
    manager = model.manager_of(adata)
    globals_ = posterior_globals(model, n_samples, seed, manager)
    bound, tokens = 0.0, 0.0
    for minibatch, run in _minibatches(model, manager, indices, batch_size, "bound", seed):
        values = run(elbo_story, minibatch, globals_, n_samples)
        X = minibatch[REGISTRY_KEYS.X_KEY]
        local = (values["reconstruction"] - values["kl_local"]).double().mean(0).sum()
        # in the precision of the likelihood, so that what is added there is taken off here
        bound += float(local - log_multinomial_coefficient(X).double().sum())
        tokens += float(X.double().sum())
    return _perplexity(bound, tokens)


def get_completion_perplexity(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    *,
    fraction: float = 0.5,
    n_samples: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> float:
    r"""Perplexity of one part of each observation's counts given the other; lower is better.

    The counts are divided at random, :math:`x^{(1)}_{ng} \sim \mathrm{Binomial}(x_{ng}, f)`.
    The encoder sees the first part, and the second is predicted by the posterior mean of
    :math:`\theta_n \beta`:

    .. math::
        \exp\Big( -\frac{\sum_{ng} x^{(2)}_{ng} \log \mathrm{E}[(\theta_n \beta)_g \mid x^{(1)}_n]}
        {\sum_{ng} x^{(2)}_{ng}} \Big)

    It is no bound, so it compares models whose bounds are of different tightness, and
    implementations of LDA with one another.

    Parameters
    ----------
    n_samples
        Number of posterior draws that the expectation is taken over; ``None``: as in
        :meth:`sample_posterior`.
    adata, indices, batch_size, seed
        As in :meth:`sample_posterior`; use observations that the model was not trained on.
    fraction
        Share :math:`f` of the counts that is seen.

    Raises
    ------
    ModelError
        If the fraction is not between 0 and 1, or no counts are left to predict.

    References
    ----------
    Wallach, Murray, Salakhutdinov, Mimno: Evaluation methods for topic models. ICML (2009).
    """
    if not 0 < fraction < 1:
        raise ModelError(f"fraction must be between 0 and 1, got {fraction}.")
    manager = model.manager_of(adata)
    count = resolve_num_samples(model, n_samples)
    globals_ = posterior_globals(model, count, seed, manager)
    log_density, tokens = 0.0, 0.0
    batches = _minibatches(model, manager, indices, batch_size, "completion", seed)
    for position, (minibatch, run) in enumerate(batches):
        X = minibatch[REGISTRY_KEYS.X_KEY]
        with stream("completion", "split", position, seed=seed):
            seen = torch.binomial(X, torch.full_like(X, fraction))
        half = minibatch.replace(tensors={**minibatch.tensors, REGISTRY_KEYS.X_KEY: seen})
        h_theta = run(_proportions, half, globals_, count)["h_theta"]
        p = _mean_product(h_theta.softmax(-1), globals_["h_beta"])
        log_density += float(torch.xlogy(X - seen, p).double().sum())
        tokens += float((X - seen).double().sum())
    return _perplexity(log_density, tokens)


def _proportions(module: PyroBaseModule, minibatch: Minibatch) -> Story:
    return posterior_story(module, minibatch, ["h_theta"], predictive=False)


def _mean_product(theta: Tensor, h_beta: Tensor) -> Tensor:
    """Mean over draws of ``theta @ beta``, without the products of single draws."""
    total = torch.zeros(theta.shape[1], h_beta.shape[-1], dtype=theta.dtype, device=theta.device)
    for proportions, topics in zip(theta, h_beta, strict=True):
        total.addmm_(proportions, topics.softmax(-1))
    return total / len(theta)


def _mean_on_simplex(draws: np.ndarray) -> np.ndarray:
    # the mean of the softmax, which is not the softmax of the mean
    return softmax(draws, axis=-1).mean(0)


def _perplexity(log_density: float, tokens: float) -> float:
    if tokens == 0:
        raise ModelError("A perplexity is per count, but the observations have none to predict.")
    return math.exp(-log_density / tokens)
