"""``method="nuts"``: Markov chain Monte Carlo with several chains in processes of their own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrovi._parallel import run_in_processes
from pyrovi._rng import derive_seed, stream
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import InferenceError, TrainingError
from pyrovi.model.mcmc_checks import warn_of_problems
from pyrovi.model.mcmc_progress import ChainProgress
from pyrovi.model.methods import all_at_once, is_fitted_by_svi, make_potential, stored
from pyrovi.model.normals import trusted_normal
from pyrovi.model.paths import pathfinder_draws
from pyrovi.module.base import evaluation_mode
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.compiled import ValueAndGradient
from pyrovi.posterior.engine import draws_at_once
from pyrovi.posterior.nuts import STATISTICS, Chain, ChainSettings, run_chain
from pyrovi.posterior.potential import Potential
from pyrovi.posterior.stories import guide_trace, latent_values
from pyrovi.posterior.vectorise import map_draws

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

__all__ = ["fit_nuts"]

DENSE = 50
"""Largest dimension with a dense mass matrix unless told otherwise."""

FARTHEST = 100.0
"""Largest distance of a random start, in standard deviations of a reliable approximation."""

INITS = ("auto", "guide", "pathfinder", "random")


def fit_nuts(
    model: BaseModelClass,
    *,
    num_samples: int = 1000,
    num_warmup: int = 1000,
    num_chains: int = 4,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
    dense_mass: bool | None = None,
    init: str = "auto",
    precondition: bool = True,
    indices: Any = None,
    num_workers: int | None = None,
    enable_progress_bar: bool = True,
) -> tuple[StoredDraws, np.ndarray]:
    """Sample all latents, globals and locals, by the No-U-Turn sampler.

    Energies are computed in double precision; the draws are kept in the precision of the model,
    which the queries compute in. The same ``settings.seed`` gives the same draws, whatever the
    number of processes; every chain has random numbers of its own.

    Parameters
    ----------
    model
        The model. Its parameters are constants: what has no prior is not sampled.
    num_samples, num_warmup
        Draws of each chain to keep, and transitions before that, which adapt step size and mass
        matrix (by Stan's windows).
    num_chains
        Number of chains.
    target_accept
        Acceptance rate that the step size is adapted to. Higher ones mean smaller steps, which
        follow strong curvature with fewer divergences.
    max_tree_depth
        A trajectory has ``2 ** max_tree_depth`` steps at most.
    dense_mass
        Whether to adapt to correlations as well as to scales; ``None``: up to 50 dimensions.
    init
        Where chains start: ``"random"`` (uniform in (-2, 2) in unconstrained coordinates; drawn
        nearer if that is absurdly far out, 100 standard deviations of a reliable approximation),
        ``"guide"`` (draws of the guide), ``"pathfinder"`` (its draws), or ``"auto"``: the guide if
        it has been trained, else random.
    precondition
        Begin with a mass matrix that knows the posterior: of the draws of the guide or of
        Pathfinder, where chains start there; else, if it is dense, that of a normal approximation
        which importance weights find reliable. The warm-up adapts it further.
    indices
        Observations to use (positions or a boolean mask); ``None`` for all. Local latents of
        others have no draws then.
    num_workers
        Number of processes; ``None``: a chain on every core of the CPU.
    enable_progress_bar
        Show the progress of every chain.

    Returns
    -------
    tuple
        The draws with their statistics (``diverging``, ``energy``, ``lp``, ``step_size``,
        ``tree_depth``, ``n_steps``, ``acceptance_rate``), and the positions of the observations.

    Raises
    ------
    ModelError
        If a latent site is discrete and not enumerated, its support varies, or no initial point of
        finite density is found.
    TrainingError
        If an option is out of range.

    Warns
    -----
    UserWarning
        If there are divergences, chains that disagree, a low E-BFMI, or trajectories cut short.
    """
    _check(num_samples, num_warmup, num_chains, target_accept, max_tree_depth, init)
    positions, minibatch = all_at_once(model, indices)
    potential = make_potential(model, minibatch, "nuts")
    function = ValueAndGradient(potential)
    dense = potential.dim <= DENSE if dense_mass is None else dense_mass
    initial, inverse_mass = _start(
        model, potential, minibatch, function, init, num_chains, dense, precondition
    )
    settings_ = ChainSettings(num_warmup, num_samples, target_accept, max_tree_depth, inverse_mass)

    def one_chain(chain: int, report: Any) -> Chain:
        return run_chain(function, initial[chain], settings_, chain=chain, report=report)

    workers = min(num_chains, num_workers or os.cpu_count() or 1)
    with ChainProgress(num_chains, num_warmup, num_samples, enable_progress_bar) as progress:
        chains = run_in_processes(one_chain, range(num_chains), workers, on_message=progress.update)
    draws = np.stack([chain.draws for chain in chains])
    statistics = {name: np.stack([c.statistics[name] for c in chains]) for name in STATISTICS}
    warn_of_problems(potential, draws, statistics, max_tree_depth)
    for name in ("tree_depth", "n_steps"):
        statistics[name] = statistics[name].astype(np.int64)
    statistics["diverging"] = statistics["diverging"].astype(bool)
    return stored(model, potential, minibatch, draws, positions, statistics), positions


def _check(
    num_samples: int,
    num_warmup: int,
    num_chains: int,
    target_accept: float,
    max_tree_depth: int,
    init: str,
) -> None:
    for name, value, least in (
        ("num_samples", num_samples, 1),
        ("num_warmup", num_warmup, 1),
        ("num_chains", num_chains, 1),
        ("max_tree_depth", max_tree_depth, 1),
    ):
        if value < least:
            raise TrainingError(f"{name} must be at least {least}, got {value}.")
    if not 0 < target_accept < 1:
        raise TrainingError(f"target_accept must be between 0 and 1, got {target_accept}.")
    if init not in INITS:
        raise TrainingError(f"init must be one of {', '.join(map(repr, INITS))}, got {init!r}.")


def _start(
    model: BaseModelClass,
    potential: Potential,
    minibatch: Minibatch,
    function: ValueAndGradient,
    init: str,
    num_chains: int,
    dense: bool,
    precondition: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Initial positions ``(num_chains, dim)`` and the first inverse mass matrix."""
    dim = potential.dim
    unit = np.eye(dim) if dense else np.ones(dim)
    if init == "auto":
        init = "guide" if is_fitted_by_svi(model) else "random"
    if init == "random":
        points = [potential.initial(derive_seed("nuts", c)) for c in range(num_chains)]
        initial = np.stack([potential.flatten(point).cpu().numpy() for point in points])
        trusted = trusted_normal(potential, function) if dense and precondition and dim else None
        return (initial, unit) if trusted is None else (_nearer(initial, *trusted), trusted[1])
    count = max(num_chains, min(1000, 10 * dim)) if dense else max(num_chains, 200)
    if init == "guide":
        draws = guide_draws(model, potential, minibatch, count)
    else:
        draws = pathfinder_draws(potential, num_samples=count, function=function).draws
    finite = [draw for draw in draws if _is_finite(function, draw)][:num_chains]
    if len(finite) < num_chains:
        raise InferenceError(
            f"Only {len(finite)} of {count} draws of the {init} have a finite density under the "
            f"model, too few for {num_chains} chains. Use init='random'."
        )
    return np.stack(finite), _covariance(draws, dense) if precondition else unit


def _nearer(points: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Draw points nearer that lie too far out for the way back to be no part of the adaptation."""
    away = np.linalg.solve(np.linalg.cholesky(covariance), (points - mean).T)
    distance = np.linalg.norm(away, axis=0)[:, None]
    return np.asarray(mean + (points - mean) * np.minimum(1.0, FARTHEST / distance))


def guide_draws(
    model: BaseModelClass, potential: Potential, minibatch: Minibatch, count: int
) -> np.ndarray:
    """Unconstrained draws of the guide for all sites of a potential, ``(count, dim)``."""
    module = model.module
    scaled = minibatch.replace(n_obs=model.n_obs_training)

    def story(_: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        latents = latent_values(guide_trace(module, scaled, {}))
        return {name: latents[name] for name in potential.names}

    with evaluation_mode(module), stream("nuts", "guide"):
        chunk = draws_at_once(module, minibatch.n)
        values = map_draws(story, {}, count, chunk, module)
    return potential.flatten(potential.unconstrain(values)).cpu().numpy()


def _is_finite(function: ValueAndGradient, position: np.ndarray) -> bool:
    vector = torch.from_numpy(np.ascontiguousarray(position)).to(function.potential.device)
    value, gradient = function(vector)
    return bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all())


def _covariance(draws: np.ndarray, dense: bool) -> np.ndarray:
    """Covariance of draws, shrunk a little; coordinates that do not vary (point guides) count 1."""
    draws = draws[np.isfinite(draws).all(1)]
    variances = draws.var(0)
    variances = np.where(variances > 1e-10, variances, 1.0)
    if not dense:
        return variances
    shrink = draws.shape[1] / (draws.shape[1] + len(draws))
    return (1 - shrink) * np.cov(draws.T).reshape(len(variances), -1) + shrink * np.diag(variances)
