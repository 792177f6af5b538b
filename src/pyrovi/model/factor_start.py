r"""Start of LinearSCVI: loadings along the principal axes of the counts.

From random loadings SVI ends in one of many optima. Those found from one data-driven start agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyrovi._constants import REGISTRY_KEYS
from pyrovi._rng import generator
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.module.linear_vae import LinearVAE

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

_MAX_CELLS, _BATCH_SIZE = 20_000, 512
_LARGEST_RESIDUAL = 10.0
_SPARE_AXES, _ITERATIONS = 10, 10


def start_at_principal_axes(model: BaseModelClass, indices: np.ndarray | None = None) -> None:
    r"""Put the decoder where it explains the main differences between cells.

    With the proportion :math:`p_{sg}` of gene :math:`g` in the counts of batch :math:`s` and the
    total :math:`t_n`, the loadings are the first principal axes of the Pearson residuals

    .. math:: r_{ng} = (x_{ng} - t_n p_{s_n g}) / \sqrt{t_n p_{s_n g}},

    (at most 10 in size) in units of the log proportion. It does not depend on the seed. A module
    that has been trained, or has taken over what a reference learnt, is left as it is.

    Parameters
    ----------
    model
        A model of a :class:`~pyrovi.module.linear_vae.LinearVAE`.
    indices
        The training observations, of which at most 20,000 are used; ``None`` for all.
    """
    module = model.module
    assert isinstance(module, LinearVAE)
    if module.is_started:
        return
    cells = resolve_indices(indices, model.adata_manager.n_obs)
    if len(cells) > _MAX_CELLS:
        rng = generator("start", "cells", seed=0)
        cells = np.sort(rng.choice(cells, _MAX_CELLS, replace=False))
    residuals = _Residuals(model, cells, module.n_batch, model.summary_stats.n_vars)
    axes = residuals.axes(module.n_latent)
    axes = torch.where((axes**3).sum(0) < 0, -axes, axes)  # what few genes do strongly is positive
    module.start_at(axes / residuals.expected.sqrt()[:, None], residuals.log_shares)


@dataclass
class _Residuals:
    """Pearson residuals of cells, minibatch by minibatch; all numbers in double precision."""

    model: BaseModelClass
    cells: np.ndarray
    n_batch: int
    n_vars: int

    def __post_init__(self) -> None:
        counts = torch.zeros(self.n_batch, self.n_vars, dtype=torch.double)
        for X, batch in self._minibatches():
            counts.index_add_(0, batch, X)
        overall = counts.sum(0) + 0.5
        overall = overall / overall.sum()
        shares = (counts + overall) / (counts.sum(1, keepdim=True) + 1)
        self.log_shares = shares.log()  # (n_batch, n_vars)
        self.expected = overall * counts.sum() / len(self.cells)
        """Mean count of each gene."""

    def axes(self, number: int) -> Tensor:
        """Principal axes times the standard deviations along them, ``(n_vars, number)``.

        By subspace iteration, so that no matrix of genes by genes is held.
        """
        width = min(number + _SPARE_AXES, self.n_vars)
        rng = generator("start", "axes", seed=0)
        basis = torch.as_tensor(rng.standard_normal((self.n_vars, width)))
        for _ in range(_ITERATIONS):
            basis = torch.linalg.qr(self._times_covariance(basis))[0]
        small = basis.T @ self._times_covariance(basis)
        variances, turn = torch.linalg.eigh((small + small.T) / 2)
        axes = (basis @ turn * variances.clamp_min(0).sqrt()).flip(-1)[:, :number]
        return torch.nn.functional.pad(axes, (0, number - axes.shape[1]))

    def _times_covariance(self, basis: Tensor) -> Tensor:
        product = torch.zeros_like(basis)
        for X, batch in self._minibatches():
            expected = X.sum(-1, keepdim=True) * self.log_shares[batch].exp()
            residuals = (X - expected) / expected.sqrt()
            residuals = residuals.clamp(-_LARGEST_RESIDUAL, _LARGEST_RESIDUAL)
            product += residuals.T @ (residuals @ basis)
        return product / len(self.cells)

    def _minibatches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Counts, and codes of the batches."""
        for minibatch in self.model.loader(indices=self.cells)[2](_BATCH_SIZE):
            yield minibatch[REGISTRY_KEYS.X_KEY].double(), minibatch[REGISTRY_KEYS.BATCH_KEY][:, 0]
