"""Posterior probabilities of discrete latents. Functions of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovi._rng import stream
from pyrovi._settings import settings
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.model.draws import example_on_device, posterior_globals, resolve_num_samples
from pyrovi.module.base import evaluation_mode
from pyrovi.module.ledger import Role, Site
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.discrete import DiscreteTable
from pyrovi.posterior.engine import run_query
from pyrovi.posterior.labels import Coords, label
from pyrovi.posterior.reduce import Reduction
from pyrovi.posterior.stories import guide_trace, latent_values
from pyrovi.posterior.vectorise import Story

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.model.base import BaseModelClass


_CATEGORY = "_category"


def discrete_marginals(
    model: BaseModelClass,
    sites: str | Sequence[str] | None = None,
    adata: Any = None,
    indices: Any = None,
    *,
    num_samples: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> xr.Dataset:
    r"""Posterior probabilities of the values of discrete local latents, for each observation.

    .. math:: p(k_n \mid x) \approx \frac1S \sum_s p(k_n \mid x_n, z_n^{(s)}, g^{(s)})

    over joint posterior draws of the continuous latents, given which the probabilities are exact:
    no discrete value is drawn.

    Parameters
    ----------
    sites
        Names of the sites; ``None`` for all discrete sites in the observation plate that are summed
        out in training.
    adata
        Data to query; ``None`` for the model's own.
    indices
        Observations (positions or a boolean mask); ``None`` for all.
    num_samples
        Number of draws ``S`` of the other latents; ``None`` for 250, or all stored draws.
    batch_size
        Largest number of observations at a time.
    seed
        Root seed; ``None`` for ``settings.seed``.

    Returns
    -------
    xarray.Dataset
        Site -> probabilities of shape ``(n, K)``, with the dimensions ``obs`` and
        ``<site>_category``, or the one that the model names by ``infer={"category_dim": ...}``. The
        categories are numbered in the order of the support, unless the site or the dimension is
        called like a categorical field of as many categories, whose names they take.

    Raises
    ------
    ModelError
        If a site is not summed out, there is none, or ``num_samples`` is not positive.
    """
    num_samples = resolve_num_samples(model, num_samples)
    names = _enumerated_sites(model, sites)
    manager, positions, loader = model.loader(adata, indices)
    coords = model.coords(manager, positions)
    result = _probability_sites(model, names, example_on_device(model, manager))

    def make_story(minibatch: Minibatch) -> Story:
        def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
            table = _table(model, minibatch, values)
            return {name: table.probabilities(name) for name in names}

        return story

    arrays = run_query(
        model.module,
        loader,
        make_story,
        posterior_globals(model, num_samples, seed, manager),
        result,
        n_obs=len(positions),
        num_draws=num_samples,
        batch_size=batch_size or settings.batch_size,
        reduction=Reduction("mean"),
        seed=seed,
    )
    return label(arrays, result, _category_names(coords, result))


def check_no_categories(model: BaseModelClass, sites: Iterable[Site]) -> None:
    """Refuse statistics of categories, whose codes stand for names.

    Parameters
    ----------
    model
        The model.
    sites
        What statistics are asked of.

    Raises
    ------
    ModelError
        Naming the sites of categories, and what to ask for instead.
    """
    if wrong := [site.name for site in sites if site.is_categorical]:
        raise ModelError(
            f"The values of {', '.join(map(repr, wrong))} are codes of categories: a mean, "
            "standard deviation or quantile of them tells nothing. Leave it out, and ask for "
            f"{' and '.join(dict.fromkeys(_instead(model, name) for name in wrong))}."
        )


def _instead(model: BaseModelClass, name: str) -> str:
    if name in _summed_out(model):
        return f"the probabilities of its values: discrete_marginals({name!r})"
    if model.sites[name].is_latent and hasattr(model, "predict"):
        return "the probabilities of its values: predict()"
    return "shares of its draws: reduce=lambda draws: (draws == code).mean(0)"


def _summed_out(model: BaseModelClass) -> list[str]:
    every = model.sites.names(Role.ENUMERATED)
    return [name for name in every if model.sites[name].plates == (OBS_PLATE,)]


def _enumerated_sites(model: BaseModelClass, sites: str | Sequence[str] | None) -> list[str]:
    available = _summed_out(model)
    names = available if sites is None else model.sites.resolve(sites)
    if wrong := [name for name in names if name not in available]:
        otherwise = "sample_posterior()"
        if hasattr(model, "predict"):
            otherwise += ", and predict(soft=True) has the probabilities of labels"
        raise ModelError(
            f"{', '.join(map(repr, wrong))} is no discrete latent with one value per observation "
            "that is summed out in training; those are: "
            f"{', '.join(available) or 'none'}. Draw other sites with {otherwise}."
        )
    if not names:
        raise ModelError(
            "The model has no discrete latent with one value per observation that is summed out in "
            'training. Such a site is marked by infer={"enumerate": "parallel"}.'
        )
    return names


def _table(model: BaseModelClass, minibatch: Minibatch, values: dict[str, Tensor]) -> DiscreteTable:
    latents = latent_values(guide_trace(model.module, minibatch, values))
    every = model.sites.names(Role.ENUMERATED)
    # a guide may draw a site that is summed out all the same
    continuous = {name: value for name, value in latents.items() if name not in every}
    return DiscreteTable(model.module, minibatch, continuous)


def _probability_sites(
    model: BaseModelClass, names: Sequence[str], example: Minibatch
) -> dict[str, Site]:
    with torch.no_grad(), evaluation_mode(model.module), stream("marginals"):
        table = _table(model, example, {})
        sizes = {name: table.probabilities(name).shape[-1] for name in names}
    made = {}
    for name, size in sizes.items():
        infer: Any = table.trace.nodes[name]["infer"]
        dims = (OBS_PLATE, infer.get("category_dim", f"{name}{_CATEGORY}"))
        made[name] = Site(name, Role.ENUMERATED, (OBS_PLATE,), (OBS_PLATE, size), dims, 1)
    return made


def _category_names(coords: Coords, sites: dict[str, Site]) -> Coords:
    """Coordinates in which the categories of a site have those of the field of its name."""
    sizes = {site.dims[-1]: site.shape[-1] for site in sites.values()}

    def named(dim: str) -> np.ndarray | None:
        known = coords(dim.removesuffix(_CATEGORY) if dim in sizes else dim)
        return None if dim in sizes and known is not None and len(known) != sizes[dim] else known

    return named
