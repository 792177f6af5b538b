"""Simulation-based calibration of the amortised local posterior, without a single refit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi._rng import derive_seed, generator, stream
from pyrovi._settings import settings
from pyrovi.criticism.calibration.result import Calibration
from pyrovi.criticism.calibration.simulator import DENSITIES, ROUNDING, Simulator, rank
from pyrovi.dataloaders import AnnDataLoader
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import MissingKeyError, ModelError
from pyrovi.model.draws import warn_if_untrained
from pyrovi.module.base import evaluation_mode
from pyrovi.module.ledger import Role, Site
from pyrovi.posterior.labels import label
from pyrovi.posterior.scalars import scalar_columns

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass


def encoder_sbc(
    model: BaseModelClass,
    sites: str | Sequence[str] | None = None,
    *,
    num_simulations: int = 1000,
    num_draws: int = 99,
    strata: str | None = None,
    globals_: Mapping[str, Any] | None = None,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    probability: float = 0.95,
    seed: int | None = None,
) -> Calibration:
    r"""Simulation-based calibration of the amortised posterior of the local latents, in one pass.

    Each simulation takes the covariates of a real observation, drawn at random, and

    .. math:: g \sim q(g), \quad z \sim p(z \mid g), \quad x \sim p(x \mid z, g),

    and ranks :math:`z` among ``num_draws`` draws of :math:`q(z \mid x, g)`, for which the guide
    sees the simulated data. If the guide is the posterior of the model the ranks are uniform; no
    refits are needed, because an amortised guide is a function of the data. What is checked is the
    encoder on data that the model makes: whether the real data are like these is a matter of
    predictive checks.

    Parameters
    ----------
    model
        A fitted model whose guide computes the posterior of an observation from its data.
    sites
        Local sites, latent or deterministic; ``None`` for all latent ones.
    num_simulations
        Number of simulated observations.
    num_draws
        Number of draws that each is ranked among. 99 make 100 ranks.
    strata
        Column of ``obs``, whose groups are judged on their own too; a number with many values is
        cut into quarters.
    globals_
        Global site -> the value to simulate with; ``None`` draws them from the posterior, anew for
        each observation.
    adata, indices, batch_size, seed
        As in :meth:`~pyrovi.model.BaseModelClass.sample_posterior`: the observations whose
        covariates are used.
    probability
        Probability that a calibrated guide passes.

    Returns
    -------
    Calibration
        A column for each coordinate of each site, and two for the log-likelihood and the log joint
        density at the latents: such quantities reveal a guide that ignores the data, whose ranks
        of the latents alone are uniform if it returns the prior.

    Raises
    ------
    ModelError
        If the model has no local latents, if its local posterior is no function of the data, or if
        data cannot be simulated.

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari, Gelman: Validating Bayesian inference algorithms with
    simulation-based calibration. arXiv:1804.06788 (2018).

    Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman, Vehtari: Simulation-based calibration
    checking for Bayesian computation: the choice of test quantities shapes sensitivity. Bayesian
    Analysis 20, 461-488 (2025).
    """
    import pandas as pd

    if num_simulations < 2 or num_draws < 1:
        raise ModelError(
            f"encoder_sbc needs at least 2 simulations and 1 draw, got {num_simulations} and "
            f"{num_draws}; 1000 and 99 are usual."
        )
    names = _local_sites(model, sites)
    _refuse_unamortised(model)
    warn_if_untrained(model)
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    chosen = generator("encoder sbc", seed=seed).choice(positions, num_simulations)
    chosen.sort()  # neighbours are read together; the order means nothing
    simulator = Simulator(model, manager, names, num_draws)
    size = simulator.batch_size(batch_size or settings.batch_size)
    ranks: dict[str, list[NDArray[Any]]] = {}
    breaker = generator("encoder sbc", "ties", seed=seed)
    for position, batch in enumerate(
        AnnDataLoader(manager, chosen, batch_size=size, n_obs=model.n_obs_training)
    ):
        minibatch = batch.to(model.device)
        own = derive_seed("encoder sbc", position, seed=seed)
        with evaluation_mode(model.module), stream("simulations", seed=own):
            truth, draws = simulator(minibatch, globals_, own)
        for name, value in truth.items():
            tolerance = ROUNDING if name in DENSITIES else 0.0
            ranks.setdefault(name, []).append(rank(value, draws[name], breaker, tolerance))
    values = _label(model, names, ranks)
    groups = None if strata is None else _groups(manager.adata.obs, strata, chosen)
    what = "Calibration of the amortised posterior"
    return Calibration(what, pd.DataFrame(values), num_draws, groups, probability)


def _local_sites(model: BaseModelClass, sites: str | Sequence[str] | None) -> list[str]:
    latent = model.sites.names(Role.LOCAL, Role.ENUMERATED)
    latent = [name for name in latent if model.sites[name].is_local]
    if not latent:
        raise ModelError(
            "The model has no local latents, so there is no amortised posterior to calibrate; use "
            "sbc() for its global latents."
        )
    names = model.sites.resolve(sites) if sites is not None else latent
    for name in names:
        site = model.sites[name]
        if not site.is_local or not (site.is_latent or site.role is Role.DETERMINISTIC):
            raise ModelError(
                f"{name!r} is {site.role}{'' if site.is_local else ', not per observation'}; "
                f"encoder_sbc ranks local latent or deterministic sites, e.g. {latent[0]!r}."
            )
    return names


def _refuse_unamortised(model: BaseModelClass) -> None:
    module = model.module
    if module.posterior is None and not module.row_parameters:
        return
    found = (
        f"draws stored by another method ({type(module.posterior).__name__})"
        if module.posterior is not None
        else f"parameters of each observation ({', '.join(module.row_parameters[:3])})"
    )
    raise ModelError(
        f"The local posterior of this model is made of {found}: it is no function of the data, so "
        "new data have none without a refit. Use sbc(model, ...), which refits, or a guide with "
        "an encoder (guide='amortized')."
    )


def _label(
    model: BaseModelClass, names: list[str], ranks: Mapping[str, list[NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    joined = {name: np.concatenate(parts) for name, parts in ranks.items()}
    sites: dict[str, Site] = {name: model.sites[name] for name in names}
    arrays = {n: np.moveaxis(joined[n], 0, _position(site)) for n, site in sites.items()}
    named = model.coords(model.manager_of(None), np.zeros(0, dtype=np.int64))
    dataset = label(arrays, sites, lambda dim: None if dim == "obs" else named(dim))
    columns, values = scalar_columns(dataset, ("obs",))
    found = {name: values[:, k].astype(np.int64) for k, name in enumerate(columns)}
    return found | {name: joined[name] for name in DENSITIES}


def _position(site: Site) -> int:
    assert site.obs_axis is not None
    return site.obs_axis


def _groups(obs: pd.DataFrame, column: str, rows: NDArray[np.int64]) -> pd.Series:
    import pandas as pd

    if column not in obs:
        raise MissingKeyError(
            f"strata={column!r} is no column of obs; columns: {', '.join(map(str, obs.columns))}."
        )
    values = obs[column]
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > 10:
        values = pd.qcut(values, 4, duplicates="drop")
    return values.iloc[rows].astype(str).reset_index(drop=True).rename(column)
