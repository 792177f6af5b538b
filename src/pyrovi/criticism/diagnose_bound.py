"""Whether the ELBO of a fit can be true: finite, below the likelihood, and not lost on the way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine

from pyrovi._rng import stream
from pyrovi.criticism.diagnose_rows import Check, graded
from pyrovi.model.draws import example_on_device
from pyrovi.model.elbo_estimate import ElboEstimate
from pyrovi.module.base import evaluation_mode
from pyrovi.module.handlers import Substitute
from pyrovi.module.ledger import Role
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.density import local_nodes, log_density, per_observation
from pyrovi.posterior.point_estimates import point_sites
from pyrovi.posterior.stories import latent_values

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

EXCESS = (6.0, 10.0)
"""Nats per value above a normal of the data's own spread from which a density is not credible: the
residuals would be 1/400 (a warning) or 1/22000 (a failure) of the spread."""

_FEWEST_EPOCHS = 12
_FEWEST_ROWS = 10
_MOST_ROWS = 500


def bound_is_finite(model: BaseModelClass, value: float) -> Check:
    """Whether the ELBO is a finite number, in training and now."""
    losses = np.array([v for _, v in sorted(model._history.get("elbo_train", {}).items())])
    bad = int((~np.isfinite(losses)).sum()) + (not math.isfinite(value))
    return graded(
        "ELBO values that are not finite",
        float(bad),
        (0, 0),
        "Training has broken down: a smaller lr, gradient_clip_val, or a guide of smaller initial "
        "scale; then train anew.",
        detail=f"now {value:.5g}, {len(losses)} epochs",
    )


def plausible_bound(
    model: BaseModelClass, observations: NDArray[np.intp], now: ElboEstimate, seed: int | None
) -> list[Check]:
    """Rows about an ELBO that is finite; those that do not apply are left out."""
    return [
        *_late_loss(model, now),
        *_below_likelihood(model, observations, now, seed),
        *_credible_density(model, observations, seed),
    ]


def _late_loss(model: BaseModelClass, now: ElboEstimate) -> list[Check]:
    """How much of the ELBO was lost again after its best quarter; none with too few epochs."""
    history = model._history.get("elbo_train", {})
    weights = model._history.get("kl_weight", {})
    full = max(weights.values(), default=1.0)
    elbo = np.array([-v for e, v in sorted(history.items()) if weights.get(e, full) >= full])
    if len(elbo) < _FEWEST_EPOCHS:
        return []
    quarters = elbo[len(elbo) % 4 :].reshape(4, -1)
    middles = np.median(quarters, axis=1)
    best = int(middles.argmax())
    peak = float(middles[best])
    noise = float(np.sqrt(np.square(np.diff(quarters[best])).mean() / 2))
    # neither a lucky median of a noisy quarter nor the choice of observations is a loss
    error = math.hypot(now.mcse, now.se if math.isfinite(now.se) else 0.0)
    lost = max(peak - now.value - 3 * noise - 6 * error, 0.0)
    size = max(abs(peak), peak - float(elbo[0]))
    return [
        graded(
            "ELBO lost since its best quarter of the epochs",
            lost / size if size else 0.0,
            (0.01, 0.1),
            "Training has diverged from a better fit: train anew with a smaller lr, an lr_decay or "
            "gradient_clip_val; early_stopping=True keeps the best parameters.",
            detail=f"relative, beyond the noise; best {peak:.5g}, now {now.value:.5g}",
        )
    ]


def _below_likelihood(
    model: BaseModelClass, observations: NDArray[np.intp], now: ElboEstimate, seed: int | None
) -> list[Check]:
    """Whether the ELBO stays below the log-likelihood; none where it does not have to."""
    sites = model.sites
    outside = any(not sites[name].is_local for name in sites.names(Role.OBSERVED))
    if outside or sites.names(Role.FACTOR) or _has_points(model):
        return []  # factors are no densities, and a single value has no divergence from its prior
    loss = model.get_reconstruction_error(indices=observations, num_samples=32, seed=seed)
    likelihood = -float(np.asarray(loss["reconstruction_loss"]))
    excess = (now.value - likelihood) / max(abs(likelihood), 1.0)
    noise = 6 * now.mcse / max(abs(likelihood), 1.0)
    return [
        graded(
            "ELBO above the expected log-likelihood",
            excess,
            (max(1e-3, noise), max(1e-2, 2 * noise)),
            "No bound can be: a density of the guide or the model is not normalised, or numbers "
            "have overflowed. Check custom log_prob functions, transforms and extreme scales.",
            detail=f"relative; ELBO {now.value:.5g}, log-likelihood {likelihood:.5g}",
        )
    ]


def _credible_density(
    model: BaseModelClass, observations: NDArray[np.intp], seed: int | None
) -> list[Check]:
    """Log density of the observed values against what is possible, one row for each kind."""
    discrete, continuous = [], []
    for name, fn_discrete, density, values in _observed(model, observations[:_MOST_ROWS], seed):
        columns = values.reshape(len(values), -1)
        if fn_discrete:
            discrete.append((density.mean() / columns.shape[1], name))
            continue
        spread = columns.std(axis=0)
        if len(columns) < _FEWEST_ROWS or not (spread > 0).all():
            continue  # what is constant may well be known exactly
        normal = -np.log(spread) - 0.5 * math.log(2 * math.pi * math.e)
        continuous.append(((density.mean() - normal.sum()) / columns.shape[1], name))
    checks = []
    if discrete:
        worst, name = max(discrete)
        checks.append(
            graded(
                "log probability of an observed discrete value",
                float(worst),
                (1e-4, 1e-2),
                "A probability above 1: the log_prob of this distribution is wrong, or overflows.",
                detail=f"{name}, in nats",
            )
        )
    if continuous:
        worst, name = max(continuous)
        checks.append(
            graded(
                "log density per observed value above that of a normal of the data's spread",
                float(worst),
                EXCESS,
                "A scale has collapsed, and the ELBO has no upper end: give scales a prior or a "
                "floor (unless the noise really is that small).",
                detail=f"{name}, in nats",
            )
        )
    return checks


def _has_points(model: BaseModelClass) -> bool:
    with stream("points"):
        example = example_on_device(model, None)
        return bool(point_sites(model.module, example, Role.LOCAL, Role.GLOBAL))


def _observed(
    model: BaseModelClass, rows: NDArray[np.intp], seed: int | None
) -> list[tuple[str, bool, NDArray[np.float64], NDArray[np.float64]]]:
    """Observed sites with whole rows of values: log densities ``(n,)`` and values under a draw."""
    _, _, loader = model.loader(None, rows)
    minibatch = next(iter(loader(len(rows)))).to(model.device)
    with torch.no_grad(), stream("bound", seed=seed), evaluation_mode(model.module):
        latents = latent_values(poutine.trace(model.module.run_guide).get_trace(minibatch))
        with Substitute(latents):
            trace = poutine.trace(model.module.run_model).get_trace(minibatch)
        found = []
        for name, node in local_nodes(trace, observed=True):
            site = model.sites.get(name)
            if site is None or site.role is not Role.OBSERVED or node["mask"] is not None:
                continue
            if not site.dims or site.dims[0] != OBS_PLATE:
                continue
            density = per_observation(node, log_density(node), minibatch.n)
            values = node["value"].double().cpu().numpy()
            found.append((name, site.is_discrete, density.double().cpu().numpy(), values))
    return found
