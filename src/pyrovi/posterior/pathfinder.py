"""Pathfinder: normal approximations along the path of an optimiser (Zhang et al. 2022).

L. Zhang, B. Carpenter, A. Gelman, A. Vehtari: Pathfinder: parallel quasi-Newton variational
inference. Journal of Machine Learning Research 23(306), 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg

from pyrovi._rng import generator
from pyrovi.posterior.compiled import ValueAndGradient
from pyrovi.posterior.optimum import minimise


@dataclass(frozen=True)
class Path:
    """What one path has come to.

    Attributes
    ----------
    draws
        Unconstrained draws ``(S, dim)`` of the best approximation.
    log_weights
        Log density of the posterior minus that of the approximation, ``(S,)``.
    elbo
        ELBO of the best approximation, with the constant of the posterior left out.
    mean, covariance
        Of the best approximation, ``(dim,)`` and ``(dim, dim)``.
    """

    draws: np.ndarray
    log_weights: np.ndarray
    elbo: float
    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class _Normal:
    """Normal whose covariance is diagonal plus low rank."""

    mean: np.ndarray
    root: np.ndarray
    basis: np.ndarray
    factor: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The covariance, ``(dim, dim)``."""
        excess = self.factor @ self.factor.T - np.eye(len(self.factor))
        within = np.eye(len(self.mean)) + self.basis @ excess @ self.basis.T
        return np.asarray(self.root[:, None] * within * self.root)

    def draw(self, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draws ``(count, dim)`` and their log densities."""
        noise = random.standard_normal((count, len(self.mean)))
        within = noise @ self.basis
        moved = noise + (within @ self.factor.T - within) @ self.basis.T
        log_det = np.log(self.root).sum() + np.log(np.diagonal(self.factor)).sum()
        density = -0.5 * (noise**2).sum(1) - log_det - 0.5 * noise.shape[1] * math.log(2 * math.pi)
        return self.mean + self.root * moved, density


def run_path(
    function: ValueAndGradient,
    initial: np.ndarray,
    *,
    path: int,
    num_draws: int,
    num_elbo_draws: int = 25,
    max_iterations: int = 1000,
    history: int = 6,
    seed: int | None = None,
) -> Path:
    """Follow an optimiser, and draw from the best normal on its way.

    Parameters
    ----------
    function
        The potential and its gradient.
    initial
        Unconstrained position to start from, ``(dim,)``; far out rather than near the mode.
    path
        Number of the path; names its random stream.
    num_draws
        Number of draws ``S``.
    num_elbo_draws
        Draws that the ELBO of each candidate is estimated from.
    max_iterations
        Largest number of steps of the optimiser.
    history
        Number of steps that the covariance is estimated from.
    seed
        Root seed.
    """
    random = generator("pathfinder", path, seed=seed)
    optimum = minimise(
        function,
        initial,
        max_iterations=max_iterations,
        history=history,
        relative_tolerance=1e-8,
    )
    best, best_elbo = None, -np.inf
    for normal in _normals(optimum.path, optimum.gradients, history):
        draws, density = normal.draw(num_elbo_draws, random)
        elbo = float(np.mean(_log_density(function, draws) - density))
        if best is None or elbo > best_elbo:
            best, best_elbo = normal, elbo
    if best is None:  # it began at the optimum
        dim = len(initial)
        best = _Normal(optimum.position, np.ones(dim), np.zeros((dim, 0)), np.zeros((0, 0)))
    draws, density = best.draw(num_draws, random)
    weights = _log_density(function, draws) - density
    return Path(draws, weights, best_elbo, best.mean, best.covariance)


def _log_density(function: ValueAndGradient, draws: np.ndarray) -> np.ndarray:
    device = function.potential.device
    values = [float(function(torch.from_numpy(draw).to(device))[0]) for draw in draws]
    density = -np.asarray(values)
    return np.where(np.isnan(density), -np.inf, density)


def _normals(path: np.ndarray, gradients: np.ndarray, history: int) -> list[_Normal]:
    """The approximation at every step: mean by a Newton step, inverse Hessian by L-BFGS."""
    alpha = np.ones(path.shape[1])
    steps: list[np.ndarray] = []
    changes: list[np.ndarray] = []
    normals = []
    for position, gradient, s, y in zip(
        path[1:], gradients[1:], np.diff(path, axis=0), np.diff(gradients, axis=0), strict=True
    ):
        if s @ y > 1e-12 * (y @ y) and np.isfinite(gradient).all():
            alpha = _diagonal(alpha, s, y)
            steps, changes = [*steps, s][-history:], [*changes, y][-history:]
        if steps:
            normal = _normal(position, gradient, alpha, np.stack(steps, 1), np.stack(changes, 1))
            normals += [] if normal is None else [normal]
    return normals


def _diagonal(alpha: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Diagonal of the inverse Hessian that the next updates begin with (Gilbert 1989)."""
    y_alpha_y, s_y, s_s = y @ (alpha * y), s @ y, s @ (s / alpha)
    return np.asarray(s_y / (y_alpha_y / alpha + y**2 - (y_alpha_y / s_s) * (s / alpha) ** 2))


def _normal(
    position: np.ndarray, gradient: np.ndarray, alpha: np.ndarray, s: np.ndarray, y: np.ndarray
) -> _Normal | None:
    """Algorithms 3 and 4 of the paper; ``None`` where the estimate is no covariance."""
    upper = np.triu(s.T @ y)
    eta = np.diagonal(upper)
    try:
        inverse = linalg.solve_triangular(upper, np.eye(len(eta)))
    except linalg.LinAlgError:
        return None
    corner = inverse.T @ (np.diag(eta) + y.T @ (alpha[:, None] * y)) @ inverse
    beta = np.concatenate([alpha[:, None] * y, s], 1)
    zero = np.zeros_like(inverse)
    gamma = np.block([[zero, -inverse], [-inverse.T, corner]])
    root = np.sqrt(alpha)
    basis, triangle = np.linalg.qr(beta / root[:, None])
    try:
        factor = np.linalg.cholesky(np.eye(len(triangle)) + triangle @ gamma @ triangle.T)
    except np.linalg.LinAlgError:
        return None
    mean = position - alpha * gradient - beta @ (gamma @ (beta.T @ gradient))
    return _Normal(mean, root, basis, factor)
