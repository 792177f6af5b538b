"""Posterior queries: labelled, joint, streamed draws of sites. Functions of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyrovi._settings import settings
from pyrovi.dataloaders.example import example_minibatches
from pyrovi.errors import ModelError
from pyrovi.module.ledger import Role, Site
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.bounds import likelihood_story
from pyrovi.posterior.engine import (
    Intervention,
    draw_globals,
    draw_prior_globals,
    posterior_query,
    prior_query,
    run_query,
)
from pyrovi.posterior.labels import label
from pyrovi.posterior.reduce import ReduceSpec, Reduction

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.dataloaders.minibatch import Minibatch
    from pyrovi.model.base import BaseModelClass

MAX_ELEMENTS = 2**30
"""Largest number of elements of a result; 4 GiB in single precision."""

Sites = str | Sequence[str] | None


def sample_posterior(
    model: BaseModelClass,
    sites: Sites = None,
    *,
    num_samples: int = 250,
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
        Names; ``None`` for all latent sites.
    num_samples
        Number of draws.
    adata
        Data to query; ``None`` for the model's own.
    indices
        Observations (positions or a boolean mask); ``None`` for all.
    batch_size
        Largest number of observations at a time.
    reduce
        ``None`` returns the draws. ``"mean"``, ``"sd"``, ``"median"``, ``"q05"`` or the like return
        that statistic, a list several, and a function what it makes of an array whose first axis is
        the draws. Reductions happen minibatch by minibatch: memory stays bounded.
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
        If a site is unknown, or the result would be too large.
    """
    names = model.sites.resolve(sites, Role.GLOBAL, Role.LOCAL)
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
    num_samples: int = 100,
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
        Names; ``None`` for all observed sites. Latent and deterministic sites may be asked for too:
        they belong to the same joint draws.
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
    """
    names = model.sites.resolve(sites, *Role)
    return _query(
        model, names, num_samples, adata, indices, batch_size, reduce, seed, prior=True
    )  # fmt: skip


def log_likelihood(
    model: BaseModelClass,
    sites: Sites = None,
    *,
    num_samples: int = 250,
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
        Observed sites; ``None`` for all.
    num_samples, adata, indices, batch_size, reduce, seed
        As in :meth:`sample_posterior`.

    Returns
    -------
    xarray.Dataset
        One variable per observed site, with dimensions ``draw`` and ``obs``. It is conditional on
        the local latents; for model comparison use the marginal one of :meth:`get_marginal_ll`.
    """
    names = model.sites.resolve(sites, Role.OBSERVED)
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
    num_samples: int,
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
    if num_samples < 1:
        raise ModelError(f"num_samples must be at least 1, got {num_samples}.")
    manager, positions, loader = model.loader(adata, indices)
    sites = {name: model.sites[name] for name in names}
    if likelihood:
        sites = {
            name: Site(name, Role.OBSERVED, (), (OBS_PLATE,), (OBS_PLATE,), 0) for name in names
        }
    reduction = Reduction(reduce)
    if reduce is None:
        _check_size(sites, num_samples, len(positions))
    example = example_on_device(model)
    if prior:
        draws = draw_prior_globals(model.module, example, num_samples, seed)
        make_story = prior_query(model.module, names)
    else:
        draws = draw_globals(model.module, example, num_samples, seed)
        make_story = posterior_query(
            model.module, names, predictive=predictive, intervention=intervention
        )
    if likelihood:
        make_story = lambda minibatch: likelihood_story(model.module, minibatch, names)  # noqa: E731
    arrays = run_query(
        model.module,
        loader,
        make_story,
        draws,
        sites,
        num_draws=num_samples,
        batch_size=batch_size or settings.batch_size,
        reduction=reduction,
        seed=seed,
    )
    leading = dict([reduction.leading]) if reduction.leading else {}
    return label(arrays, sites, model.coords(manager, positions), leading=leading)


def example_on_device(model: BaseModelClass) -> Minibatch:
    """The example minibatch that globals are drawn with."""
    return example_minibatches(model.registry, model.n_obs_training)(2).to(model.device)


def posterior_globals(
    model: BaseModelClass, num_samples: int, seed: int | None = None
) -> Mapping[str, Tensor]:
    """Joint draws of the global sites."""
    return draw_globals(model.module, example_on_device(model), num_samples, seed)


def _check_size(sites: Mapping[str, Site], num_samples: int, n: int) -> None:
    for name, site in sites.items():
        elements = num_samples * math.prod(n if s == OBS_PLATE else int(s) for s in site.shape)
        if elements > MAX_ELEMENTS:
            raise ModelError(
                f"{num_samples} draws of {name!r} for {n} observations are {elements:.2g} numbers "
                f"({elements * 4 / 2**30:.0f} GiB). Ask for a summary (reduce='mean', 'sd', 'q05', "
                "or a function), fewer draws, or fewer observations (indices=)."
            )
