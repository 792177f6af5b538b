"""Export to ArviZ. Functions of a model."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._rng import derive_seed
from pyrovi._settings import settings
from pyrovi.dataloaders import AnnDataLoader
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import ModelError
from pyrovi.model.chains import in_chain, num_chains
from pyrovi.model.draws import GUIDE_DRAWS, latent_sites
from pyrovi.model.posteriors import has_stored_locals, stored_rows
from pyrovi.module.ledger import Role, Site
from pyrovi.module.plates import OBS_PLATE
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.arviz import to_container, with_chain
from pyrovi.posterior.labels import label

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.data import AnnDataManager
    from pyrovi.model.base import BaseModelClass

_COLUMNS = "_column"

_STATS = "sample_stats"

_NOTE = "independent draws of a fitted guide: ess and mcse do not measure its error"

GROUPS = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
)


def to_arviz(
    model: BaseModelClass,
    sites: str | Sequence[str] | None = None,
    *,
    num_samples: int | None = None,
    adata: Any = None,
    indices: Any = None,
    groups: Sequence[str] = ("posterior", "constant_data"),
    batch_size: int | None = None,
    seed: int | None = None,
) -> Any:
    """Posterior draws as ``arviz.InferenceData`` (ArviZ 0.x) or ``xarray.DataTree`` (1.x).

    Parameters
    ----------
    sites
        Latent or deterministic sites of the posterior and prior groups; ``None`` for all latent
        sites.
    num_samples
        Draws of each chain; ``None``: all that are stored, or 250 of a guide. The chains are those
        of MCMC, or the restarts of SVI.
    adata, indices, batch_size, seed
        As in :meth:`sample_posterior`. Where the draws are of the latents of certain observations
        (MCMC with ``indices=``), ``None`` takes those.
    groups
        Groups to fill. After MCMC ``sample_stats`` comes with ``posterior``. Any of
        ``posterior``, ``posterior_predictive``, ``log_likelihood``, ``sample_stats``, ``prior``,
        ``prior_predictive``, ``observed_data``, ``constant_data`` (the registered covariates).

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        Dimensions and coordinates carry the data's own names.

    Raises
    ------
    ModelError
        If a group or site is unknown.

    Notes
    -----
    Draws from a fitted guide are independent, so their effective sample size is their number and
    the Monte-Carlo error says nothing about the error of the approximation. R-hat needs several
    fits.
    """
    if unknown := [group for group in groups if group not in (*GROUPS, _STATS)]:
        known = ", ".join((*GROUPS, _STATS))
        raise ModelError(f"Unknown group {', '.join(map(repr, unknown))}; groups are: {known}.")
    manager = model.manager_of(adata)
    options: dict[str, Any] = {
        "num_samples": num_samples,
        "adata": manager,
        "indices": indices,
        "batch_size": batch_size,
        "seed": seed,
    }
    if indices is None and adata is None and has_stored_locals(model):
        options["indices"] = indices = np.flatnonzero(stored_rows(model, manager) >= 0)
    latent = latent_sites(model) if sites is None else model.sites.resolve(sites)
    observed = model.sites.names(Role.OBSERVED)
    prior_options = options | {"num_samples": num_samples or GUIDE_DRAWS}
    makers: dict[str, Callable[[], xr.Dataset]] = {
        "posterior": lambda: _by_chain(model, model.sample_posterior, latent, options),
        "posterior_predictive": lambda: _by_chain(model, model.posterior_predictive, None, options),
        "log_likelihood": lambda: _by_chain(model, model.log_likelihood, None, options),
        _STATS: lambda: _sample_stats(model, num_samples),
        "prior": lambda: with_chain(model.sample_prior(latent, **prior_options)),
        "prior_predictive": lambda: with_chain(model.sample_prior(observed, **prior_options)),
        "observed_data": lambda: _registered(model, manager, indices, observed=True),
        "constant_data": lambda: _registered(model, manager, indices, observed=False),
    }
    if "posterior" in groups and _has_statistics(model) and _STATS not in groups:
        groups = [*groups, _STATS]
    made = {group: makers[group]() for group in groups}
    return to_container(made, _attributes(model, seed))


def _by_chain(
    model: BaseModelClass,
    query: Callable[..., xr.Dataset],
    sites: Sequence[str] | None,
    options: Mapping[str, Any],
) -> xr.Dataset:
    """A query of each chain for itself, with noise of its own."""
    import xarray as xr

    results = []
    for chain in range(num_chains(model)):
        seed = options["seed"]
        own = seed if chain == 0 else derive_seed("chain", chain, seed=seed)
        with in_chain(model, chain):
            results.append(query(sites, **{**options, "seed": own}))
    if "draw" not in results[0].dims:
        return results[0]
    chains = xr.DataArray(np.arange(len(results)), dims="chain", name="chain")
    return xr.concat(results, dim=chains) if len(results) > 1 else with_chain(results[0])


def _has_statistics(model: BaseModelClass) -> bool:
    posterior = model.module.posterior
    return isinstance(posterior, StoredDraws) and bool(posterior.statistic_names)


def _sample_stats(model: BaseModelClass, num_samples: int | None) -> xr.Dataset:
    """What the method recorded of every draw, of the draws that the posterior group has."""
    import xarray as xr

    posterior = model.module.posterior
    if not isinstance(posterior, StoredDraws) or not posterior.statistic_names:
        raise ModelError(
            "Only the draws of method='nuts' (or 'pathfinder', 'map') have sample_stats; this "
            "posterior has none. Leave the group out."
        )
    with posterior.only_chain(0):
        chosen = posterior.choose(num_samples).cpu()
    columns = {name: value.cpu()[:, chosen] for name, value in posterior.statistics.items()}
    return xr.Dataset(
        {name: (("chain", "draw"), value.numpy()) for name, value in columns.items()},
        coords={"chain": np.arange(posterior.num_chains), "draw": np.arange(len(chosen))},
    )


def _registered(
    model: BaseModelClass, manager: AnnDataManager, indices: Any, *, observed: bool
) -> xr.Dataset:
    """Registered per-observation data: the observed fields, or all others (the covariates)."""
    positions = resolve_indices(indices, manager.n_obs)
    names = set(model.sites.names(Role.OBSERVED))
    sites = {
        key: model.sites[key] if observed else _covariate(key, entry["tensor"]["shape"])
        for key, entry in model.registry["field_registries"].items()
        if entry["tensor"] is not None
        and entry["tensor"]["axis"] == "obs"
        and (key in names) == observed
    }
    columns: dict[str, list[np.ndarray]] = {key: [] for key in sites}
    for minibatch in AnnDataLoader(manager, positions):
        for key in sites:
            columns[key].append(minibatch[key].numpy())
    arrays = {key: np.concatenate(parts) for key, parts in columns.items()}
    named = model.coords(manager, positions)
    return label(arrays, sites, lambda dim: named(dim.removesuffix(_COLUMNS)))


def _covariate(key: str, shape: Sequence[int]) -> Site:
    """A covariate as a site; a dimension of its columns cannot have its own name."""
    if not shape:
        return Site(key, Role.OBSERVED, (), (OBS_PLATE,), (OBS_PLATE,), 0)
    columns = None if shape == [1] else f"{key}{_COLUMNS}"
    return Site(key, Role.OBSERVED, (), (OBS_PLATE, *shape), (OBS_PLATE, columns), 0)


def _attributes(model: BaseModelClass, seed: int | None) -> dict[str, Any]:
    return {
        "inference_library": "pyrovi",
        "inference_library_version": version("pyrovi"),
        "inference": "svi" if model._training is None else model._training.method,
        "guide": type(getattr(model.module.guide, "__self__", model.module.guide)).__name__,
        "model": type(model).__name__,
        "seed": settings.seed if seed is None else seed,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **({} if isinstance(model.module.posterior, StoredDraws) else {"note": _NOTE}),
    }
