"""Checks of a model trained by stochastic variational inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyrovi._rng import generator, stream
from pyrovi.criticism.diagnose_bound import bound_is_finite, plausible_bound
from pyrovi.criticism.diagnose_joint import is_mean_field, joint_check
from pyrovi.criticism.diagnose_rows import Check, graded, unavailable
from pyrovi.criticism.elpd import has_observations
from pyrovi.model.amortization import amortization_gap
from pyrovi.model.chains import num_chains
from pyrovi.model.elbo_estimate import ElboEstimate, estimate_elbo
from pyrovi.model.local_fit import local_fit
from pyrovi.model.summary import chain_draws
from pyrovi.module.ledger import Role, Site
from pyrovi.posterior.alignment import Symmetry
from pyrovi.posterior.convergence import rhat
from pyrovi.posterior.scalars import scalar_columns

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

MOVING = 1e-4
"""Relative improvement of the ELBO over a quarter of the epochs from which more would be gained."""

INACTIVE = 0.01
"""Share of the variance that a used local dimension's posterior means have at least."""


_DRAWS = 100

_FEWEST_IN_BLOCK = 5
"""Epochs in a quarter of a history that is long enough to be judged."""

LOCAL_DRAWS = 300
"""Draws of the local latents of an observation that its k-hat is estimated from."""

LOCAL_KHAT = "observations with local k-hat too high, share"
"""Name of the check of the local posteriors."""

NOISY = 0.01
"""Relative noise of the ELBO from which a short history cannot tell whether training has ended."""


def svi_checks(
    model: BaseModelClass,
    align: Mapping[str, Symmetry] | None,
    max_observations: int,
    amortization: bool,
    seed: int | None,
) -> list[Check]:
    """All checks of a fit by SVI."""
    broken = _finite(model)
    if broken.verdict == "fail":
        return [broken]
    observations = judged_observations(model, max_observations, seed)
    training = estimate_elbo(model, indices=observations, seed=seed)
    finite = bound_is_finite(model, training.value)
    if finite.verdict == "fail":
        return [broken, finite]
    checks = [broken, finite, *plausible_bound(model, observations, training, seed)]
    checks += [_converged(model), *_bounds(model, observations, training, seed)]
    checks.append(_restarts(model, align, seed))
    if model.sites.names(Role.LOCAL):
        checks.append(_collapse(model, observations, seed))
        if _draws_locals(model):
            checks.append(_khat(model, observations, seed))
            if amortization and not model.module.row_parameters:
                checks.append(_gap(model, observations, seed))
        else:
            checks.append(unavailable("local k-hat", "The guide gives the locals single values."))
    if model.sites.names(Role.GLOBAL):
        checks.append(joint_check(model, seed))
    checks += _mean_field(model)
    return checks


