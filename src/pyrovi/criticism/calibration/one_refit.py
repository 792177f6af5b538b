"""One simulation of calibration by refits: simulate, fit, draw, rank."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovi._rng import derive_seed, generator, root_seed, stream
from pyrovi._settings import settings
from pyrovi.criticism.calibration.simulator import ROUNDING, rank
from pyrovi.errors import DataError, InferenceError, ModelError, PyroviError
from pyrovi.model.chains import in_chain, num_chains
from pyrovi.model.draws import latent_sites
from pyrovi.model.refit import refit as fit_copy
from pyrovi.model.simulation import simulate
from pyrovi.model.truth import truth_of
from pyrovi.module.base import evaluation_mode
from pyrovi.module.plates import OBS_PLATE
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.convergence import ess_bulk, ess_tail
from pyrovi.posterior.density import global_nodes, log_density, observation_density
from pyrovi.posterior.engine import draws_at_once
from pyrovi.posterior.scalars import scalar_columns
from pyrovi.posterior.stories import model_trace
from pyrovi.posterior.vectorise import DrawMapper

if TYPE_CHECKING:
    import xarray as xr

    from pyrovi.model.base import BaseModelClass

LIKELIHOOD, JOINT = "log p(x | latents)", "log p(x, latents)"
"""Test quantities that depend on the data."""

_FINDINGS = (InferenceError, DataError)
"""Errors of the package that depend on the data: of the inference, or of draws that underflow."""


@dataclass(frozen=True)
class Refit:
    """What every simulation of a run has in common.

    Attributes
    ----------
    model
        The model that is simulated from and copied.
    sites
        Sites whose scalars are ranked.
    observations
        Positions of the observations whose local latents are ranked.
    num_draws
        Number of draws that the truth is ranked among.
    train_kwargs
        Arguments of ``train``.
    seed
        Root seed of the run.
    """

    model: BaseModelClass
    sites: list[str]
    observations: tuple[int, ...]
    num_draws: int
    train_kwargs: Mapping[str, Any]
    seed: int


def run_refit(refit: Refit, simulation: int, deadline: float | None = None) -> dict | None:
    """Run one simulation.

    Parameters
    ----------
    refit
        The run.
    simulation
        Its number, which decides its random numbers.
    deadline
        Time (seconds since the epoch) from which on it is not begun.

    Returns
    -------
    dict or None
        ``simulation``, ``seconds``, and ``ranks`` with ``ess``, or the ``error`` that the
        inference raised on these data; ``None`` after the deadline.

    Raises
    ------
    PyroviError
        If the options or the model are wrong, which is no matter of the data.
    """
    started = time.time()
    if deadline is not None and started >= deadline:
        return None
    own = derive_seed("sbc", simulation, seed=refit.seed)
    record: dict[str, Any] = {"simulation": simulation}
    with root_seed(own), _no_progress_bar():
        data = simulate(refit.model, own)
        try:
            fit = fit_copy(refit.model, data, refit.train_kwargs, own)
            record |= _judge(refit, fit, truth_of(data))
        except (ValueError, RuntimeError, ArithmeticError) as error:
            # what an inference raises on some data is a finding about it, and part of the result;
            # what is wrong with the options or the model is wrong for all data
            if isinstance(error, PyroviError) and not isinstance(error, _FINDINGS):
                raise
            record["error"] = f"{type(error).__name__}: {error}"
    record["seconds"] = round(time.time() - started, 3)
    return record


def _judge(refit: Refit, fit: BaseModelClass, truth: xr.Dataset) -> dict[str, Any]:
    latents = latent_sites(fit)
    names = list(dict.fromkeys([*latents, *refit.sites]))
    chains = _draws_by_chain(fit, names, refit.num_draws)
    independent = not isinstance(fit.module.posterior, StoredDraws)
    ess = float(refit.num_draws) if independent else _smallest_ess(_judged(chains, refit))
    flat = chains.stack(all_draws=("chain", "draw")).drop_vars(["chain", "draw", "all_draws"])
    total = flat.sizes["all_draws"]
    if total < refit.num_draws:
        raise ModelError(
            f"The fit has {total} draws, fewer than num_draws={refit.num_draws} that the truth is "
            "ranked among. Ask train_kwargs for more, or lower num_draws."
        )
    kept = np.linspace(0, total - 1, refit.num_draws).round().astype(int)
    draws = flat.isel(all_draws=kept).rename(all_draws="draw").transpose("draw", ...)
    true = truth[names].expand_dims("draw")
    true = true.assign_coords({d: draws[d] for d in true.dims if d in draws.coords and d != "draw"})

    columns, values = scalar_columns(_judged(draws, refit))
    _, of_truth = scalar_columns(_judged(true, refit))
    rng = generator("sbc", "ties")
    ranks = rank(torch.as_tensor(of_truth), torch.as_tensor(values)[None], rng)[0]
    found = dict(zip(columns, map(int, ranks), strict=True))
    at_truth = _densities(fit, true[latents], 1)
    for name, at_draws in _densities(fit, draws[latents], len(kept)).items():
        found[name] = int(rank(at_truth[name], at_draws[None], rng, ROUNDING)[0])
    return {"ranks": found, "ess": round(ess, 1)}


def _draws_by_chain(fit: BaseModelClass, names: list[str], num_draws: int) -> xr.Dataset:
    """Draws with the dimensions ``chain`` and ``draw``: of a guide or normal independent ones."""
    import xarray as xr

    if not isinstance(fit.module.posterior, StoredDraws):
        return fit.sample_posterior(names, num_samples=num_draws).expand_dims("chain")
    chains = []
    for chain in range(num_chains(fit)):
        with in_chain(fit, chain):
            chains.append(fit.sample_posterior(names, num_samples=None))
    return xr.concat(chains, dim="chain")


def _judged(draws: xr.Dataset, refit: Refit) -> xr.Dataset:
    kept = draws[refit.sites]
    if OBS_PLATE in kept.dims:
        kept = kept.isel({OBS_PLATE: list(refit.observations)})
    return kept


def _smallest_ess(draws: xr.Dataset) -> float:
    _, values = scalar_columns(draws, ("chain", "draw"))
    varying = values[..., np.ptp(values, axis=(0, 1)) > 0]
    if not varying.shape[-1] or values.shape[1] < 4:
        return float(values.shape[0] * values.shape[1])
    return float(min(ess_bulk(varying).min(), ess_tail(varying).min()))


def _densities(fit: BaseModelClass, latents: xr.Dataset, num_draws: int) -> dict[str, Tensor]:
    """Log-likelihood and log joint density of the training data, each of shape ``(S,)``."""
    module = fit.module
    trained = fit.train_indices
    rows = np.arange(fit.adata_manager.n_obs) if trained is None else np.sort(trained)
    _, _, loader = fit.loader(None, rows)
    minibatch = next(iter(loader(len(rows)))).to(fit.device)
    values = {}
    for name, array in latents.data_vars.items():
        site = fit.sites[str(name)]
        if site.is_local:
            array = array.isel({OBS_PLATE: rows})
        shape = [len(rows) if n == OBS_PLATE else int(n) for n in site.shape]
        values[str(name)] = torch.as_tensor(
            np.ascontiguousarray(array.to_numpy()), device=fit.device
        ).reshape(num_draws, *shape)

    def story(given: dict[str, Tensor]) -> dict[str, Tensor]:
        trace = model_trace(module, minibatch, given)
        likelihood, prior = (
            observation_density(trace, minibatch, observed=observed).double().sum()
            + sum(log_density(n).double().sum() for _, n in global_nodes(trace, observed=observed))
            for observed in (True, False)
        )
        return {LIKELIHOOD: likelihood, JOINT: likelihood + prior}

    chunk = draws_at_once(module, minibatch.n)
    with evaluation_mode(module), stream("densities"):
        return DrawMapper(module)(story, values, num_draws, chunk)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    before = settings.enable_progress_bar
    settings.enable_progress_bar = False
    try:
        yield
    finally:
        settings.enable_progress_bar = before
