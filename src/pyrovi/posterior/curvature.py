"""The Hessian of a potential, and the normal that it makes of a mode."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from pyrovi.errors import InferenceError
from pyrovi.posterior.potential import Potential


def hessian(potential: Potential, position: np.ndarray) -> np.ndarray:
    """Hessian of a potential at an unconstrained position, ``(dim, dim)``."""
    vector = torch.from_numpy(np.array(position)).to(potential.device)
    try:
        with warnings.catch_warnings():  # of what torch itself loads at the first derivative
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprec", DeprecationWarning)
            values = torch.func.hessian(potential.at)(vector)
    except (NotImplementedError, RuntimeError):  # no forward-mode derivative of some function
        values = torch.autograd.functional.hessian(potential.at, vector)
    symmetric = 0.5 * (values + values.T)
    return np.asarray(symmetric.detach().cpu().numpy())


def normal_factor(curvature: np.ndarray, potential: Potential) -> np.ndarray:
    """Lower Cholesky factor of the inverse of a Hessian.

    Raises
    ------
    InferenceError
        If it is not positive definite, naming the coordinates of the flattest direction.
    """
    values, vectors = np.linalg.eigh(curvature) if np.isfinite(curvature).all() else (None, None)
    if values is None or vectors is None:
        raise InferenceError(
            "The second derivatives of the log density are not finite at its mode. Laplace's "
            "approximation needs them; use method='pathfinder' or 'nuts'."
        )
    if values[0] <= 1e-12 * abs(values[-1]):
        flat = np.abs(vectors[:, 0])
        sites = [name for name, part in _by_site(potential, flat).items() if part > 0.1]
        raise InferenceError(
            f"The log density is not curved at its mode in a direction of {', '.join(sites)} "
            f"(smallest eigenvalue of the Hessian {values[0]:.3g}, largest {values[-1]:.3g}), so "
            "there is no normal approximation. Usually sites can be traded against one another "
            "without any effect on the data (give them proper priors, or fix one), or the mode is "
            "on the edge of the support. method='nuts' or 'pathfinder' show the posterior as it is."
        )
    return np.linalg.cholesky(np.linalg.inv(curvature))


def _by_site(potential: Potential, vector: np.ndarray) -> dict[str, float]:
    parts = potential.unflatten(torch.from_numpy(vector))
    return {name: float(part.abs().max()) for name, part in parts.items() if part.numel()}
