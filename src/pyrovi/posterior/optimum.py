"""The point of highest density, by L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import optimize

from pyrovi.posterior.compiled import ValueAndGradient


@dataclass(frozen=True)
class Optimum:
    """Where an optimiser has come to.

    Attributes
    ----------
    position, value, gradient
        Unconstrained position ``(dim,)``, the potential there and its gradient.
    converged
        Whether the optimiser says so.
    message
        What it says.
    path
        Positions on the way, ``(steps + 1, dim)``, the start included.
    gradients
        Gradients there.
    """

    position: np.ndarray
    value: float
    gradient: np.ndarray
    converged: bool
    message: str
    path: np.ndarray = field(repr=False)
    gradients: np.ndarray = field(repr=False)


def minimise(
    function: ValueAndGradient,
    initial: np.ndarray,
    *,
    max_iterations: int = 2000,
    history: int = 10,
    relative_tolerance: float = 1e-13,
) -> Optimum:
    """Minimise a potential by L-BFGS (Liu & Nocedal 1989).

    Parameters
    ----------
    function
        The potential and its gradient.
    initial
        Where to start, ``(dim,)``.
    max_iterations
        Largest number of steps.
    history
        Number of steps that the curvature is estimated from.
    relative_tolerance
        Smallest relative decrease of the potential that is worth a further step.
    """
    device = function.potential.device

    def on_arrays(position: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = function(torch.from_numpy(np.array(position)).to(device))
        finite = bool(torch.isfinite(value))
        # the line search steps back from where the density is zero or not defined
        return (
            (float(value), gradient.cpu().numpy()) if finite else (1e300, np.zeros_like(position))
        )

    path = [np.array(initial)]
    result = optimize.minimize(
        on_arrays,
        initial,
        jac=True,
        method="L-BFGS-B",
        callback=lambda position: path.append(np.array(position)),
        options={
            "maxiter": max_iterations,
            "maxfun": 4 * max_iterations,
            "maxcor": history,
            "ftol": relative_tolerance,
            "gtol": 1e-8,
        },
    )
    gradients = np.stack([on_arrays(position)[1] for position in path])
    return Optimum(
        result.x,
        float(result.fun),
        np.asarray(result.jac),
        bool(result.success),
        str(result.message),
        np.stack(path),
        gradients,
    )
