"""What the encoder loses against a posterior fitted to each observation. Functions of a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovi._rng import generator, stream
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import ModelError
from pyrovi.model.draws import posterior_globals
from pyrovi.model.local_fit import require_locals
from pyrovi.model.marginal import refuse_point_locals
from pyrovi.module.base import evaluation_mode
from pyrovi.module.ledger import Role
from pyrovi.posterior.bounds import importance_story
from pyrovi.posterior.engine import bounded_batch_size
from pyrovi.posterior.local_space import LocalSpace, over_draws
from pyrovi.posterior.refine import Covariance, LocalNormal, refine
from pyrovi.posterior.stories import guide_trace, latent_values
from pyrovi.posterior.vectorise import map_draws

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.dataloaders.minibatch import Minibatch
    from pyrovi.model.base import BaseModelClass

_WEIGHT = "_log_weight"

_COPIES = 4
"""Tensors of the size of the largest site that the gradient keeps, about."""


def amortization_gap(
    model: BaseModelClass,
    *,
    max_observations: int | None = 200,
    covariance: Covariance = "full",
    num_draws: int = 64,
    num_evaluation: int = 1000,
    adata: Any = None,
    indices: Any = None,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Compare the guide's local posteriors with normal ones fitted to single observations.

    An encoder has to serve all observations with one set of weights. Starting from what it says of
    an observation, a normal distribution of the (unconstrained) local latents is optimised for this
    observation alone. The evidence lower bound that this gains is what amortisation costs; what
    remains to the evidence is the cost of the normal family.

    Parameters
    ----------
    max_observations
        Most observations to look at, a seeded sample of more; ``None`` for all.
    covariance
        ``"full"``: the best normal of any covariance, whatever the guide's. ``"diagonal"``: of
        independent components, the family of mean-field encoders, which makes the gap that of
        amortisation alone.
    num_draws
        Draws (fixed, with matched moments) that the bound is optimised with.
    num_evaluation
        Fresh draws that the bounds are evaluated with.
    adata, indices, seed
        As in :meth:`sample_posterior`.

    Returns
    -------
    pandas.DataFrame
        One row for each observation, indexed by its name, in nats given one draw of the globals:
        ``elbo`` of the guide; ``refined``, that of the optimised normal; ``log_marginal``, the
        importance-weighted evidence with the optimised normal as proposal; ``amortization_gap``,
        ``refined - elbo``, with its Monte-Carlo standard error ``gap_se``; and
        ``approximation_gap``, ``log_marginal - refined``.

    Raises
    ------
    ModelError
        If the model has no continuous local latents that a guide draws, or the guide gives them
        single values.

    References
    ----------
    Cremer, Li, Duvenaud: Inference suboptimality in variational autoencoders. ICML (2018).
    """
    import pandas as pd

    require_locals(model)
    if covariance not in ("full", "diagonal"):
        raise ModelError(f"covariance={covariance!r} is unknown; expected 'full' or 'diagonal'.")
    if num_evaluation < 2:
        raise ModelError(f"num_evaluation must be at least 2, got {num_evaluation}.")
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    if max_observations is not None and len(positions) > max_observations:
        chosen = generator("amortization", seed=seed).choice(
            len(positions), max_observations, replace=False
        )
        positions = positions[np.sort(chosen)]
    with stream("points", seed=seed):
        refuse_point_locals(model, manager)
    one = {name: draws[0] for name, draws in posterior_globals(model, 1, seed, manager).items()}
    _, _, loader = model.loader(manager, positions)
    size = bounded_batch_size(model.sites.values(), _COPIES * num_draws, len(positions))
    parts = []
    for position, minibatch in enumerate(loader(size)):
        with evaluation_mode(model.module), stream("draws", "refine", position, seed=seed):
            parts.append(
                _bounds(
                    model, minibatch.to(model.device), one, covariance, num_draws, num_evaluation
                )
            )
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    names = pd.Index(np.asarray(manager.obs_names[positions]), name="obs")
    return pd.DataFrame(table, index=names)


def _bounds(
    model: BaseModelClass,
    minibatch: Minibatch,
    globals_: dict[str, Tensor],
    covariance: Covariance,
    num_draws: int,
    num_evaluation: int,
) -> dict[str, np.ndarray]:
    module = model.module
    with torch.no_grad():
        example = latent_values(guide_trace(module, minibatch, globals_))
        space = LocalSpace(module, minibatch, globals_, example)
        at_once = max(1, num_draws)
        encoder, starts = _encoder(space, num_evaluation, at_once)
        normal = LocalNormal(starts, covariance)
    refine(space, normal, num_draws)
    with torch.no_grad():
        noise = torch.randn_like(starts)
        weights = []
        for part in noise.split(at_once):
            vectors, log_q = normal(part)
            weights.append((over_draws(space, vectors) - log_q).double())
        refined = torch.cat(weights)
    marginal = refined.logsumexp(0) - math.log(num_evaluation)
    elbo, better = encoder.mean(0), refined.mean(0)
    error = ((encoder.var(0) + refined.var(0)) / num_evaluation).sqrt()
    columns = {
        "elbo": elbo,
        "refined": better,
        "log_marginal": marginal,
        "amortization_gap": better - elbo,
        "gap_se": error,
        "approximation_gap": marginal - better,
    }
    return {name: value.cpu().numpy() for name, value in columns.items()}


def _encoder(space: LocalSpace, num_draws: int, at_once: int) -> tuple[Tensor, Tensor]:
    """Log importance weights ``(K, n)`` of draws of the guide, and unconstrained draws."""
    module, minibatch, globals_ = space.module, space.minibatch, space.globals
    weigh = importance_story(module, minibatch)
    names = module.ledger.names(Role.LOCAL)

    def weights(_: dict[str, Tensor]) -> dict[str, Tensor]:
        return {_WEIGHT: weigh(globals_)["log_weight"]}

    def draws(_: dict[str, Tensor]) -> dict[str, Tensor]:
        latents = latent_values(guide_trace(module, minibatch, globals_))
        return {"u": space.flatten({name: latents[name] for name in names})}

    found = map_draws(weights, {}, num_draws, at_once, module)[_WEIGHT]
    return found.double(), map_draws(draws, {}, num_draws, at_once, module)["u"]
