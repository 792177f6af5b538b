"""Log-likelihoods with the local latents integrated out, draw by draw of the globals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyrovi._rng import stream
from pyrovi._settings import settings
from pyrovi.errors import ModelError
from pyrovi.model.draws import example_on_device, posterior_globals, resolve_num_samples
from pyrovi.module.ledger import Role, Site
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.fitted_proposal import can_fit, fitted_batch_size
from pyrovi.posterior.labels import label
from pyrovi.posterior.marginal import LocalWeights
from pyrovi.posterior.pareto import FEWEST_DRAWS, importance_ess, khat_threshold, psis
from pyrovi.posterior.point_estimates import point_sites

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.data import AnnDataManager
    from pyrovi.model.base import BaseModelClass

DIAGNOSED_DRAWS = 100
"""Most draws of the globals, evenly spread, whose weights a Pareto distribution is fitted to."""

WORST = 0.05
"""Share of the draws of the globals whose importance weights may be worse than is told."""


def marginal_log_likelihood(
    model: BaseModelClass,
    *,
    num_samples: int | None = None,
    num_inner: int = 200,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    fit: bool = True,
    seed: int | None = None,
) -> xr.Dataset:
    r"""Log-likelihood of each observation given each draw of the globals, locals integrated out.

    .. math:: \log \frac1K \sum_k \frac{p(x_n, z_{snk} \mid g_s)}{q(z_{snk} \mid x_n, g_s)}
              \;\approx\; \log p(x_n \mid g_s)

    with draws :math:`z_{snk}` of the guide (after MCMC, of normal distributions matched to the
    stored draws: of the locals given the globals, if these are few, and a little wider). Where the
    weights of an observation are not to be relied on, because the guide misses its posterior (an
    encoder serves all observations with one set of weights), they are taken anew with a normal
    distribution fitted to this observation (:mod:`pyrovi.posterior.fitted_proposal`). Each value
    is in expectation a lower bound of :math:`\log p(x_n \mid g_s)`, which tightens as
    ``num_inner`` grows; every observation has its own weights, and the plate's ``N / n`` is no part
    of them. This is what cross-validation of a model with local latents needs: the likelihood
    *given* an observation's own latents has been fitted to that observation.

    A model without local latents needs no integral: the values are its log-likelihood. Enumerated
    sites are summed out exactly.

    Parameters
    ----------
    num_samples
        Draws ``S`` of the globals from their posterior (``None``: all that are stored, else 250);
        they are those of :meth:`sample_posterior` with the same seed.
    num_inner
        Draws ``K`` of the locals for each of them.
    fit
        Whether proposals may be fitted. It takes several times as long as weighing draws of the
        guide, for the observations concerned, and more with many local coordinates.
    adata, indices, batch_size, seed
        As in :meth:`sample_posterior`.

    Returns
    -------
    xarray.Dataset
        ``log_likelihood`` with dimensions ``draw`` and ``obs``, in nats. If there are local latents
        also ``mcse``, the Monte-Carlo standard error of each of these values, and, for each
        observation, ``khat`` and ``ess``: the Pareto shape and the effective number of its
        importance weights. They are those that 5 % of the draws of the globals exceed, or fall
        short of: an integral that fails for some draws spoils what is averaged over them. Where
        ``khat`` exceeds the attribute ``khat_threshold`` it is not to be relied on. ``fitted`` is
        true where proposals were fitted: if the guide's weights (of 21 or more draws) are above the
        threshold and those of the fit are better, and the local latents are continuous, of fixed
        support, with at most 50 coordinates. No :math:`\hat k` shows a mode that all draws miss.

    Raises
    ------
    ModelError
        If a number of draws is below 1, no observed site has a value per observation, or the guide
        gives a local latent a single value (a point estimate has no density to weigh by).

    Notes
    -----
    All observed sites in the observation plate count together. Densities are masked as the story
    says but not scaled: ``poutine.scale`` weights a term of the objective and is no part of a
    likelihood.

    References
    ----------
    Burda, Grosse, Salakhutdinov: Importance weighted autoencoders. ICLR (2016).
    """
    manager, positions, _ = model.loader(adata, indices)
    options: dict[str, Any] = {
        "num_samples": num_samples,
        "num_inner": num_inner,
        "batch_size": batch_size,
        "seed": seed,
    }
    arrays = _integrals(model, local_weights(model, manager, positions, **options))
    attrs: dict[str, Any] = {"kind": "conditional"}
    if model.sites.names(Role.LOCAL):
        threshold = khat_threshold(num_inner)
        bad = ~(arrays["khat"] <= threshold)
        arrays["fitted"] = np.zeros(len(bad), dtype=bool)
        if fit and bad.any() and num_inner >= FEWEST_DRAWS and can_fit(model.module):
            weights = local_weights(model, manager, positions[bad], fitted=True, **options)
            found = _integrals(model, weights)
            better = _is_better(found, {name: arrays[name][..., bad] for name in found})
            arrays["fitted"][bad] = better
            for name, values in found.items():
                arrays[name][..., arrays["fitted"]] = values[..., better]
        attrs = {
            "kind": "importance-weighted marginal",
            "num_inner": num_inner,
            "khat_threshold": threshold,
        }
    return _labelled(model, manager, positions, arrays, attrs)


def _is_better(fitted: dict[str, np.ndarray], guided: dict[str, np.ndarray]) -> np.ndarray:
    """For which observations fitted proposals serve better than the guide's.

    Weights of draws around one mode look well whatever other modes hold. They are seen where the
    guide, whose estimates are too low in tendency, finds more.
    """
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(fitted["log_likelihood"]).all(0)
        excess = (guided["log_likelihood"] - fitted["log_likelihood"]).mean(0)
        square = np.square(guided["mcse"]) + np.square(fitted["mcse"])
        error = np.sqrt(square.mean(0) / len(square))
        worse = (fitted["khat"] >= guided["khat"]) | (excess > 3 * error)
    return np.asarray(finite & np.isfinite(fitted["khat"]) & ~worse)


def _integrals(model: BaseModelClass, batches: Iterator[Tensor]) -> dict[str, np.ndarray]:
    """Log mean weights, and with local latents how far they can be relied on; observations last."""
    parts: dict[str, list[np.ndarray]] = {}
    for weights in batches:
        found = {"log_likelihood": log_mean(weights)}
        if model.sites.names(Role.LOCAL):
            found |= dict(zip(("khat", "ess", "mcse"), diagnose_weights(weights), strict=True))
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values, -1) for name, values in parts.items()}


def local_weights(
    model: BaseModelClass,
    manager: AnnDataManager,
    positions: np.ndarray,
    *,
    num_samples: int | None,
    num_inner: int,
    batch_size: int | None,
    seed: int | None,
    fitted: bool = False,
) -> Iterator[Tensor]:
    """Log importance weights of one minibatch after the other, see :class:`LocalWeights`.

    Parameters
    ----------
    model
        A fitted model.
    manager, positions
        The observations.
    num_samples, num_inner, batch_size, seed
        As in :func:`marginal_log_likelihood`.
    fitted
        Whether proposals are fitted to each observation, instead of the guide's.

    Yields
    ------
    torch.Tensor
        Shape ``(S, K, n)``, in double precision; ``K`` is 1 for a model without local latents.
    """
    count = resolve_num_samples(model, num_samples)
    _check(model, num_inner)
    if model.sites.names(Role.LOCAL):
        with stream("points", seed=seed):
            refuse_point_locals(model, manager)
    else:
        num_inner = 1
    _, _, loader = model.loader(manager, positions)
    globals_ = dict(posterior_globals(model, count, seed, manager))
    weigh, device = LocalWeights(model.module, count, num_inner), model.device
    size = weigh.batch_size(batch_size or settings.batch_size)
    size = fitted_batch_size(model.module, count, size) if fitted else size
    purpose = "fitted marginal" if fitted else "marginal"
    for position, minibatch in enumerate(loader(size)):
        with stream("draws", purpose, position, seed=seed):
            weights = (weigh.fitted if fitted else weigh)(minibatch.to(device), globals_)
        yield weights.double()


def log_mean(log_weights: Tensor) -> np.ndarray:
    """Log of the mean weight over the local draws: ``(S, K, n)`` to ``(S, n)``."""
    values: np.ndarray = (log_weights.logsumexp(1) - math.log(log_weights.shape[1])).cpu().numpy()
    return values


def diagnose_weights(log_weights: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pareto shape, effective number, and Monte-Carlo error of the log mean weight.

    Parameters
    ----------
    log_weights
        Shape ``(S, K, n)``.

    Returns
    -------
    tuple
        The first two of each observation, ``(n,)``, in the worst 5 % of the draws of the globals
        (of 100 of them for the first); the errors of all, ``(S, n)``.
    """
    weights = log_weights.transpose(0, 1).cpu().numpy()
    count = weights.shape[1]
    spread = np.unique(np.linspace(0, count - 1, min(count, DIAGNOSED_DRAWS)).astype(int))
    _, khat = psis(weights[:, spread])
    ess = importance_ess(weights)
    mcse = np.sqrt(np.maximum(1 / ess - 1 / len(weights), 0.0))
    return _upper(khat), -_upper(-ess), mcse


