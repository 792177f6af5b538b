"""How well a guide fits the joint posterior of all latents, by importance weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovi._rng import stream
from pyrovi.criticism.diagnose_rows import Check, graded, unavailable
from pyrovi.errors import PyroviError
from pyrovi.model.methods import all_at_once
from pyrovi.model.start import MAX_DIM, values_per_observation
from pyrovi.module.base import evaluation_mode
from pyrovi.module.guides.families import MeanField
from pyrovi.module.ledger import Role
from pyrovi.posterior.density import global_nodes, local_nodes, log_density
from pyrovi.posterior.engine import draws_at_once
from pyrovi.posterior.guide_density import LOG_Q
from pyrovi.posterior.pareto import importance_ess, psis
from pyrovi.posterior.point_estimates import point_sites
from pyrovi.posterior.potential import Potential
from pyrovi.posterior.stories import guide_trace, latent_values
from pyrovi.posterior.vectorise import map_draws

if TYPE_CHECKING:
    from pyro import poutine

    from pyrovi.dataloaders.minibatch import Minibatch
    from pyrovi.model.base import BaseModelClass

JOINT_KHAT = "k-hat of the guide, all latents jointly"
"""Name of the check."""

LIMITS = (0.7, 1.0)
"""Limits of the Pareto k-hat of an approximation of the whole posterior."""

GOOD_SHARE, POOR_SHARE = 0.5, 0.05
"""Effective share of the draws from which a guide passes, and below which it fails rather than
being a warning."""

_DRAWS = 1000

_MAX_VALUES = 10**6
"""Largest number of values of the training observations: they are evaluated for every draw."""


def joint_check(model: BaseModelClass, seed: int | None) -> Check:
    """Pareto k-hat of joint draws of a guide against the posterior of a small model.

    Parameters
    ----------
    model
        A model trained by SVI.
    seed
        Root seed of the draws.

    References
    ----------
    Yao, Vehtari, Simpson, Gelman: Yes, but did it work? Evaluating variational inference. ICML
    (2018).
    """
    if reason := _too_large(model):
        return unavailable(JOINT_KHAT, reason)
    try:
        weights = joint_log_weights(model, _DRAWS, seed)
    except PyroviError as error:
        return unavailable(JOINT_KHAT, str(error))
    if weights is None:
        return unavailable(
            JOINT_KHAT, "The guide gives latents single values, which have no spread."
        )
    smoothed, found = psis(weights)
    khat = float(found)
    if math.isnan(khat):
        return unavailable(JOINT_KHAT, "Densities of draws of the guide are not finite.")
    return judged(khat, float(importance_ess(smoothed)) / _DRAWS, _dim(model), _remedy(model))


def judged(khat: float, share: float, dim: int, remedy: str) -> Check:
    """The verdict on a guide.

    A tail that hardly weighs anything, with a k-hat of its own, is no fault of a guide: where the
    draws are worth half as many of the posterior's, their moments are right.

    Parameters
    ----------
    khat
        Pareto shape of the weights.
    share
        Effective number of draws, by their weights, over their number.
    dim
        Number of coordinates.
    remedy
        What to do.
    """
    detail = f"{_DRAWS} draws of {dim:,} numbers, worth {share * _DRAWS:.0f} of the posterior's"
    if share >= GOOD_SHARE:
        return Check(JOINT_KHAT, khat, None, "pass", "", detail)
    found = graded(
        JOINT_KHAT,
        khat,
        LIMITS,
        "The guide misses a part of the posterior, so that its standard deviations may be wrong by "
        f"much: {remedy}.",
        detail=detail,
    )
    poor = found.verdict == "warn" and share < POOR_SHARE
    return replace(found, verdict="fail") if poor else found


def joint_log_weights(
    model: BaseModelClass, num_draws: int, seed: int | None = None
) -> NDArray[np.float64] | None:
    """Log density of model less guide at joint draws of globals and locals, shape ``(S,)``.

    All training observations count once; enumerated sites are summed out.

    Parameters
    ----------
    model
        A model with a guide.
    num_draws
        Number of draws ``S``.
    seed
        Root seed.

    Returns
    -------
    numpy.ndarray
        ``None`` if the guide gives a site a single value.

    Raises
    ------
    ModelError
        If a latent site is discrete and not enumerated, or its support depends on other sites.
    """
    module = model.module
    _, minibatch = all_at_once(model, model.train_indices)
    potential = Potential(module, minibatch)
    with stream("points", seed=seed):
        if point_sites(module, minibatch, Role.GLOBAL, Role.LOCAL):
            return None

    def proposed(_: dict[str, Tensor]) -> dict[str, Tensor]:
        guide = guide_trace(module, minibatch, {})
        latents = latent_values(guide)
        values = {name: latents[name] for name in potential.names}
        return {**values, LOG_Q: _density(guide, minibatch)}

    def joint(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"joint": potential.log_joint(values)}

    chunk = draws_at_once(module, minibatch.n)
    with evaluation_mode(module), stream("draws", "joint weights", seed=seed):
        drawn = map_draws(proposed, {}, num_draws, chunk, module)
        log_q = drawn.pop(LOG_Q)
        values = {name: value.to(potential.dtype) for name, value in drawn.items()}
        log_p = map_draws(joint, values, num_draws, chunk, module)["joint"]
    weights: NDArray[np.float64] = (log_p - log_q).cpu().numpy()
    return np.where(np.isnan(weights), -np.inf, weights)


def _density(guide: poutine.Trace, minibatch: Minibatch) -> Tensor:
    """Log density of all draws of a guide, auxiliary sites and ``pyro.factor`` terms included."""
    total = torch.zeros((), dtype=torch.float64, device=minibatch.indices.device)
    for nodes in (global_nodes, local_nodes):
        for observed in (False, True):
            for _, node in nodes(guide, observed=observed):
                total = total + log_density(node).double().sum()
    return total


def _too_large(model: BaseModelClass) -> str:
    if not model.sites.names(Role.GLOBAL, Role.LOCAL):
        return "The model has no continuous latents."
    if (dim := _dim(model)) > MAX_DIM:
        return (
            f"The model has {dim:,} latent numbers; joint weights of more than {MAX_DIM} say "
            "nothing."
        )
    if _num_training(model) * values_per_observation(model) > _MAX_VALUES:
        return f"The data have more than {_MAX_VALUES:,} values; each draw takes all of them."
    return ""


def _dim(model: BaseModelClass) -> int:
    """Numbers in a joint draw of all latents."""
    total = 0
    for name in model.sites.names(Role.GLOBAL, Role.LOCAL):
        site = model.sites[name]
        size = math.prod(n for n in site.shape if isinstance(n, int))
        total += size * (_num_training(model) if site.is_local else 1)
    return total


def _num_training(model: BaseModelClass) -> int:
    indices = model.train_indices
    return model.adata_manager.n_obs if indices is None else len(indices)


def is_mean_field(model: BaseModelClass) -> bool:
    """Whether a part of the guide has independent normal coordinates."""
    from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

    families: Any = (MeanField, AutoNormal, AutoDiagonalNormal)
    return any(isinstance(part, families) for part in model.module.modules())


def _remedy(model: BaseModelClass) -> str:
    longer = "train longer, or use method='nuts'"
    return "guide='mvn' or method='nuts'" if is_mean_field(model) else longer
