"""One chain of the No-U-Turn sampler on a potential, with everything worth knowing about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyrovi._rng import generator
from pyrovi.posterior.adaptation import WarmUp
from pyrovi.posterior.compiled import ValueAndGradient
from pyrovi.posterior.hamiltonian import Metric, NoUTurn, Transition

STATISTICS = (
    "diverging",
    "energy",
    "lp",
    "step_size",
    "tree_depth",
    "n_steps",
    "acceptance_rate",
)
"""What is recorded of every transition, by the names that ArviZ gives it."""

_REPORT_EVERY = 0.2
"""Seconds between two reports of a chain."""


@dataclass(frozen=True)
class ChainSettings:
    """How to run a chain.

    Attributes
    ----------
    num_warmup, num_samples
        Number of transitions that adapt the sampler, and of those that are kept.
    target_accept
        Acceptance rate that the step size is adapted to.
    max_tree_depth
        Largest number of doublings of a trajectory.
    inverse_mass
        Inverse mass matrix to begin with: variances ``(dim,)`` or a covariance ``(dim, dim)``.
        The one that is adapted is of the same shape.
    """

    num_warmup: int
    num_samples: int
    target_accept: float
    max_tree_depth: int
    inverse_mass: np.ndarray


@dataclass(frozen=True)
class Chain:
    """Draws of one chain.

    Attributes
    ----------
    draws
        Unconstrained positions ``(num_samples, dim)``.
    statistics
        Name (see :data:`STATISTICS`) -> array ``(num_samples,)``. ``energy`` is the sum of
        potential and kinetic energy of the draw, ``lp`` minus the potential.
    inverse_mass
        Inverse mass matrix at the end.
    num_evaluations
        Number of evaluations of the gradient, the warm-up's included.
    seconds
        Wall time.
    """

    draws: np.ndarray
    statistics: dict[str, np.ndarray]
    inverse_mass: np.ndarray
    num_evaluations: int
    seconds: float


def run_chain(
    function: ValueAndGradient,
    initial: np.ndarray,
    settings: ChainSettings,
    *,
    chain: int,
    seed: int | None = None,
    report: Callable[[Any], None] | None = None,
) -> Chain:
    """Run one chain.

    Parameters
    ----------
    function
        The potential and its gradient.
    initial
        Unconstrained position to start from, ``(dim,)``.
    settings
        How to run it.
    chain
        Number of the chain; names its random stream.
    seed
        Root seed; ``None`` for ``settings.seed``.
    report
        Receives ``(iterations done, divergences after warm-up, step size)`` now and then.
    """
    # trajectories that fly away overflow, which is how they are found out
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return _run(function, initial, settings, chain, seed, report)


def _run(
    function: ValueAndGradient,
    initial: np.ndarray,
    settings: ChainSettings,
    chain: int,
    seed: int | None,
    report: Callable[[Any], None] | None,
) -> Chain:
    random = generator("nuts", chain, seed=seed)
    began, before = time.perf_counter(), function.evaluations
    sampler = NoUTurn(_on_arrays(function), settings.max_tree_depth)
    sampler.metric = Metric(settings.inverse_mass)
    warm_up = WarmUp(sampler, settings.num_warmup, settings.target_accept)
    state = sampler.start(initial, random)
    warm_up.start(state, random)
    draws = np.empty((settings.num_samples, len(initial)))
    statistics = {name: np.empty(settings.num_samples) for name in STATISTICS}
    total, reported, divergences = settings.num_warmup + settings.num_samples, began, 0
    for iteration in range(total):
        step_size = sampler.step_size
        transition = sampler.transition(state, random)
        state = transition.state
        position = iteration - settings.num_warmup
        if position < 0:
            warm_up.update(iteration, state, transition.acceptance_rate, random)
        else:
            draws[position] = state.position
            divergences += transition.diverging
            for name, value in _describe(transition, step_size).items():
                statistics[name][position] = value
        now = time.perf_counter()
        if report is not None and (now - reported > _REPORT_EVERY or iteration + 1 == total):
            report((iteration + 1, divergences, sampler.step_size))
            reported = now
    return Chain(
        draws,
        statistics,
        sampler.metric.inverse,
        function.evaluations - before,
        time.perf_counter() - began,
    )


def _on_arrays(function: ValueAndGradient) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    device = function.potential.device

    def on_arrays(position: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = function(torch.from_numpy(position).to(device))
        return float(value), gradient.cpu().numpy()

    return on_arrays


def _describe(transition: Transition, step_size: float) -> dict[str, float]:
    state = transition.state
    return {
        "diverging": float(transition.diverging),
        "energy": state.energy,
        "lp": -state.potential,
        "step_size": step_size,
        "tree_depth": float(transition.tree_depth),
        "n_steps": float(transition.n_steps),
        "acceptance_rate": transition.acceptance_rate,
    }
