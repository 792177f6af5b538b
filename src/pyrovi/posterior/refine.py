"""The best normal posterior of the local latents of each observation."""

from __future__ import annotations

import math
from typing import Literal

import pyro
import torch
from torch import Tensor

from pyrovi.posterior.local_space import LocalSpace, over_draws

Covariance = Literal["full", "diagonal"]

_MAX_STEPS = 200
_OVERSHOT = 1e12
_LOG_2PI = math.log(2 * math.pi)


class LocalNormal:
    r"""Normal distributions :math:`q(u_n)`, one for each observation, in unconstrained space.

    :math:`u_n = m_n + L_n (a_n + T_n \epsilon)`, where :math:`m_n, L_n` are moments of the draws
    that it starts from, so that steps are of the size of the posterior.

    Parameters
    ----------
    draws
        Draws of the distribution to start from, shape ``(K, n, d)``.
    covariance
        ``"full"``, or ``"diagonal"`` for independent components.
    """

    def __init__(self, draws: Tensor, covariance: Covariance = "full") -> None:
        self.covariance = covariance
        self.loc = draws.mean(0)
        centred = draws - self.loc
        d = draws.shape[-1]
        if covariance == "full":
            second = torch.einsum("kni,knj->nij", centred, centred) / (len(draws) - 1)
        else:
            second = torch.diag_embed(centred.square().sum(0) / (len(draws) - 1))
        # components that the draws do not move in, relative to the others and to rounding
        smallest = 1e-6 * second.diagonal(0, -2, -1).mean(-1) + torch.finfo(draws.dtype).tiny
        eye = torch.eye(d, dtype=draws.dtype, device=draws.device)
        self.tril = torch.linalg.cholesky(second + smallest[:, None, None] * eye)
        self.shift = torch.zeros_like(self.loc)
        self.log_diagonal = torch.zeros_like(self.loc)
        self.lower = torch.zeros_like(self.tril)

    def parameters(self) -> list[Tensor]:
        """What is optimised."""
        free = [self.shift, self.log_diagonal]
        return [*free, self.lower] if self.covariance == "full" else free

    def moments(self) -> tuple[Tensor, Tensor]:
        """Means ``(n, d)`` and Cholesky factors of the covariances ``(n, d, d)``."""
        mean = self.loc + torch.einsum("nij,nj->ni", self.tril, self.shift)
        return mean, self.tril @ self._scale()

    def __call__(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draws and their log densities from standard normal noise ``(K, n or 1, d)``.

        Returns
        -------
        tuple
            Shapes ``(K, n, d)`` and ``(K, n)``.
        """
        noisy = torch.einsum("nij,knj->kni", self._scale(), noise.expand(-1, *self.loc.shape))
        inner = self.shift + noisy
        vectors = self.loc + torch.einsum("nij,knj->kni", self.tril, inner)
        log_scale = self.tril.diagonal(0, -2, -1).log().sum(-1) + self.log_diagonal.sum(-1)
        standard = -0.5 * (noise.square() + _LOG_2PI).sum(-1)
        return vectors, standard - log_scale

    def _scale(self) -> Tensor:
        scale = torch.diag_embed(self.log_diagonal.exp())
        return scale + self.lower.tril(-1) if self.covariance == "full" else scale


def refine(space: LocalSpace, normal: LocalNormal, num_draws: int) -> None:
    r"""Maximise the evidence lower bound of every observation over the parameters of its normal.

    The expectation is taken over fixed draws whose mean is exactly 0 and whose covariance is
    exactly the identity: the optimum is exact where the log density is quadratic.

    Parameters
    ----------
    space
        Vectors and log density.
    normal
        Where to start; changed in place.
    num_draws
        Number of draws.
    """
    noise = matched_noise(num_draws, normal.loc)
    leaves = [leaf.requires_grad_() for leaf in normal.parameters()]
    optimiser = torch.optim.LBFGS(
        leaves, max_iter=_MAX_STEPS, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        # A step of the line search may overshoot to where a density overflows: it is told so by a
        # large value, and comes back.
        with torch.enable_grad(), pyro.validation_enabled(False):
            vectors, log_q = normal(noise)
            value = -(over_draws(space, vectors) - log_q).mean(0).sum()
            # of these leaves alone: the module's own gradients are not touched
            gradients = torch.autograd.grad(value, leaves)
        if not (torch.isfinite(value) and all(g.isfinite().all() for g in gradients)):
            value = torch.full_like(value, _OVERSHOT)
            gradients = tuple(torch.zeros_like(g) for g in gradients)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        return value.detach()

    optimiser.step(loss)  # type: ignore[arg-type]
    for leaf in leaves:
        leaf.requires_grad_(False)
        leaf.grad = None


def matched_noise(num_draws: int, like: Tensor) -> Tensor:
    """Standard normal noise ``(K, 1, d)`` with exactly these first two moments, as far as K > d."""
    d = like.shape[-1]
    half = torch.randn(max(num_draws // 2, d + 1), d, dtype=like.dtype, device=like.device)
    noise = torch.cat([half, -half])
    covariance = noise.T @ noise / len(noise)
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), noise.T, upper=False
    ).T
    return whitened[:, None]
