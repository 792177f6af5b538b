"""Export to ArviZ. A function of a model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import ModelError
from pyrovi.model import arviz_data, arviz_groups, arviz_stats
from pyrovi.model.arviz_attributes import attributes
from pyrovi.model.arviz_request import Request
from pyrovi.model.draws import resolve_num_samples
from pyrovi.model.posteriors import has_stored_locals, stored_rows
from pyrovi.module.ledger import Role
from pyrovi.posterior.alignment import Symmetry
from pyrovi.posterior.arviz import to_container

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.model.base import BaseModelClass

logger = logging.getLogger("pyrovi")

GROUPS = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "log_prior",
    "sample_stats",
    "unconstrained_posterior",
    "vi_diagnostics",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
)
"""All groups that can be asked for, by the names of ArviZ's schema."""


MAX_OBSERVED = 1_000_000
"""Most values of observed sites that are exported without being asked for."""

MAX_LIKELIHOOD = 2_000_000
"""Most values of a log-likelihood that is exported without being asked for."""


def to_arviz(
    model: BaseModelClass,
    sites: str | Sequence[str] | None = None,
    *,
    num_samples: int | None = None,
    num_inner: int = 100,
    align: Mapping[str, Symmetry] | None = None,
    adata: Any = None,
    indices: Any = None,
    groups: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> Any:
    """Posterior draws as ``arviz.InferenceData`` (ArviZ 0.x) or ``xarray.DataTree`` (1.x).

    Parameters
    ----------
    sites
        Latent or deterministic sites of the posterior and prior groups. ``None``: all latent sites,
        and in the posterior the deterministic ones that belong to no observation (and are no
        function of a minibatch). Left out are those of one value per observation, and deterministic
        ones, whose draws would be more than 10 million numbers (chains x draws x size); name these
        to have them.
    num_samples
        Draws of each chain; ``None``: all that are stored, or 250 of a guide. The chains are those
        of MCMC, or the restarts of SVI.
    num_inner
        Draws of the local latents by which ``log_likelihood`` and its kin integrate them out.
    align
        Dimension -> ``"rotation"``, ``"permutation"`` or ``"sign"``: what the model cannot tell of
        its factors. The draws of the posterior group are turned to match over draws and chains, as
        in :meth:`summary`.
    adata, indices, batch_size, seed
        As in :meth:`sample_posterior`. Where the draws are of the latents of certain observations
        (MCMC with ``indices=``), ``None`` takes those.
    groups
        Groups to fill. ``None``: ``posterior`` and ``constant_data``, ``observed_data`` of up to a
        million numbers, and ``log_likelihood`` (for ``az.loo``) where it takes no integral over
        latents and is small. ``sample_stats`` comes with the posterior of MCMC without being asked
        for. ``"all"``: every group that is defined for this model; those that are not are named in
        the log, with the reason.

        ``posterior``
            Draws of the sites.
        ``unconstrained_posterior``
            Unconstrained coordinates of the same draws, not aligned.
        ``posterior_predictive``, ``prior_predictive``
            Draws of the observed sites.
        ``prior``
            Draws of the sites from the prior; one chain.
        ``observed_data``
            The values of the observed sites, dense: refused above 20 million numbers.
        ``constant_data``
            The other registered fields, of observations and variables.
        ``log_likelihood``
            Of each observation given the globals, with local latents integrated out (attributes
            ``kind="iw-marginal"`` and ``num_inner``; without local latents ``kind="plain"``). Where
            the model has trained parameters, ``az.loo`` of it is in-sample, and the attribute
            ``in_sample`` says so.
        ``log_prior``
            Of each top-level global site, and of ``pyro.factor`` outside the observation plate.
        ``sample_stats``
            Of MCMC ``diverging``, ``energy``, ``lp``, ``step_size``, ``tree_depth``, ``n_steps``
            and ``acceptance_rate``; of a guide ``elbo``, and if all latents are global ``lp``,
            ``log_q`` and ``log_weight``.
        ``vi_diagnostics``
            Of each chain of a guide: ELBO, history, Pareto shapes.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        Dimensions and coordinates carry the data's own names. Container and groups have attributes
        that say which model, inference, seed and data they are of.

    Raises
    ------
    ModelError
        If a group or site is unknown, a group is not defined for this model, the draws would be too
        large, or dimensions cannot be told apart.
    DataError
        If the names of the data are not unique.

    Notes
    -----
    Draws from a fitted guide are independent, so their effective sample size is their number and
    the Monte-Carlo error says nothing about the error of the approximation. R-hat needs several
    fits (``train(n_restarts=4)``).
    """
    every = isinstance(groups, str) and groups == "all"
    asked = GROUPS if every else groups
    request = _request(model, adata, indices, num_samples, num_inner, batch_size, seed)
    groups = _default_groups(request) if asked is None else _check_groups(asked)
    if align and "posterior" not in groups:
        raise ModelError("align= turns the posterior group, which groups= does not name; add it.")
    needs_sites = {"posterior", "unconstrained_posterior", "prior"} & set(groups)
    names, left_out = request.sites(sites) if needs_sites else ([], [])
    computed: list[str] = []
    if sites is None and "posterior" in groups:
        computed, too_large = arviz_groups.global_deterministics(request)
        left_out = [*left_out, *too_large]
    if left_out:
        logger.info("to_arviz: %s left out as too large; name it to have it.", ", ".join(left_out))
    raw = functools.cache(lambda: arviz_groups.posterior(request, names, computed))

    def posterior() -> xr.Dataset:
        draws = arviz_groups.turned(raw(), align or {})
        return draws.assign_attrs(left_out=", ".join(left_out)) if left_out else draws

    makers: dict[str, Callable[[], xr.Dataset]] = {
        "posterior": posterior,
        "posterior_predictive": lambda: arviz_groups.posterior_predictive(request),
        "log_likelihood": lambda: arviz_groups.log_likelihood(request),
        "log_prior": lambda: arviz_groups.log_prior(request),
        "sample_stats": lambda: arviz_stats.sample_stats(request),
        "unconstrained_posterior": lambda: arviz_groups.unconstrained_posterior(
            request, raw(), names
        ),
        "vi_diagnostics": lambda: arviz_stats.vi_diagnostics(request),
        "prior": lambda: arviz_groups.prior(request, names),
        "prior_predictive": lambda: arviz_groups.prior(request, model.sites.names(Role.OBSERVED)),
        "observed_data": lambda: arviz_data.observed_data(request),
        "constant_data": lambda: arviz_data.constant_data(request),
    }
    if "posterior" in groups and arviz_stats.has_statistics(model) and "sample_stats" not in groups:
        groups = [*groups, "sample_stats"]
    made = {}
    for group in groups:
        try:
            made[group] = makers[group]()
        except ModelError as error:
            if not every:
                raise
            logger.info("to_arviz: no group %s: %s", group, error)
    return to_container(made, attributes(model, request.manager, seed))


def _default_groups(request: Request) -> list[str]:
    model = request.model
    groups = ["posterior", "constant_data"]
    if 0 < arviz_data.observed_elements(request) <= MAX_OBSERVED:
        groups.append("observed_data")
    roles = (Role.LOCAL, Role.ENUMERATED)
    sites = model.sites
    terms = [n for n in sites.names(Role.OBSERVED, Role.FACTOR) if sites[n].is_local]
    size = resolve_num_samples(model, request.num_samples) * int(model.summary_stats.n_obs)
    if sites.names(Role.GLOBAL) and terms and not sites.names(*roles) and size <= MAX_LIKELIHOOD:
        groups.append("log_likelihood")
    return groups


def _check_groups(groups: str | Sequence[str]) -> list[str]:
    asked = [groups] if isinstance(groups, str) else list(dict.fromkeys(groups))
    if unknown := [group for group in asked if group not in GROUPS]:
        known = ", ".join(GROUPS)
        raise ModelError(
            f"Unknown group {', '.join(map(repr, unknown))}; groups are: {known}, or 'all'."
        )
    if not asked:
        raise ModelError(f"groups is empty; name some of: {', '.join(GROUPS)}.")
    return asked


def _request(
    model: BaseModelClass,
    adata: Any,
    indices: Any,
    num_samples: int | None,
    num_inner: int,
    batch_size: int | None,
    seed: int | None,
) -> Request:
    manager = model.manager_of(adata)
    if indices is None and adata is None and has_stored_locals(model):
        indices = np.flatnonzero(stored_rows(model, manager) >= 0)
    return Request(
        model=model,
        manager=manager,
        own_data=manager is model._adata_manager,
        positions=resolve_indices(indices, manager.n_obs),
        num_samples=num_samples,
        num_inner=num_inner,
        batch_size=batch_size,
        seed=seed,
    )