def _upper(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.quantile(values, 1 - WORST, axis=0, method="lower"))


def refuse_point_locals(model: BaseModelClass, manager: AnnDataManager | None = None) -> None:
    """Refuse to weigh draws of a local latent that the guide gives a single value.

    Raises
    ------
    ModelError
        Naming the sites.
    """
    example = example_on_device(model, manager)
    if points := point_sites(model.module, example, Role.LOCAL):
        raise ModelError(
            f"The guide gives the local latent(s) {', '.join(map(repr, points))} a single value "
            "for each observation. A point estimate has no density, so the latents cannot be "
            "integrated out by importance weights. Use a guide with a spread, e.g. "
            "guide='amortized' or 'normal' instead of 'delta'."
        )


def _check(model: BaseModelClass, num_inner: int) -> None:
    if num_inner < 1:
        raise ModelError(f"num_inner must be at least 1, got {num_inner}.")
    sites = model.sites
    if not any(sites[name].is_local for name in sites.names(Role.OBSERVED, Role.FACTOR)):
        raise ModelError(
            "The model has no observed site with a value per observation, so there is no "
            "log-likelihood of single observations. Observe a site inside "
            "`with pv.obs_plate():`."
        )


def _labelled(
    model: BaseModelClass,
    manager: AnnDataManager,
    positions: np.ndarray,
    arrays: dict[str, np.ndarray],
    attrs: dict[str, Any],
) -> xr.Dataset:
    coords = model.coords(manager, positions)
    of_draws: dict[str, np.ndarray] = {"log_likelihood": arrays.pop("log_likelihood")}
    if "mcse" in arrays:
        of_draws["mcse"] = arrays.pop("mcse")
    row = {
        name: Site(name, Role.OBSERVED, (), (OBS_PLATE,), (OBS_PLATE,), 0)
        for name in (*of_draws, *arrays)
    }
    result = label(of_draws, row, coords, leading={"draw": None}, attrs=attrs)
    return result.assign(label(arrays, row, coords)) if arrays else result
