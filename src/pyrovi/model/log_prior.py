"""Log prior density of joint posterior draws of the globals. A function of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyrovi._rng import stream
from pyrovi.errors import ModelError
from pyrovi.model.draws import example_on_device, posterior_globals, resolve_num_samples
from pyrovi.module.base import evaluation_mode
from pyrovi.module.ledger import Role
from pyrovi.posterior.engine import draws_at_once
from pyrovi.posterior.prior_density import prior_density_story
from pyrovi.posterior.prior_draws import prior_factors
from pyrovi.posterior.vectorise import DrawMapper

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.data import AnnDataManager
    from pyrovi.model.base import BaseModelClass


def log_prior(
    model: BaseModelClass,
    sites: str | Sequence[str] | None = None,
    *,
    num_samples: int | None = None,
    adata: Any = None,
    seed: int | None = None,
) -> xr.Dataset:
    """Log prior density of each global site under joint posterior draws.

    A ``pyro.factor`` term outside the observation plate is part of the prior, and has a variable of
    its own: with it the variables sum to the log prior, up to a constant. One inside the plate is
    part of the likelihood. (Where a story observes nothing, its factors are the likelihood.)

    Parameters
    ----------
    sites
        Global latent sites and factors of the prior; ``None`` for all.
    num_samples
        Number of draws, as in :meth:`sample_posterior`; they are its draws with the same seed.
    adata
        Data whose variables the story reads; ``None`` for the model's own.
    seed
        Root seed.

    Returns
    -------
    xarray.Dataset
        One variable per site with the dimension ``draw``: the sum over the elements of the site, in
        nats, of the density in the site's own (constrained) space, given its parents.

    Raises
    ------
    ModelError
        If a site is no global latent, or there is none.
    """
    import xarray as xr

    known = model.sites.names(Role.GLOBAL)
    if not known:
        raise ModelError(
            "The model has no global latent sites, so there is no prior of globals. Parameters "
            "that are trained (PyroParam, nn.Parameter) have none."
        )
    known = known + prior_factors(model.sites)
    names = known if sites is None else model.sites.resolve(sites)
    if wrong := [name for name in names if name not in known]:
        raise ModelError(
            f"{', '.join(map(repr, wrong))} is no global latent site; these are: "
            f"{', '.join(known)}."
        )
    num_samples = resolve_num_samples(model, num_samples)
    manager = model.manager_of(adata)
    globals_ = posterior_globals(model, num_samples, seed, manager)
    densities = global_densities(model, globals_, num_samples, manager, seed)
    return xr.Dataset({name: ("draw", densities[name].cpu().numpy()) for name in names})


def global_densities(
    model: BaseModelClass,
    globals_: Mapping[str, Tensor],
    num_samples: int,
    manager: AnnDataManager,
    seed: int | None = None,
) -> dict[str, Tensor]:
    """Densities of :func:`~pyrovi.posterior.prior_density.prior_density_story`, shape ``(S,)``.

    Parameters
    ----------
    model
        The model.
    globals_
        Joint draws: site -> tensor of shape ``(S, ...)``.
    num_samples
        Number of draws ``S``.
    manager
        Manager of the data.
    seed
        Root seed of the local draws, which the densities do not depend on.
    """
    example = example_on_device(model, manager)
    story = prior_density_story(model.module, example)
    chunk = draws_at_once(model.module, example.n)
    with evaluation_mode(model.module), stream("draws", "log prior", seed=seed):
        return DrawMapper(model.module)(story, globals_, num_samples, chunk)
