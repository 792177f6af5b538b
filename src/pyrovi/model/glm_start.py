r"""Start of a :class:`~pyrovi.module.hierarchical_glm.NegativeBinomialGLMM`: a mode of every gene.

Given the variances of the hierarchy, the modes of the genes are found by Newton's method, all genes
at once; given the modes, the variances are set to the moments that they imply. Some rounds of both
are the usual fit of a generalised linear mixed model by penalised quasi-likelihood (Breslow &
Clayton 1993), which is what SVI starts from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyrovi.module.hierarchical_glm import NegativeBinomialGLMM

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

ROUNDS = 10
"""Newton steps, each followed by an update of the variances."""

_LONGEST_STEP = 1.5
_BATCH_SIZE = 2048
_PRIOR_DONORS = 4.0
"""Number of donors that the common variance of donor effects counts as, next to a gene's own."""


@dataclass
class _Moments:
    """Sums over the cells: gradient, negative curvature, and moments of the residuals."""

    gradient: Tensor  # (P, genes)
    curvature: Tensor  # (genes, P, P)
    excess: Tensor  # sum of (x - mu)^2 - mu
    squares: Tensor  # sum of mu^2


def start_near_posterior(model: BaseModelClass, indices: np.ndarray | None = None) -> None:
    """Put the guide near the posterior.

    Parameters
    ----------
    model
        A model of a :class:`NegativeBinomialGLMM`.
    indices
        The training observations; ``None`` for all.
    """
    module = model.module
    assert isinstance(module, NegativeBinomialGLMM)
    start = normal_start(model, module, indices)
    module.start_at(*start)


@torch.no_grad()
def normal_start(
    model: BaseModelClass, module: NegativeBinomialGLMM, indices: np.ndarray | None
) -> tuple[Mapping[str, Tensor], Tensor, Tensor]:
    """Values of the shared sites on the real line, and mean and covariance of what genes have."""
    n_effects, n_donors = module.n_coefficients, module.n_donor
    effects, donors = slice(1, 1 + n_effects), slice(1 + n_effects, None)
    totals, exposure = _totals(model, module, indices)
    w = torch.zeros(1 + n_effects + n_donors, module.n_vars, device=module.device)
    w[0] = ((totals + 0.5) / exposure).log()
    theta, sigma = torch.full_like(w[0], 5.0), torch.full_like(w[0], 0.2)
    tau = torch.full_like(w[effects, :1], 0.3)
    mu_alpha, sigma_alpha = w[0].mean(), _spread(w[0], 0.5, 4.0)
    for _ in range(ROUNDS):
        scales = [sigma_alpha.expand_as(w[:1]), tau.expand_as(w[effects])]
        precision = torch.cat([*scales, sigma.expand_as(w[donors])]) ** -2
        away = w.clone()
        away[0] -= mu_alpha
        sums = _moments(model, module, indices, w, theta)
        covariance = torch.linalg.inv(sums.curvature + torch.diag_embed(precision.T))
        step = torch.einsum("gpq,qg->pg", covariance, sums.gradient - precision * away)
        w = w + step.clamp(-_LONGEST_STEP, _LONGEST_STEP)
        second = w**2 + covariance.diagonal(dim1=-2, dim2=-1).T
        theta = (sums.squares / sums.excess.clamp_min(1e-10)).clamp(0.2, 200.0)
        mu_alpha, sigma_alpha = w[0].mean(), _spread(w[0], 0.5, 4.0)
        tau = second[effects].mean(1, keepdim=True).sqrt().clamp_min(0.05)
        if n_donors:
            common = _PRIOR_DONORS * second[donors].mean()
            of_gene = (second[donors].sum(0) + common) / (n_donors + _PRIOR_DONORS)
            sigma = of_gene.sqrt().clamp_min(0.03)

    logs = {"theta": theta.log(), "sigma": sigma.log()}
    kappa, omega = _spread(logs["theta"], 0.3, 0.7), _spread(logs["sigma"], 0.2, 0.6)
    shared = {
        "mu_alpha": mu_alpha, "sigma_alpha": sigma_alpha.log(), "tau": tau.log(),
        "theta_0": logs["theta"].median(), "kappa": kappa.log(),
        "sigma_0": logs["sigma"].median(), "omega": omega.log(),
    }  # fmt: skip
    mean = torch.cat([logs["theta"][None], w]).T
    cov = mean.new_zeros(*mean.shape, mean.shape[-1])
    cov[:, 0, 0] = (0.5 * kappa) ** 2
    cov[:, 1:, 1:] = covariance
    return shared, mean, cov


def _spread(values: Tensor, least: float, most: float) -> Tensor:
    """Standard deviation over genes, within bounds; of a single gene, that between them."""
    if len(values) < 2:
        return values.new_tensor((least * most) ** 0.5)
    return values.std().clamp(least, most)


def _totals(
    model: BaseModelClass, module: NegativeBinomialGLMM, indices: np.ndarray | None
) -> tuple[Tensor, Tensor]:
    """Counts of every gene, and sum of the size factors."""
    counts, exposure = torch.zeros(module.n_vars, device=module.device), torch.zeros(())
    for x, _, size in _minibatches(model, module, indices):
        counts, exposure = counts + x.sum(0), exposure + size.sum().cpu()
    return counts, exposure.to(module.device)


def _moments(
    model: BaseModelClass,
    module: NegativeBinomialGLMM,
    indices: np.ndarray | None,
    w: Tensor,
    theta: Tensor,
) -> _Moments:
    n_terms, n_vars = w.shape
    gradient, products = torch.zeros_like(w), w.new_zeros(n_terms * n_terms, n_vars)
    excess, squares = torch.zeros_like(theta), torch.zeros_like(theta)
    for x, design, size in _minibatches(model, module, indices):
        mu = size * (design @ w).clamp_max(20.0).exp()
        weight = 1 / (1 + mu / theta)
        gradient += design.T @ ((x - mu) * weight)
        pairs = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
        products += pairs.T @ (mu * weight)
        excess += ((x - mu) ** 2 - mu).sum(0)
        squares += (mu**2).sum(0)
    return _Moments(gradient, products.T.reshape(n_vars, n_terms, n_terms), excess, squares)


def _minibatches(
    model: BaseModelClass, module: NegativeBinomialGLMM, indices: np.ndarray | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Counts, design and relative size factors."""
    loader = model.loader(indices=indices)[2]
    for minibatch in loader(_BATCH_SIZE):
        minibatch = minibatch.to(module.device)
        design = module.run("design", minibatch)
        yield minibatch["X"], design, minibatch["size_factor"] / module.size_factor_mean
