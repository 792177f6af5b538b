"""Groups of an export to ArviZ that say how the fit went: of each draw, and of each chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovi._rng import stream
from pyrovi.errors import ModelError
from pyrovi.model.arviz_request import Request
from pyrovi.model.chains import in_chain, num_chains
from pyrovi.model.draws import example_on_device, resolve_num_samples
from pyrovi.model.elbo_estimate import estimate_elbo
from pyrovi.model.local_fit import local_fit
from pyrovi.model.methods import all_at_once
from pyrovi.module.base import evaluation_mode
from pyrovi.module.ledger import Role
from pyrovi.module.plates import OBS_PLATE
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.engine import draws_at_once
from pyrovi.posterior.globals import global_chunks
from pyrovi.posterior.guide_density import LOG_Q, guide_density_story
from pyrovi.posterior.pareto import psis
from pyrovi.posterior.point_estimates import point_sites
from pyrovi.posterior.potential import Potential
from pyrovi.posterior.vectorise import map_draws

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.model.base import BaseModelClass

Columns = dict[str, NDArray[np.float64]]

_LOSSES = {"elbo_train": "loss_train", "elbo_validation": "loss_validation"}
"""Metric of the history -> what it is called in the export: it is a loss, lower is better."""


def has_statistics(model: BaseModelClass) -> bool:
    """Whether statistics were stored with the draws."""
    posterior = model.module.posterior
    return isinstance(posterior, StoredDraws) and bool(posterior.statistic_names)


def sample_stats(request: Request) -> xr.Dataset:
    """Statistics of every draw that the posterior group has.

    Of stored draws those that the method recorded. Of a guide (or of Laplace's approximation), for
    the data that it was fitted to:

    - ``elbo``: the draw's value of the ELBO (its mean is the bound); KL terms in closed form where
      training takes them so;
    - ``lp``: log joint density in unconstrained coordinates, if all latents are continuous and
      global (as what NUTS records under this name);
    - ``log_q``: log density of the guide in the same coordinates, and ``log_weight``, ``lp`` less
      ``log_q``, if no site is a point estimate.

    Raises
    ------
    ModelError
        If the draws are stored without statistics, or the queried data are others than the model's.
    """
    import xarray as xr

    model = request.model
    posterior = model.module.posterior
    if isinstance(posterior, StoredDraws):
        return _stored_statistics(posterior, request.num_samples)
    _refuse_other_data(request, "sample_stats")
    chains = []
    for chain in range(num_chains(model)):
        with in_chain(model, chain):
            chains.append(_guide_statistics(request, request.seed_of(chain)))
    columns = {name: np.stack([found[name] for found in chains]) for name in chains[0]}
    shape = next(iter(columns.values())).shape
    return xr.Dataset(
        {name: (("chain", "draw"), values) for name, values in columns.items()},
        coords={"chain": np.arange(shape[0]), "draw": np.arange(shape[1])},
    )


def _stored_statistics(posterior: StoredDraws, num_samples: int | None) -> xr.Dataset:
    import xarray as xr

    if not posterior.statistic_names:
        raise ModelError(
            "These stored draws came without statistics, so there is no sample_stats group. Leave "
            "it out, or train(method='nuts')."
        )
    with posterior.only_chain(0):
        chosen = posterior.choose(num_samples).cpu()
    columns = {name: value.cpu()[:, chosen] for name, value in posterior.statistics.items()}
    return xr.Dataset(
        {name: (("chain", "draw"), value.numpy()) for name, value in columns.items()},
        coords={"chain": np.arange(posterior.num_chains), "draw": np.arange(len(chosen))},
    )


def _refuse_other_data(request: Request, group: str) -> None:
    if not request.own_data:
        raise ModelError(
            f"The group {group!r} describes the fit to the data that the model was trained on, and "
            "adata= gives others. Leave the group out, or leave adata= out."
        )


def _guide_statistics(request: Request, seed: int | None) -> Columns:
    """Of one fit, each of shape ``(S,)``."""
    model = request.model
    count = resolve_num_samples(model, request.num_samples)
    bound = estimate_elbo(
        model,
        indices=model.train_indices,
        num_samples=count,
        batch_size=request.batch_size,
        seed=seed,
    )
    return {"elbo": bound.draws * model.n_obs_training, **log_densities(model, count, seed)}


def log_densities(model: BaseModelClass, num_samples: int, seed: int | None = None) -> Columns:
    """Log densities of joint draws of the globals under model and guide, where they are defined.

    Parameters
    ----------
    model
        The model, with a guide or a normal approximation.
    num_samples
        Number of draws ``S``; they are those of :meth:`sample_posterior`.
    seed
        Root seed.

    Returns
    -------
    dict
        ``lp``, ``log_q`` and ``log_weight`` of shape ``(S,)``, in unconstrained coordinates. Empty
        for a model that has local latents (whose joint weights say nothing at the scale of many
        observations) or latents without unconstrained coordinates; ``lp`` alone where the guide
        gives single values.
    """
    sites, module = model.sites, model.module
    names = sites.names(Role.GLOBAL)
    if sites.names(Role.LOCAL) or not names or not all(_is_plain(sites[n]) for n in names):
        return {}
    _, minibatch = all_at_once(model, model.train_indices)
    potential = Potential(module, minibatch)
    example = example_on_device(model, None)
    chunks = list(
        global_chunks(module, guide_density_story(module, example), num_samples, seed=seed)
    )
    values = {name: torch.cat([chunk[name] for chunk in chunks]) for name in (*names, LOG_Q)}
    log_q = values.pop(LOG_Q)
    u = potential.unconstrain(values)

    def story(point: dict[str, Tensor]) -> dict[str, Tensor]:
        volume = log_q.new_zeros(())
        for name, transform in potential.transforms.items():
            one = point[name]
            volume = volume + transform.log_abs_det_jacobian(one, transform(one)).sum()
        return {"lp": -potential(point), "volume": volume}

    chunk = draws_at_once(module, minibatch.n)
    with evaluation_mode(module), stream("densities", seed=seed):
        found = map_draws(story, u, num_samples, chunk, module)
        points = point_sites(module, example, Role.GLOBAL)
    lp = found["lp"].cpu().numpy()
    if points:
        return {"lp": lp}
    guided = (log_q + found["volume"]).cpu().numpy()
    return {"lp": lp, "log_q": guided, "log_weight": lp - guided}


def _is_plain(site: Any) -> bool:
    return not (site.is_discrete or site.support_varies)


def vi_diagnostics(request: Request) -> xr.Dataset:
    """How the approximation of each chain went (dimension ``chain``: the restarts).

    - ``elbo`` and ``elbo_mcse``: bound of all training data and its Monte-Carlo error, in nats;
    - ``loss_train``, ``loss_validation`` by ``epoch``: the history (the negative ELBO per
      observation; NaN after a fit that ended earlier);
    - ``khat``: Pareto shape of the joint weights, where ``sample_stats`` has them, or of
      Pathfinder's;
    - ``local_khat`` and ``local_ess`` of the queried observations, if local latents have a density.

    Raises
    ------
    ModelError
        After ``method="nuts"`` and ``"map"``, which approximate no posterior by a density, or if
        the queried data are others than the model's.
    """
    import xarray as xr

    model = request.model
    _refuse_other_data(request, "vi_diagnostics")
    posterior = model.module.posterior
    if isinstance(posterior, StoredDraws):
        if "khat" not in posterior.statistic_names:
            raise ModelError(
                "The group 'vi_diagnostics' is of approximations of a posterior by a density (SVI, "
                "Laplace, Pathfinder), and this posterior is none. For MCMC see the group "
                "'sample_stats' and criticism.diagnose(model)."
            )
        khat = posterior.statistics["khat"][:, 0].cpu().numpy()
        return xr.Dataset({"khat": ("chain", khat)}, coords={"chain": np.arange(len(khat))})
    chains = []
    for chain in range(num_chains(model)):
        with in_chain(model, chain):
            found = _diagnosed(request, request.seed_of(chain))
        chains.append(found.assign(_history(model, chain, posterior is None)))
    coords = xr.DataArray(np.arange(len(chains)), dims="chain", name="chain")
    return xr.concat(
        chains, dim=coords, data_vars="all", coords="minimal", compat="override", join="outer",
        combine_attrs="override",
    )  # fmt: skip


def _diagnosed(request: Request, seed: int | None) -> xr.Dataset:
    import xarray as xr

    model = request.model
    count = max(2, resolve_num_samples(model, request.num_samples))
    bound = estimate_elbo(
        model,
        indices=model.train_indices,
        num_samples=count,
        batch_size=request.batch_size,
        seed=seed,
    )
    n = model.n_obs_training
    found: dict[str, Any] = {"elbo": bound.value * n, "elbo_mcse": bound.mcse * n}
    densities = log_densities(model, count, seed)
    if "log_weight" in densities:
        found["khat"] = float(psis(densities["log_weight"])[1])
    coords: Mapping[str, Any] = {}
    if _has_local_density(request):
        fit = local_fit(
            model,
            adata=request.manager,
            indices=request.positions,
            batch_size=request.batch_size,
            seed=seed,
        )
        found["local_khat"] = (OBS_PLATE, fit["khat"].to_numpy())
        found["local_ess"] = (OBS_PLATE, fit["ess"].to_numpy())
        coords = {OBS_PLATE: fit.index.to_numpy(dtype=object)}
    return xr.Dataset(found, coords=coords)


def _has_local_density(request: Request) -> bool:
    model = request.model
    if not model.sites.names(Role.LOCAL):
        return False
    with stream("points", seed=request.seed):
        example = example_on_device(model, request.manager)
        return not point_sites(model.module, example, Role.LOCAL)


def _history(model: BaseModelClass, chain: int, of_svi: bool) -> dict[str, Any]:
    import xarray as xr

    if not of_svi:
        return {}
    records = model._restart_records
    history = records[chain].history if records else model._history
    return {
        name: xr.DataArray(
            np.asarray(list(history[metric].values()), dtype=float),
            coords={"epoch": np.asarray(list(history[metric]))},
            dims="epoch",
        )
        for metric, name in _LOSSES.items()
        if history.get(metric)
    }