def _finite(model: BaseModelClass) -> Check:
    state = model.module.state_dict()
    bad = [n for n, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    advice = "Train anew with a smaller lr or gradient_clip_val, after a check of the data."
    return graded(
        "parameters that are not finite", float(len(bad)), (0, 0), advice, detail=", ".join(bad[:3])
    )


def _converged(model: BaseModelClass) -> Check:
    from pyrovi.train.callbacks import block_change

    what = "ELBO still improving, per quarter of the epochs"
    history = model._history.get("elbo_train", {})
    weights = model._history.get("kl_weight", {})
    full = max(weights.values(), default=1.0)
    losses = [v for epoch, v in sorted(history.items()) if weights.get(epoch, full) >= full]
    block = len(losses) // 4
    if not losses:
        return unavailable(what, "There is no training history at the full KL weight.")
    if block < _FEWEST_IN_BLOCK:
        return Check(
            what,
            None,
            MOVING,
            "warn",
            "Too few epochs at the full KL weight to tell, and probably to converge: train() again "
            "goes on.",
            f"{len(losses)} epochs, at least {4 * _FEWEST_IN_BLOCK} are needed",
        )
    change = block_change(losses, block)
    size = abs(change.mean)
    noise = 2 * change.error / size
    relative = change.improvement / size
    limit = max(MOVING, noise)
    if relative <= limit and noise > NOISY:
        return Check(
            what,
            relative,
            limit,
            "warn",
            "The ELBO of single epochs is too noisy to tell: train longer, with larger minibatches "
            "or more particles.",
            f"relative, noise {noise:.1g}, {len(losses)} epochs",
        )
    return graded(
        what,
        relative,
        (limit, 10 * limit),
        "Training had not come to its end: train() again goes on; without held-out observations "
        "use early_stopping='elbo'.",
        detail=f"relative, noise {noise:.1g}, {len(losses)} epochs",
    )


def _bounds(
    model: BaseModelClass,
    observations: NDArray[np.intp],
    training: ElboEstimate,
    seed: int | None,
) -> list[Check]:
    advice = "The bound itself is uncertain: average over more draws (estimate_elbo(num_samples=))."
    checks = [
        graded(
            "Monte-Carlo error of the ELBO / its size",
            training.mcse / max(abs(training.value), 1e-12),
            (0.01, 0.05),
            advice,
            detail=_elbo_words(model, training),
        )
    ]
    if not has_observations(model):
        return checks
    held_out = model.validation_indices
    if held_out is None or len(held_out) < 2:
        reason = "No observations were held out (train_size=0.9 holds out a tenth)."
        return [*checks, unavailable("training ELBO above that of held-out observations", reason)]
    rest = np.asarray(held_out)[: len(observations)]
    outside = estimate_elbo(model, indices=rest, seed=seed)
    error = float(np.hypot(training.se, outside.se))
    gap = training.value - outside.value
    checks.append(
        graded(
            "training ELBO above that of held-out observations",
            gap / error,
            (3, 6),
            "The model has learnt the training observations by heart: stop earlier "
            "(early_stopping=True), or use fewer parameters or stronger priors.",
            detail=f"in standard errors; {gap:.3g} nats per observation",
        )
    )
    return checks


def _elbo_words(model: BaseModelClass, found: ElboEstimate) -> str:
    if not has_observations(model):
        n = model.n_obs_training
        return f"ELBO {n * found.value:.5g}, standard error {n * found.mcse:.2g} of the draws"
    of_sample = f", {found.se:.2g} of the sample of {found.n_obs} observations"
    return (
        f"ELBO {found.value:.5g} per observation, standard error {found.mcse:.2g} of the draws"
        + (of_sample if found.n_obs > 1 else "")
    )


def _restarts(
    model: BaseModelClass, align: Mapping[str, Symmetry] | None, seed: int | None
) -> Check:
    what = "R-hat over restarts"
    if num_chains(model) < 2:
        reason = "One fit cannot be compared with others: train(n_restarts=4)."
        return unavailable(what, reason)
    if not model.sites.names(Role.GLOBAL):
        return unavailable(
            what,
            "There are no global latents; the latent space of a network is not comparable between "
            "fits. Compare what it predicts.",
        )
    draws = chain_draws(model, num_samples=250, align=align, seed=seed)
    names, values = scalar_columns(draws, ("chain", "draw"))
    found = rhat(values)
    worst = int(np.nanargmax(found))
    advice = "The fits disagree: train longer, or the posterior has several modes."
    if any(_is_matrix(model.sites[name]) for name in model.sites.names(Role.GLOBAL)):
        advice += (
            " Factors are known up to rotation or order only: align={'factor': 'rotation'}, or "
            "look at W^T W."
        )
    detail = f"{names[worst]}; {int((found > 1.05).sum())} of {len(names)} above"
    return graded(what, float(found[worst]), (1.05, 1.2), advice, detail=detail)


def _is_matrix(site: Site) -> bool:
    """Whether a site could hold loadings of factors: two axes of its own, or of plates."""
    own = [dim for dim in site.dims if dim not in site.plates]
    return len(own) > 1 or len(site.plates) > 1


def _collapse(model: BaseModelClass, observations: NDArray[np.intp], seed: int | None) -> Check:
    """Active units of Burda et al. (2016): dimensions that say something of an observation."""
    what = "collapsed dimensions of local latents, share"
    names = [n for n in model.sites.names(Role.LOCAL) if not model.sites[n].is_categorical]
    if not names:
        return unavailable(what, "The local latents are categories.")
    found = model.sample_posterior(
        names, num_samples=_DRAWS, indices=observations, reduce=["mean", "sd"], seed=seed
    )
    idle = total = 0
    for array in found.data_vars.values():
        others = [d for d in array.dims if d not in ("statistic", "obs")]
        mean, sd = array.transpose("statistic", "obs", *others).to_numpy()
        within = np.square(sd).mean(0)
        between = mean.var(0) - within / _DRAWS  # less the noise of the means themselves
        inactive = between < INACTIVE * (between + within)
        idle, total = idle + int(inactive.sum()), total + inactive.size
    return graded(
        what,
        idle / total,
        (0.0, 0.5),
        "Some dimensions ignore the data (posterior collapse): use fewer, or a longer KL warm-up.",
        detail=f"{idle} of {total}, {len(observations)} observations",
    )


def _khat(model: BaseModelClass, observations: NDArray[np.intp], seed: int | None) -> Check:
    fit = local_fit(model, indices=observations, num_inner=LOCAL_DRAWS, seed=seed)
    share = float(1 - fit["good"].mean())
    return graded(
        LOCAL_KHAT,
        share,
        (0.05, 0.2),
        "The guide misses parts of the local posterior: a wider encoder, more epochs, or a richer "
        "family; model.local_fit() says where.",
        detail=f"limit {fit['threshold'].iloc[0]:.2f}, {len(observations)} observations",
    )


def _gap(model: BaseModelClass, observations: NDArray[np.intp], seed: int | None) -> Check:
    what = "amortisation gap, nats per observation"
    sites = model.sites
    discrete = [name for name in sites.names(Role.LOCAL) if sites[name].is_discrete]
    if discrete:
        named = ", ".join(map(repr, discrete))
        return unavailable(what, f"The guide draws {named}, which no normal distribution replaces.")
    few = observations[:30]
    table = amortization_gap(
        model, indices=few, max_observations=None, covariance="diagonal", num_draws=16, seed=seed
    )
    gap = float(table["amortization_gap"].mean())
    return graded(
        what,
        gap,
        (0.5, 2.0),
        "One encoder for all observations loses this much of the ELBO: a wider encoder, or more "
        "epochs.",
        detail=f"{len(few)} observations",
    )


def _mean_field(model: BaseModelClass) -> list[Check]:
    if not is_mean_field(model) or not model.sites.names(Role.GLOBAL):
        return []
    return [
        Check(
            "globals independent in the guide",
            None,
            None,
            "warn",
            "A mean-field guide leaves out correlations of the globals and understates their "
            "standard deviations where there are any: compare with guide='mvn' or method='nuts'.",
        )
    ]


def _draws_locals(model: BaseModelClass) -> bool:
    """Whether the guide draws the locals from densities, not single values."""
    from pyrovi.errors import ModelError
    from pyrovi.model.marginal import refuse_point_locals

    try:
        with stream("points"):
            refuse_point_locals(model, model.adata_manager)
    except ModelError:
        return False
    return True


def judged_observations(model: BaseModelClass, size: int, seed: int | None) -> NDArray[np.intp]:
    """The training observations that checks look at: all, or a seeded sample, in order."""
    indices = model.train_indices
    chosen = np.arange(model.adata_manager.n_obs) if indices is None else np.asarray(indices)
    if len(chosen) > size:
        chosen = generator("diagnose", seed=seed).choice(chosen, size, replace=False)
    return np.sort(chosen)
