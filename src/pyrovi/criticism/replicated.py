"""Replicated and observed data of a site, one minibatch after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyrovi._settings import settings
from pyrovi.errors import ModelError
from pyrovi.model.draws import example_on_device, warn_if_untrained
from pyrovi.module.ledger import Role
from pyrovi.module.minified import is_minified, no_counts
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.engine import stream_query
from pyrovi.posterior.globals import draw_globals
from pyrovi.posterior.replication import Replication

if TYPE_CHECKING:
    import numpy as np

    from pyrovi.data import AnnDataManager
    from pyrovi.dataloaders.minibatch import Minibatch
    from pyrovi.model.base import BaseModelClass
    from pyrovi.module.ledger import Site


def stream_replicated(
    model: BaseModelClass,
    site: Site,
    num_samples: int,
    *,
    prior: bool = False,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> tuple[AnnDataManager, np.ndarray, Iterator[tuple[Minibatch, Tensor, Tensor]]]:
    """Replicated and observed values of one minibatch after the other.

    Parameters
    ----------
    model, num_samples, prior, adata, indices, batch_size, seed
        As in :func:`~pyrovi.criticism.posterior_predictive_checks`.
    site
        The observed site.

    Returns
    -------
    tuple
        The manager of the data, the positions of the observations, and an iterator over the
        minibatch, the replicated values ``(S, n, d)`` and the observed ones ``(1, n, d)``.
    """
    if num_samples < 1:
        raise ModelError(f"num_samples must be at least 1, got {num_samples}.")
    manager, positions, loader = model.loader(adata, indices)
    if not prior:
        warn_if_untrained(model)
    example = example_on_device(model, manager)
    globals_ = draw_globals(model.module, example, num_samples, seed, prior=prior)
    if is_minified(manager.data_registry):
        raise no_counts("A comparison with what has been observed")
    replication = Replication(model.module, [site.name], prior=prior)
    batches = stream_query(
        model.module,
        loader,
        replication,
        globals_,
        {site.name: site},
        num_draws=num_samples,
        batch_size=batch_size or settings.batch_size,
        seed=seed,
    )

    def values() -> Iterator[tuple[Minibatch, Tensor, Tensor]]:
        for minibatch, draws in batches:
            observed = replication.observed[site.name].detach()[None]
            yield minibatch, _table(draws[site.name], site), _table(observed, site)

    return manager, positions, values()


def observed_site(model: BaseModelClass, name: str | None) -> Site:
    """The site to check; :class:`ModelError` if it is not a table with one row per observation."""
    observed = model.sites.names(Role.OBSERVED)
    factors = model.sites.names(Role.FACTOR)
    if name in factors or (name is None and not observed and factors):
        raise ModelError(
            f"The data enter by pyro.factor ({', '.join(map(repr, factors))}), which adds a number "
            "to the log density: it has no predictive distribution, so nothing can be compared "
            "with the data. Observe them instead, by pyro.sample(..., obs=...) with a distribution "
            "that has that density and can be drawn from."
        )
    if name is None and not observed:
        raise ModelError("The model has no observed site, so there are no data to compare with.")
    if name is None and len(observed) != 1:
        raise ModelError(
            f"The model has {len(observed)} observed sites ({', '.join(observed)}); name the one "
            "to check: site=..."
        )
    name = observed[0] if name is None else name
    if name not in observed:
        raise ModelError(
            f"{name!r} is not an observed site; observed are: {', '.join(observed) or 'none'}."
        )
    site = model.sites[name]
    if not site.is_local or site.dims[0] != OBS_PLATE or len(site.dims) > 2:
        raise ModelError(
            f"{name!r} has dimensions {site.dims}; predictive checks need one value, or one row of "
            f"values, per observation: ({OBS_PLATE!r}, ...)."
        )
    return site


def _table(values: Tensor, site: Site) -> Tensor:
    """Draws as ``(S, n, d)``."""
    return values[..., None] if len(site.dims) == 1 else values
