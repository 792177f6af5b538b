"""Groups of an export to ArviZ that are made of draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._rng import stream
from pyrovi.errors import ModelError
from pyrovi.model.arviz_request import MAX_LOCAL_ELEMENTS, Request
from pyrovi.model.chains import in_chain, num_chains
from pyrovi.model.draws import example_on_device, resolve_num_samples
from pyrovi.model.log_prior import log_prior as query_log_prior
from pyrovi.model.marginal import marginal_log_likelihood
from pyrovi.model.summary import aligned
from pyrovi.module.ledger import Role, Site
from pyrovi.posterior.alignment import Symmetry
from pyrovi.posterior.arviz import with_chain
from pyrovi.posterior.coordinates import unconstrained, unconstrained_dims
from pyrovi.posterior.labels import label
from pyrovi.posterior.point_estimates import model_parameters
from pyrovi.posterior.prior_density import top_level_priors
from pyrovi.posterior.unconstrained import refuse_sites

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.model.base import BaseModelClass


def posterior(request: Request, sites: Sequence[str], computed: Sequence[str] = ()) -> xr.Dataset:
    """Joint draws of sites, chain by chain.

    Parameters
    ----------
    request
        The draws.
    sites
        Sites of all observations.
    computed
        Deterministic sites that no observation has a part in: one is enough to run the story.
    """
    model = request.model
    few = request.options | {"indices": request.positions[:1]}

    def query(seed: int | None) -> xr.Dataset:
        draws = model.sample_posterior(sites, **request.options, seed=seed)
        if not computed:
            return draws
        return draws.assign(model.sample_posterior(computed, **few, seed=seed).data_vars)

    return request.by_chain(query)


def global_deterministics(request: Request) -> tuple[list[str], list[str]]:
    """Deterministic sites outside of the observation plate, and those that are too large.

    Functions of the minibatch, which have another value in another one, are none of them.
    """
    model, sites = request.model, request.model.sites
    names = [name for name in sites.names(Role.DETERMINISTIC) if not sites[name].is_local]
    if not names or not len(request.positions):
        return [], []
    with in_chain(model, 0):
        draws = num_chains(model) * resolve_num_samples(model, request.num_samples)
        one, two = (
            model.sample_posterior(
                names,
                **request.options | {"indices": request.positions[at], "num_samples": 1},
                seed=0,
            )
            for at in ([0], [-1, 0])
        )
    same = [
        name
        for name in names
        if one[name].shape == two[name].shape
        and np.allclose(one[name], two[name], rtol=1e-4, equal_nan=True)
    ]
    large = [name for name in same if draws * one[name].size > MAX_LOCAL_ELEMENTS]
    return [name for name in same if name not in large], large


def posterior_predictive(request: Request) -> xr.Dataset:
    """Draws of the observed sites from the posterior predictive distribution, chain by chain."""
    model = request.model
    return request.by_chain(lambda seed: model.posterior_predictive(**request.options, seed=seed))


def turned(draws: xr.Dataset, align: Mapping[str, Symmetry]) -> xr.Dataset:
    """Draws whose factors match over draws and chains; in the attributes, by what they did."""
    if not align:
        return draws
    types = {name: array.dtype for name, array in draws.data_vars.items()}
    draws = draws.transpose("chain", "draw", ...)
    for dim, symmetry in align.items():
        draws = aligned(draws, dim, symmetry)
    said = ", ".join(f"{dim}: {symmetry}" for dim, symmetry in align.items())
    same = {name: array.astype(types[name]) for name, array in draws.data_vars.items()}
    return draws.assign(same).assign_attrs(aligned=said)


def unconstrained_posterior(
    request: Request, draws: xr.Dataset, sites: Sequence[str]
) -> xr.Dataset:
    """Unconstrained coordinates of the draws of the latent sites.

    Dimensions keep their names, except for the event dimensions of supports whose coordinates have
    another shape (simplices, Cholesky factors).

    Raises
    ------
    ModelError
        If a latent site is discrete, or its support varies.
    """
    model = request.model
    latent = model.sites.names(Role.GLOBAL, Role.LOCAL)
    names = [name for name in sites if name in latent]
    if not names:
        raise ModelError(
            "unconstrained_posterior is of continuous latent sites, and none is exported (sites: "
            f"{', '.join(sites) or 'none'}). Name one of: {', '.join(latent) or 'none'}."
        )
    refuse_sites(model.module)
    arrays: dict[str, np.ndarray] = {}
    described: dict[str, Site] = {}
    for name in names:
        site = model.sites[name]
        u, _ = unconstrained(site, full_shape(draws[name], site), 2, model.device)
        arrays[name] = u.astype(draws[name].dtype)
        dims = unconstrained_dims(site, u.shape[2:])
        described[name] = Site(name, site.role, site.plates, tuple(u.shape[2:]), dims, 0)
    return label(
        arrays,
        described,
        model.coords(request.manager, request.positions),
        leading={"chain": draws["chain"].to_numpy(), "draw": draws["draw"].to_numpy()},
    )


def full_shape(drawn: xr.DataArray, site: Site) -> np.ndarray:
    """Draws with the site's broadcast dimensions of size one, which labelled results leave out."""
    leading = [dim for dim in drawn.dims if dim in ("chain", "draw")]
    values = drawn.to_numpy()
    missing = [len(leading) + i for i, dim in enumerate(site.dims) if dim is None]
    return np.expand_dims(values, missing)


