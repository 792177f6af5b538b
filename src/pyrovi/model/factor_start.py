"""Start of LinearSCVI: loadings along the principal axes of the counts.

From random loadings SVI ends in one of many optima. Fits from this start agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi._constants import REGISTRY_KEYS
from pyrovi._rng import generator
from pyrovi.model.components import leading_axes
from pyrovi.module.linear_vae import LinearVAE

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

_MAX_ELEMENTS = 2**26
"""Largest number of counts to look at."""

_BATCH_SIZE = 4096
_LARGEST_RESIDUAL = 10.0


def start_at_principal_axes(model: BaseModelClass, indices: NDArray[np.int64]) -> None:
    r"""Put the decoder where it explains the main differences between cells.

    With the proportion :math:`p_{sg}` of gene :math:`g` in the counts of batch :math:`s` and the
    total :math:`t_n`, the loadings are the first principal axes of the Pearson residuals

    .. math:: r_{ng} = (x_{ng} - t_n p_{s_n g}) / \sqrt{t_n p_{s_n g}},

    (at most 10 in size) in units of the log proportion. The sign of an axis is that of the sum of
    its cubes. The decoder of a query, which goes on from that of a reference, is left as it is.

    Parameters
    ----------
    model
        A model of a :class:`~pyrovi.module.linear_vae.LinearVAE`.
    indices
        The training observations; of many a sample is looked at.
    """
    module = model.module
    assert isinstance(module, LinearVAE)
    if module.from_reference:
        return
    most = max(_MAX_ELEMENTS // int(model.summary_stats.n_vars), 1000)
    if len(indices) > most:
        indices = np.sort(generator("start").choice(indices, most, replace=False))
    X, batch = _counts(model, indices)
    mean = (X.sum(0, dtype=np.float64) + 0.5) / len(X)
    log_shares = _to_residuals(X, batch, mean / mean.sum(), module.n_batch)
    axes = principal_axes(X, module.n_latent)
    axes *= np.where((axes**3).sum(0) < 0, -1, 1)
    loadings = axes / np.sqrt(mean)[:, None]
    module.start_at(torch.as_tensor(loadings), torch.as_tensor(log_shares))


def principal_axes(values: NDArray[np.float32], number: int) -> NDArray[np.float64]:
    """Principal axes times the standard deviations along them, the largest first.

    Parameters
    ----------
    values
        Shape ``(n, n_vars)``, not centred here.
    number
        How many; those that do not exist are zero.

    Returns
    -------
    numpy.ndarray
        Shape ``(n_vars, number)``.
    """
    variances, axes = leading_axes(values, number)
    found = np.zeros((values.shape[1], number))
    found[:, : len(variances)] = axes * np.sqrt(variances)
    return found


def _counts(
    model: BaseModelClass, indices: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Counts of observations, and the codes of their batches."""
    X = np.empty((len(indices), model.summary_stats.n_vars), dtype=np.float32)
    batch, at = np.empty(len(indices), dtype=np.int64), 0
    for minibatch in model.loader(indices=indices)[2](_BATCH_SIZE):
        rows = slice(at, at + minibatch.n)
        X[rows] = minibatch[REGISTRY_KEYS.X_KEY]
        batch[rows] = minibatch[REGISTRY_KEYS.BATCH_KEY][:, 0]
        at += minibatch.n
    return X, batch


def _to_residuals(
    X: NDArray[np.float32], batch: NDArray[np.int64], overall: NDArray[np.float64], n_batch: int
) -> NDArray[np.float64]:
    """Turn counts into Pearson residuals, in place.

    Returns
    -------
    numpy.ndarray
        Log proportion of each gene in each batch, shape ``(n_batch, n_vars)``.
    """
    shares = np.tile(overall, (n_batch, 1))
    for code in np.unique(batch):
        rows = np.flatnonzero(batch == code)
        counts = X[rows].sum(0, dtype=np.float64) + overall
        shares[code] = counts / counts.sum()
        for some in np.array_split(rows, -(-len(rows) // _BATCH_SIZE)):
            x = X[some]
            root = np.sqrt(x.sum(1, keepdims=True)) * np.sqrt(shares[code]).astype(np.float32)
            residuals = x / root - root
            X[some] = residuals.clip(-_LARGEST_RESIDUAL, _LARGEST_RESIDUAL)
    return np.log(shares)
