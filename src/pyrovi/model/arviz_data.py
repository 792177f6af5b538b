"""Groups of an export to ArviZ that hold data: what was observed, and the covariates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovi._rng import stream
from pyrovi._settings import settings
from pyrovi.dataloaders.example import fixed_tensors
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.model.arviz_request import Request
from pyrovi.module.base import evaluation_mode
from pyrovi.module.ledger import Role, Site
from pyrovi.module.minified import is_minified, no_counts
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.labels import label
from pyrovi.posterior.stories import guide_trace, latent_values, model_trace

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.model.base import BaseModelClass

MAX_DATA_ELEMENTS = 20_000_000
"""Most numbers of a field or observed site that an export holds; 80 MB in single precision."""

_COLUMNS = "_column"


def observed_data(request: Request) -> xr.Dataset:
    """The values of the observed sites, dense, with the dimensions of their predictive draws.

    Raises
    ------
    ModelError
        If a site has more than :data:`MAX_DATA_ELEMENTS` numbers: counts that are sparse in the
        AnnData would become a dense array many times as large.
    """
    model = request.model
    sites = {name: model.sites[name] for name in model.sites.names(Role.OBSERVED)}
    for name, site in sites.items():
        elements = _elements(request, site)
        if elements > MAX_DATA_ELEMENTS:
            raise ModelError(
                f"observed_data would hold {name!r} as a dense array of {elements:.2g} numbers "
                f"({elements * 4 / 2**30:.1f} GiB); at most {MAX_DATA_ELEMENTS:.0e} are exported. "
                "Take some observations (indices=), or leave the group out: "
                "criticism.posterior_predictive_checks(model) compares statistics of data of any "
                "size, without holding them."
            )
    parts: dict[str, list[Tensor]] = {name: [] for name in sites}
    for _, values in _minibatches(request):
        for name, site in sites.items():
            if site.is_local or not parts[name]:
                parts[name].append(values[name].cpu())
    arrays = {
        name: found[0].numpy()
        if (axis := sites[name].obs_axis) is None
        else torch.cat(found, axis).numpy()
        for name, found in parts.items()
    }
    return label(arrays, sites, model.coords(request.manager, request.positions))


def observed_elements(request: Request) -> int:
    """Number of values of all observed sites."""
    sites = request.model.sites
    return sum(_elements(request, sites[name]) for name in sites.names(Role.OBSERVED))


def _elements(request: Request, site: Site) -> int:
    n = len(request.positions)
    return math.prod(n if size == OBS_PLATE else int(size) for size in site.shape)


def constant_data(request: Request) -> xr.Dataset:
    """The registered fields that no site observes: covariates of observations and variables.

    Fields of more than :data:`MAX_DATA_ELEMENTS` numbers are left out, and named in the attribute
    ``left_out``. Categorical covariates are the codes that the model sees.
    """
    model, manager = request.model, request.manager
    specs = {
        key: entry["tensor"]
        for key, entry in model.registry["field_registries"].items()
        if entry["tensor"] is not None and entry["tensor"]["axis"] in ("obs", "var")
    }
    observed = _observed_fields(request)
    n = len(request.positions)
    sizes = {
        key: math.prod(spec["shape"]) * (n if spec["axis"] == "obs" else 1)
        for key, spec in specs.items()
        if key not in observed
    }
    kept = [key for key, size in sizes.items() if size <= MAX_DATA_ELEMENTS]
    fixed = fixed_tensors(manager)
    arrays = {key: fixed[key].numpy() for key in kept if key in fixed}
    columns: dict[str, list[np.ndarray]] = {key: [] for key in kept if key not in fixed}
    if columns:
        for minibatch in _loader(request):
            for key, parts in columns.items():
                parts.append(minibatch[key].numpy())
    arrays |= {key: np.concatenate(parts) for key, parts in columns.items()}
    sites = {key: _covariate(key, specs[key]) for key in arrays}
    named = model.coords(manager, request.positions)
    left_out = [key for key in sizes if key not in kept]
    return label(
        {key: arrays[key] for key in sites},
        sites,
        lambda dim: named(dim.removesuffix(_COLUMNS)),
        attrs={"left_out": ", ".join(left_out)} if left_out else {},
    )


def _loader(request: Request) -> Any:
    _, _, make = request.model.loader(request.manager, request.positions)
    return make(request.batch_size or settings.batch_size)


def _minibatches(request: Request) -> Any:
    """Each minibatch with the values of the observed sites: what the story makes of the data."""
    model = request.model
    for minibatch in _loader(request):
        yield minibatch, observed_values(model, minibatch.to(model.device))


def observed_values(model: BaseModelClass, minibatch: Minibatch) -> dict[str, Tensor]:
    """Observed site -> value in a minibatch.

    Parameters
    ----------
    model
        The model.
    minibatch
        Real observations, on the model's device.
    """
    if is_minified(minibatch):
        raise no_counts("What has been observed")
    module = model.module
    with torch.no_grad(), evaluation_mode(module), stream("observed values"):
        latents = latent_values(guide_trace(module, minibatch, {}))
        nodes: Mapping[str, Any] = model_trace(module, minibatch, latents).nodes
    return {name: nodes[name]["value"] for name in model.sites.names(Role.OBSERVED)}


def _observed_fields(request: Request) -> set[str]:
    """Fields that observed sites take their values from, by name or as their values are equal."""
    model = request.model
    names = model.sites.names(Role.OBSERVED)
    fields = [key for key, e in model.registry["field_registries"].items() if e["tensor"]]
    found = {key for key in fields if key in names}
    if found >= set(names):
        return found
    candidates = {key for key in fields if key not in found}
    for minibatch, values in _minibatches(request):
        flat = [value.detach().cpu().reshape(-1).double() for value in values.values()]
        candidates = {
            key
            for key in candidates
            if key in minibatch
            and any(_equal(minibatch[key].reshape(-1).double(), value) for value in flat)
        }
    return found | candidates


def _equal(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.equal(one.nan_to_num(), two.nan_to_num())


def _covariate(key: str, spec: Mapping[str, Any]) -> Site:
    """A covariate as a site; a dimension of its columns cannot have its own name."""
    shape: Sequence[int] = spec["shape"]
    first = OBS_PLATE if spec["axis"] == "obs" else "var"
    own: tuple[int | str, ...] = (OBS_PLATE, *shape) if spec["axis"] == "obs" else tuple(shape)
    numbered = len(own) > 2
    columns = [
        None if size == 1 else f"{key}{_COLUMNS}{i if numbered else ''}"
        for i, size in enumerate(own[1:])
    ]
    return Site(key, Role.OBSERVED, (), own, (first, *columns), 0)
