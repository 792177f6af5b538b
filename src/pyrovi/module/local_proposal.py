r"""Normals that propose local latents given the globals, matched to joint draws of both.

For coordinate :math:`j` of an observation and whitened globals :math:`g` (both unconstrained)

.. math:: u_j = a_j + b_j^\top g + e^{(c_j + d_j^\top g) / 2} \epsilon_j

with correlated normal :math:`\epsilon`, 20 % wider than the draws are. The slopes matter: locals
follow the globals (a small scale shrinks all of them), and a proposal that ignores this misses
where the weights are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

WIDER = 1.2
"""Factor of the standard deviations of proposals: importance weights need heavier tails."""

MAX_DENSE = 20
"""Largest number of local coordinates of an observation whose covariances proposals have."""

DRAWS_PER_SLOPE = 10
"""Draws that each coordinate of the globals takes to regress on."""

_LOG_CHI_SQUARED = -1.2703628454614782
"""Mean of the log of a squared standard normal; its variance is pi^2 / 2."""

_STEEPEST = 3.0
"""Largest change of a log scale by the globals: further out it is extrapolated."""


@dataclass(frozen=True)
class LocalProposal:
    """Proposals of the locals of some observations, for each draw of the globals.

    Parameters
    ----------
    globals_
        Whitened globals of the draws, ``(S, p)``; ``p`` is 0 if there are too many to regress on.
    intercept, slopes
        Of the means, ``(n, d)`` and ``(p, n, d)``.
    log_scale, scale_slopes
        Of the log standard deviations, ``(n, d)`` and ``(p, n, d)``.
    factor
        Cholesky factors of the correlations, ``(n, d, d)``; ``None`` if they are left out.
    """

    globals_: Tensor
    intercept: Tensor
    slopes: Tensor
    log_scale: Tensor
    scale_slopes: Tensor
    factor: Tensor | None

    def given(self, draw: Tensor) -> Any:
        """The proposal given the globals of a draw, by number: a normal of shape ``(n, d)``."""
        g = self.globals_[draw]
        mean = self.intercept + torch.einsum("p,pnd->nd", g, self.slopes)
        change = torch.einsum("p,pnd->nd", g, self.scale_slopes).clamp(-_STEEPEST, _STEEPEST)
        scale = WIDER * (self.log_scale + change).exp()
        if self.factor is None:
            return dist.Normal(mean, scale).to_event(1)
        return dist.MultivariateNormal(mean, scale_tril=scale[..., None] * self.factor)


def match(globals_: Tensor, draws: Tensor) -> LocalProposal:
    """Proposals matched to joint draws.

    Parameters
    ----------
    globals_
        Whitened globals ``(S, p)``, see :func:`whiten`.
    draws
        Unconstrained locals ``(S, n, d)``.
    """
    count, _, dim = draws.shape
    rank = globals_.shape[1]
    intercept = draws.mean(0)
    slopes = _slopes(globals_, draws)
    residual = draws - intercept - torch.einsum("sp,pnd->snd", globals_, slopes)
    floor = 1e-12
    log_square = residual.square().clamp_min(floor).log()
    scale_slopes = _shrunk(_slopes(globals_, log_square), math.pi**2 / 2 / count) / 2
    change = torch.einsum("sp,pnd->snd", globals_, scale_slopes).clamp(-_STEEPEST, _STEEPEST)
    standard = residual * (-change).exp()
    variance = standard.square().sum(0).clamp_min(floor) / max(1, count - rank - 1)
    factor = None
    if dim <= MAX_DENSE and count >= 5 * dim:
        standard = standard / variance.sqrt()
        correlation = torch.einsum("sni,snj->nij", standard, standard) / max(1, count - rank - 1)
        factor = torch.linalg.cholesky(correlation + 1e-6 * torch.eye(dim).to(correlation))
    return LocalProposal(globals_, intercept, slopes, variance.log() / 2, scale_slopes, factor)


def whiten(values: Tensor) -> Tensor:
    """Draws ``(S, p)`` as uncorrelated columns of mean 0 and variance 1, constant ones left out.

    Without columns if there are fewer than 10 draws for each: a regression would fit noise.
    """
    count = len(values)
    values = values[:, torch.isfinite(values).all(0)]
    centred = values - values.mean(0)
    sd = centred.square().mean(0).sqrt()
    centred = centred[:, sd > 1e-10] / sd[sd > 1e-10]
    if not centred.shape[1] or count < DRAWS_PER_SLOPE * centred.shape[1]:
        return values[:, :0]
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    return left[:, singular > 1e-6 * singular[0]] * math.sqrt(count)


def _slopes(globals_: Tensor, values: Tensor) -> Tensor:
    return torch.einsum("sp,snd->pnd", globals_, values) / len(values)


def _shrunk(slopes: Tensor, noise: float) -> Tensor:
    """Slopes ``(p, n, d)`` towards their mean over observations, by how noisy they are."""
    common = slopes.mean(1, keepdim=True)
    spread = (slopes - common).square().mean(1, keepdim=True) - noise
    kept = (spread / (spread + noise)).clamp(0, 1)
    return common + kept * (slopes - common)
