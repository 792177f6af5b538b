"""What to say of chains that have not done what they should."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np

from pyrovi.posterior.convergence import ebfmi, rhat
from pyrovi.posterior.potential import Potential

MAX_RHAT = 1.01
MIN_EBFMI = 0.3


def warn_of_problems(
    potential: Potential, draws: np.ndarray, statistics: Mapping[str, np.ndarray], max_depth: int
) -> None:
    """Warn of divergences, disagreement of chains, low E-BFMI and trajectories cut short.

    Parameters
    ----------
    potential
        The potential that was sampled.
    draws
        Unconstrained draws ``(chain, draw, dim)``.
    statistics
        Statistics of the transitions, ``(chain, draw)``.
    max_depth
        Largest depth of a trajectory.

    Warns
    -----
    UserWarning
        Once, with everything that is wrong and what to do about it.
    """
    problems = [
        *_divergences(statistics["diverging"]),
        *_disagreement(potential, draws),
        *_energies(statistics["energy"]),
        *_cut_short(statistics["tree_depth"], max_depth),
    ]
    if problems:
        warnings.warn("The chains cannot be trusted yet: " + " ".join(problems), stacklevel=5)


def _divergences(diverging: np.ndarray) -> list[str]:
    count = int(diverging.sum())
    if not count:
        return []
    return [
        f"{count} of {diverging.size} transitions diverged: a region of strong curvature is left "
        "out, so the draws are biased. Write hierarchical sites non-centred (z ~ Normal(0, 1), "
        "theta = mu + tau * z), then raise target_accept (0.95, 0.99)."
    ]


def _disagreement(potential: Potential, draws: np.ndarray) -> list[str]:
    if draws.shape[1] < 4:
        return []
    values = rhat(draws)
    worst = {}
    start = 0
    for name in potential.names:
        stop = start + math.prod(potential.unconstrained_shapes[name])
        if stop > start:
            worst[name] = float(np.nanmax(values[start:stop], initial=0.0))
        start = stop
    bad = {name: value for name, value in worst.items() if value > MAX_RHAT}
    if not bad:
        return []
    shown = sorted(bad, key=lambda name: -bad[name])
    named = ", ".join(f"{name} ({bad[name]:.2f})" for name in shown[:5])
    more = "" if len(bad) <= 5 else f" and {len(bad) - 5} more sites"
    return [
        f"R-hat is above {MAX_RHAT} for {named}{more}: the chains do not agree. Run them longer "
        "(num_warmup=, num_samples=); if that does not help, there are several modes or sites that "
        "can be traded against one another (labels, signs, rotations)."
    ]


def _energies(energy: np.ndarray) -> list[str]:
    if energy.shape[1] < 4:
        return []
    values = np.asarray(ebfmi(energy))
    low = values[values < MIN_EBFMI]
    if not low.size:
        return []
    return [
        f"E-BFMI is {low.min():.2f} in {low.size} chain(s) (good above {MIN_EBFMI}): the energies "
        "are explored too slowly, so tails are missing. Reparametrise heavy-tailed or hierarchical "
        "sites."
    ]


def _cut_short(tree_depth: np.ndarray, max_depth: int) -> list[str]:
    count = int((tree_depth >= max_depth).sum())
    if count <= 0.01 * tree_depth.size:
        return []
    return [
        f"{count} of {tree_depth.size} trajectories were cut short at max_tree_depth={max_depth}: "
        "sampling is slow, not wrong. Standardise covariates, use dense_mass=True, or start from a "
        "fitted guide."
    ]
