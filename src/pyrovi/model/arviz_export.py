"""Export to ArviZ. Functions of a model."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._settings import settings
from pyrovi.dataloaders import AnnDataLoader
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import ModelError
from pyrovi.model.draws import latent_sites
from pyrovi.module.ledger import Role, Site
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.arviz import to_container, with_chain
from pyrovi.posterior.labels import label

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.data import AnnDataManager
    from pyrovi.model.base import BaseModelClass

_COLUMNS = "_column"

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
    num_samples: int = 250,
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
    num_samples, adata, indices, batch_size, seed
        As in :meth:`sample_posterior`.
    groups
        Groups to fill: any of ``posterior``, ``posterior_predictive``, ``log_likelihood``,
        ``prior``, ``prior_predictive``, ``observed_data``, ``constant_data`` (the registered
        covariates).

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
    if unknown := [group for group in groups if group not in GROUPS]:
        raise ModelError(
            f"Unknown group {', '.join(map(repr, unknown))}; groups are: {', '.join(GROUPS)}."
        )
    manager = model.manager_of(adata)
    options: dict[str, Any] = {
        "num_samples": num_samples,
        "adata": manager,
        "indices": indices,
        "batch_size": batch_size,
        "seed": seed,
    }
    latent = latent_sites(model) if sites is None else model.sites.resolve(sites)
    observed = model.sites.names(Role.OBSERVED)
    makers: dict[str, Callable[[], xr.Dataset]] = {
        "posterior": lambda: with_chain(model.sample_posterior(latent, **options)),
        "posterior_predictive": lambda: with_chain(model.posterior_predictive(**options)),
        "log_likelihood": lambda: with_chain(model.log_likelihood(**options)),
        "prior": lambda: with_chain(model.sample_prior(latent, **options)),
        "prior_predictive": lambda: with_chain(model.sample_prior(observed, **options)),
        "observed_data": lambda: _registered(model, manager, indices, observed=True),
        "constant_data": lambda: _registered(model, manager, indices, observed=False),
    }
    made = {group: makers[group]() for group in groups}
    return to_container(made, _attributes(model, seed))


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
    columns = None if shape == [1] else f"{key}{_COLUMNS}"
    return Site(key, Role.OBSERVED, (), (OBS_PLATE, *shape), (OBS_PLATE, columns), 0)


def _attributes(model: BaseModelClass, seed: int | None) -> dict[str, Any]:
    return {
        "inference_library": "pyrovi",
        "inference_library_version": version("pyrovi"),
        "inference": "svi",
        "guide": type(getattr(model.module.guide, "__self__", model.module.guide)).__name__,
        "model": type(model).__name__,
        "seed": settings.seed if seed is None else seed,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "note": "independent draws of a fitted guide: ess and mcse do not measure its error",
    }
