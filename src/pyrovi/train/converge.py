"""Options of ``train`` that bring a model without held-out observations to its optimum."""

from __future__ import annotations

import math
from typing import Any

from pyrovi.module.base import PyroBaseModule
from pyrovi.module.guides import StoryGuide
from pyrovi.train.scaled_adam import LOC, LOG_SCALE, ScaledAdam

STEPS = 6_000
"""Steps in which the guide of a regression with badly scaled predictors finds its optimum."""

STEPS_NEAR = 4_000
"""Steps that it needs from a start near there, if single draws say little of the way to go."""

_FEWEST = 1 / 8
"""Share of these steps that is always taken."""


def convergence_defaults(
    module: PyroBaseModule,
    n_obs: int,
    batch_size: int | None,
    *,
    near: bool = False,
    roughness: float = math.inf,
) -> dict[str, Any]:
    """Arguments of ``train`` for a guide all of whose parameters are locations and scales.

    Scaled steps (:class:`~pyrovi.train.scaled_adam.ScaledAdam`) find values of any unit, a learning
    rate that falls from half a posterior standard deviation per step to a few thousandths lets them
    settle, and the average over the last steps removes most of the noise that is left. Nothing is
    held out, and there is no KL warm-up: it would have to be undone.

    Parameters
    ----------
    module
        The pair to be trained.
    n_obs
        Number of observations.
    batch_size
        Observations per minibatch; ``None`` for all.
    near
        Whether training starts near the posterior: then it needs fewer and smaller steps.
    roughness
        Noise of the gradient there (see :func:`~pyrovi.model.start.start_near_posterior`): with
        less of it, fewer steps have as small an error of their average.

    Returns
    -------
    dict
        ``max_epochs``, ``train_size``, ``averaging`` and ``plan_kwargs``; empty if the module has
        other parameters (networks of amortised guides, point estimates of the model's own), which
        ``train``'s own defaults are for.
    """
    if not has_location_scale_guide(module):
        return {}
    # correlations move by the learning rate itself, in no unit of their own
    factorised = all(name.endswith((LOC, LOG_SCALE)) for name, _ in module.named_parameters())
    per_epoch = 1 if batch_size is None else math.ceil(n_obs / batch_size)
    near_enough = near and per_epoch == 1
    # independent coordinates of a correlated posterior have noise that only averaging removes
    few = STEPS_NEAR if factorised else STEPS_NEAR // 2
    few = math.ceil(few * min(1.0, max(roughness**2, _FEWEST)))
    return {
        "max_epochs": math.ceil((few if near_enough else STEPS) / per_epoch),
        "train_size": 1.0,
        "averaging": True,
        "plan_kwargs": {
            "optim": ScaledAdam,
            # noise of minibatches asks for smaller steps, and more of them
            "lr": (0.5 if factorised and not near else 0.1) / (1 if per_epoch == 1 else 2),
            "eps": 1e-12,
            "lr_decay": 0.02 if near else 0.006,
            "antithetic": near,
            "n_epochs_kl_warmup": 0,
        },
    }


def slow_and_steady(
    module: PyroBaseModule, n_obs: int, batch_size: int | None, *, near: bool = False
) -> dict[str, Any]:
    """Arguments of ``train`` for guides of other parameters: Adam whose learning rate falls.

    Parameters
    ----------
    module, n_obs, batch_size, near
        As in :func:`convergence_defaults`.

    Returns
    -------
    dict
        ``max_epochs``, ``train_size``, ``averaging`` and ``plan_kwargs``.
    """
    per_epoch = 1 if batch_size is None else math.ceil(n_obs / batch_size)
    amortised = any(isinstance(part, StoryGuide) and part.is_amortised for part in module.modules())
    lr = 5e-3 if amortised else (0.01 if near else 0.05)
    plan: dict[str, Any] = {"lr": lr, "lr_decay": 0.02, "n_epochs_kl_warmup": 0}
    return {
        "max_epochs": math.ceil((STEPS_NEAR if near else STEPS) / per_epoch),
        "train_size": 1.0,
        "averaging": not amortised,
        "plan_kwargs": plan,
    }


def has_mirrored_guide(module: PyroBaseModule) -> bool:
    """Whether the guide is one by name all of whose noise can be reflected about its means."""
    guide = getattr(module, "guide", None)
    return isinstance(guide, StoryGuide) and has_location_scale_guide(module)


def has_location_scale_guide(module: PyroBaseModule) -> bool:
    """Whether every trained parameter stands in a guide that has locations with scales."""
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    pairs = {n for n in names if n.endswith(LOC) and n.removesuffix(LOC) + LOG_SCALE in names}
    guides = {name.rpartition(".")[0] for name in pairs}
    return bool(names) and all(name.rpartition(".")[0] in guides for name in names)
