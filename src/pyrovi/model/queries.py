"""Posterior queries: labelled, joint, streamed draws of sites. Functions of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrovi._settings import settings
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.model.discrete import check_no_categories
from pyrovi.model.draws import (
    example_on_device,
    latent_sites,
    resolve_num_samples,
    warn_if_untrained,
)
from pyrovi.module.ledger import Role, Site
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.bounds import likelihood_story
from pyrovi.posterior.engine import (
    Intervention,
    posterior_query,
    prior_query,
    run_query,
)
from pyrovi.posterior.globals import draw_globals, reduce_globals
from pyrovi.posterior.labels import label
from pyrovi.posterior.reduce import ReduceSpec, Reduction
from pyrovi.posterior.vectorise import Story

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.data import AnnDataManager
    from pyrovi.model.base import BaseModelClass

MAX_ELEMENTS = 2**30
"""Largest number of elements of a result; 4 GiB in single precision."""

Sites = str | Sequence[str] | None


def sample_posterior(
    model: BaseModelClass,
    sites: Sites = None,
    *,
    num_samples: int | None = None,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    reduce: ReduceSpec = None,
    intervention: Intervention | None = None,
    seed: int | None = None,
) -> xr.Dataset:
    """Joint posterior draws of sites.

    The globals are drawn once and replayed for all observations.

    Parameters
    ----------
    sites
        Names; ``None`` for all latent sites, those that training sums out (enumerated sites in the
        observation plate) included.
    num_samples
        Number of draws; ``None``: all that are stored (after MCMC, Pathfinder, a point estimate),
        else 250. Fewer stored draws are chosen evenly, without replacement.
    adata
        Data to query; ``None`` for the model's own.
    indices
        Observations (positions or a boolean mask); ``None`` for all.
    batch_size
        Largest number of observations at a time.
    reduce
        ``None`` returns the draws. ``"mean"``, ``"sd"``, ``"median"``, ``"q05"`` or the like return
        that statistic, a list several, and a function what it makes of an array whose first axis is
        the draws. Sites of categories have no statistics: see :meth:`discrete_marginals`, or give a
        function. Reductions happen minibatch by minibatch: memory stays bounded. If only global
        sites are asked for, means and standard deviations do not need the draws in memory either;
        with local sites all ``num_samples`` draws of the globals are held.
    intervention
        Function of a minibatch that returns what the model (not the guide) is to see: a
        counterfactual.
    seed
        Root seed; ``None`` for ``settings.seed``.

    Returns
    -------
    xarray.Dataset
        One variable per site, with the data's own names.

    Raises
    ------
    ModelError
        If a site is unknown, the result would be too large, a statistic of categories is asked for,
        or a deterministic site outside the observation plate is a function of the minibatch.

    Notes
    -----
    Noise belongs to a position: two queries with the same seed give the first, second, ...
    minibatch the same noise, whichever observations are in it. For independent draws of two groups
    of observations ask for both at once, or pass different seeds.

    The same query gives the same bits. They depend on the batch size in effect, which is lowered to
    bound memory when ``num_samples`` times the size of the sites asked for is large: then they
    depend on these too.
    """
    names = latent_sites(model) if sites is None else model.sites.resolve(sites)
    if observed := [n for n in names if model.sites[n].role is Role.OBSERVED]:
        raise ModelError(
            f"{', '.join(map(repr, observed))} is observed; draw it with posterior_predictive()."
        )
    return _query(
        model, names, num_samples, adata, indices, batch_size, reduce, seed,
        intervention=intervention,
    )  # fmt: skip


def posterior_predictive(
    model: BaseModelClass,
    sites: Sites = None,
    *,
    num_samples: int | None = None,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    reduce: ReduceSpec = None,
    intervention: Intervention | None = None,
    seed: int | None = None,
) -> xr.Dataset:
    """Draws of the observed sites from the posterior predictive distribution.

    Parameters
    ----------
    sites
        Names; ``None`` for all observed sites (not ``pyro.factor`` terms, which have no value).
        Latent and deterministic sites may be asked for too: they belong to the same joint draws.
    num_samples, adata, indices, batch_size, reduce, intervention, seed
        As in :meth:`sample_posterior`.

    Returns
    -------
    xarray.Dataset
        One variable per site.
    """
    names = model.sites.resolve(sites, Role.OBSERVED)
    return _query(
        model, names, num_samples, adata, indices, batch_size, reduce, seed,
        predictive=True, intervention=intervention,
    )  # fmt: skip


def sample_prior(
    model: BaseModelClass,
    sites: Sites = None,
    *,
    num_samples: int = 100,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    reduce: ReduceSpec = None,
    seed: int | None = None,
) -> xr.Dataset:
    """Draws from the prior and the prior predictive distribution.

    Parameters
    ----------
    sites
        Names; ``None`` for all latent, deterministic and observed sites.
    num_samples, adata, indices, batch_size, reduce, seed
        As in :meth:`sample_posterior`. The data are used for covariates only.

    Returns
    -------
    xarray.Dataset
        One variable per site.

    Raises
    ------
    ModelError
        If a prior is improper, or ``pyro.factor`` terms outside the observation plate belong to it:
        nothing can be drawn from either.
    """
    names = model.sites.resolve(sites, *(role for role in Role if role is not Role.FACTOR))
    return _query(
        model, names, num_samples, adata, indices, batch_size, reduce, seed, prior=True
    )  # fmt: skip


def log_likelihood(
    model: BaseModelClass,
    sites: Sites = None,
    *,
    num_samples: int | None = None,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    reduce: ReduceSpec = None,
    seed: int | None = None,
) -> xr.Dataset:
    """Log-likelihood of each observation under joint posterior draws (locals included).

    Parameters
    ----------
    sites
        Observed sites; ``None`` for all that have a value per observation.
    num_samples, adata, indices, batch_size, reduce, seed
        As in :meth:`sample_posterior`.

    Returns
    -------
    xarray.Dataset
        One variable per observed site, with dimensions ``draw`` and ``obs``. It is conditional on
        the local latents; for model comparison use the marginal one of :meth:`get_marginal_ll`.

    Raises
    ------
    ModelError
        If a site is not observed, or no observed site has a value per observation.
    """
    names = model.sites.resolve(sites, Role.OBSERVED)
    if sites is None:
        names = [name for name in names if model.sites[name].is_local]
        if not names:
            raise ModelError(
                "The model has no observed site with a value per observation, so there is no "
                "log-likelihood; pyro.factor terms are part of get_elbo() only."
            )
    if wrong := [n for n in names if model.sites[n].role is not Role.OBSERVED]:
        raise ModelError(f"{', '.join(map(repr, wrong))} is not observed: it has no likelihood.")
    if outside := [n for n in names if not model.sites[n].is_local]:
        raise ModelError(f"{', '.join(map(repr, outside))} has no value per observation.")
    return _query(
        model, names, num_samples, adata, indices, batch_size, reduce, seed, likelihood=True
    )  # fmt: skip


def _query(
    model: BaseModelClass,
    names: Sequence[str],
    num_samples: int | None,
    adata: Any,
    indices: Any,
    batch_size: int | None,
    reduce: ReduceSpec,
    seed: int | None,
    *,
    predictive: bool = False,
    prior: bool = False,
    likelihood: bool = False,
    intervention: Intervention | None = None,
) -> xr.Dataset:
    num_samples = resolve_num_samples(model, num_samples)
    if not prior:
        warn_if_untrained(model)
    manager, positions, loader = model.loader(adata, indices)
    sites = {name: model.sites[name] for name in names}
    if factors := [name for name in names if sites[name].role is Role.FACTOR]:
        raise ModelError(
            f"{', '.join(map(repr, factors))} is a pyro.factor term: it adds to the log density "
            "and has no value to draw."
        )
    if likelihood:
        sites = {
            name: Site(name, Role.OBSERVED, (), (OBS_PLATE,), (OBS_PLATE,), 0) for name in names
        }
    reduction = Reduction(reduce)
    if reduction.statistics:
        check_no_categories(model, sites.values())
    if reduce is None:
        check_size(sites, num_samples, len(positions))
    example = example_on_device(model, manager)
    if names and all(site.role is Role.GLOBAL for site in sites.values()):
        arrays = reduce_globals(
            model.module, example, names, num_samples, reduction, prior=prior, seed=seed
        )
        return _labelled(model, manager, positions, arrays, sites, reduction)
    draws = draw_globals(model.module, example, num_samples, seed, prior=prior)
    if prior:
        make_story = prior_query(model.module, names)
    else:
        make_story = posterior_query(
            model.module, names, predictive=predictive, intervention=intervention
        )
    if likelihood:
        make_story = lambda minibatch: likelihood_story(model.module, minibatch, names)  # noqa: E731
    return run_labelled(
        model, manager, positions, loader, make_story, draws, sites,
        num_samples=num_samples, reduction=reduction, batch_size=batch_size, seed=seed,
    )  # fmt: skip


def run_labelled(
    model: BaseModelClass,
    manager: AnnDataManager,
    positions: NDArray[np.int64],
    loader: Callable[[int], Any],
    make_story: Callable[[Minibatch], Story],
    draws: Mapping[str, Tensor],
    sites: Mapping[str, Site],
    *,
    num_samples: int,
    reduction: Reduction,
    batch_size: int | None,
    seed: int | None,
) -> xr.Dataset:
    """Run a story for all minibatches and draws, and name the result.

    Parameters
    ----------
    model, manager, positions
        The model, and the data and observations that are asked for.
    loader
        Batch size -> loader of these observations.
    make_story
        Minibatch -> story.
    draws
        Draws of the globals, site -> ``(S, ...)``.
    sites
        What the story returns.
    num_samples, reduction, batch_size, seed
        As in :func:`sample_posterior`.
    """
    arrays = run_query(
        model.module,
        loader,
        make_story,
        draws,
        sites,
        n_obs=len(positions),
        num_draws=num_samples,
        batch_size=batch_size or settings.batch_size,
        reduction=reduction,
        seed=seed,
    )
    return _labelled(model, manager, positions, arrays, sites, reduction)


def _labelled(
    model: BaseModelClass,
    manager: AnnDataManager,
    positions: NDArray[np.int64],
    arrays: Mapping[str, np.ndarray],
    sites: Mapping[str, Site],
    reduction: Reduction,
) -> xr.Dataset:
    leading = dict([reduction.leading]) if reduction.leading else {}
    return label(arrays, sites, model.coords(manager, positions), leading=leading)


def check_size(sites: Mapping[str, Site], num_samples: int, n: int) -> None:
    """Refuse draws that would not fit into memory.

    Parameters
    ----------
    sites
        What is asked for.
    num_samples, n
        Numbers of draws and of observations.

    Raises
    ------
    ModelError
        Naming the site, its size, and what to ask for instead.
    """
    for name, site in sites.items():
        elements = num_samples * math.prod(n if s == OBS_PLATE else int(s) for s in site.shape)
        if elements > MAX_ELEMENTS:
            raise ModelError(
                f"{num_samples} draws of {name!r} for {n} observations are {elements:.2g} numbers "
                f"({elements * 4 / 2**30:.0f} GiB). Ask for a summary (reduce='mean', 'sd', 'q05', "
                "or a function), fewer draws, or fewer observations (indices=)."
            )