def log_likelihood(request: Request) -> xr.Dataset:
    """Pointwise log-likelihood given the globals, local latents integrated out.

    Models without local latents have the one of each observed site; with them it is of all observed
    sites of an observation together: of the site's name if there is one, else ``marginal``. The
    attribute ``in_sample`` names trained parameters of the model, if there are any: they have seen
    every observation, and ``az.loo`` cannot take that back.
    """
    model = request.model
    attrs: dict[str, Any] = {}
    with stream("points", seed=request.seed):
        trained = model_parameters(model.module, example_on_device(model, request.manager))
    if trained:
        attrs["in_sample"] = (
            f"trained parameters ({', '.join(trained[:3])}{', ...' if len(trained) > 3 else ''}) "
            "have seen every observation: az.loo of this is too optimistic; see "
            "pyrovi.criticism.held_out"
        )
    if not model.sites.names(Role.LOCAL):
        made = request.by_chain(lambda seed: model.log_likelihood(**request.options, seed=seed))
        return made.assign_attrs(kind="plain", **attrs)
    name = marginal_name(model)

    def query(seed: int | None) -> xr.Dataset:
        found = marginal_log_likelihood(
            model, num_inner=request.num_inner, **request.options, seed=seed
        )
        return found["log_likelihood"].drop_attrs().to_dataset(name=name)

    attrs |= {"kind": "iw-marginal", "num_inner": request.num_inner}
    return request.by_chain(query).assign_attrs(attrs)


def marginal_name(model: BaseModelClass) -> str:
    """Name of the log-likelihood of all observed sites of an observation."""
    observed = [n for n in model.sites.names(Role.OBSERVED) if model.sites[n].is_local]
    factors = [n for n in model.sites.names(Role.FACTOR) if model.sites[n].is_local]
    return observed[0] if len(observed) == 1 and not factors else "marginal"


def log_prior(request: Request) -> xr.Dataset:
    """Log prior density of each top-level global site: what ``az.psense`` scales.

    The prior of a group effect given its scale is none of them: scaling it would ask how strong the
    pooling is. :meth:`log_prior` of the model has those too.
    """
    model, manager = request.model, request.manager
    top = top_level_priors(model.module, example_on_device(model, manager))
    made = request.by_chain(
        lambda seed: query_log_prior(
            model, top or None, num_samples=request.num_samples, adata=manager, seed=seed
        )
    )
    return made.assign_attrs(kind="top-level priors")


def prior(request: Request, sites: Sequence[str]) -> xr.Dataset:
    """Draws of sites from the prior (predictive) distribution: one chain."""
    options: dict[str, Any] = request.options | {"num_samples": request.num_prior_samples}
    return with_chain(request.model.sample_prior(sites, **options, seed=request.seed))
