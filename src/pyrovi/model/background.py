"""Initial values of the prior of protein background, from the counts of each batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi._constants import REGISTRY_KEYS
from pyrovi._rng import generator
from pyrovi.dataloaders import AnnDataLoader

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

MAX_CELLS = 10_000
"""Number of cells that are looked at."""

FEWEST_CELLS = 20
"""Cells of a panel below which the two components cannot be told apart."""

_DEFAULT = (3.0, 1.0)
_SMALLEST_SD = 0.1


def two_normals(
    values: NDArray[np.floating], n_steps: int = 200, smallest_sd: float = _SMALLEST_SD
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    r"""Fit a mixture of two normal distributions to each column, by EM.

    .. math:: x_{it} \sim \sum_{k=1}^{2} w_{kt}\, \mathrm{Normal}(m_{kt}, s_{kt})

    It begins with the values below and above the middle of each column's range (of its 1 and 99 %
    quantiles).

    Parameters
    ----------
    values
        Shape ``(n, columns)``.
    n_steps
        Number of steps.
    smallest_sd
        Lower limit of the standard deviations, which keeps a component from collapsing onto a
        value that is frequent, as zero counts are.

    Returns
    -------
    tuple of numpy.ndarray
        Weights, means and standard deviations, each of shape ``(2, columns)``; the component of the
        smaller mean comes first.
    """
    x = np.asarray(values, dtype=np.float64)
    low, high = np.quantile(x, [0.01, 0.99], axis=0)
    upper = (x > (low + high) / 2).astype(np.float64)
    responsible = np.stack([1 - upper, upper])
    for _ in range(n_steps):
        size = responsible.sum(1) + 1e-10
        weight = size / len(x)
        mean = (responsible * x).sum(1) / size
        variance = (responsible * np.square(x - mean[:, None])).sum(1) / size
        sd = np.maximum(np.sqrt(variance), smallest_sd)
        density = -0.5 * np.square((x - mean[:, None]) / sd[:, None])
        density += np.log(weight / sd)[:, None]
        responsible = np.exp(density - np.logaddexp(*density))
    order = np.argsort(mean, axis=0)
    weight, mean, sd = (np.take_along_axis(part, order, 0) for part in (weight, mean, sd))
    return weight, mean, sd


def background_moments(
    counts: NDArray[np.floating], panel: NDArray[np.integer], measured: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the log background of each protein in each panel.

    They are those of the lower component of a mixture of two normal distributions of the log
    counts (:func:`two_normals`). Where a protein was not measured, or in few cells, they are the
    means over the other panels; where it never was, 3 and 1.

    Parameters
    ----------
    counts
        Protein counts, shape ``(n, proteins)``.
    panel
        Panel of each cell, shape ``(n,)``.
    measured
        Shape ``(panels, proteins)``.

    Returns
    -------
    tuple of numpy.ndarray
        Each of shape ``(proteins, panels)``.
    """
    log_counts = np.log1p(counts)
    means = np.full(measured.shape, np.nan)
    sds = np.full(measured.shape, np.nan)
    for code, has in enumerate(measured):
        cells = panel == code
        if cells.sum() >= FEWEST_CELLS and has.any():
            _, mean, sd = two_normals(log_counts[np.ix_(cells, has)])
            means[code, has], sds[code, has] = mean[0], sd[0]
    for values, default in zip((means, sds), _DEFAULT, strict=True):
        known = ~np.isnan(values)
        total = np.where(known, values, 0.0).sum(0)
        others = np.where(known.any(0), total / np.maximum(known.sum(0), 1), default)
        values[~known] = np.broadcast_to(others, values.shape)[~known]
    return means.T, sds.T


def background_prior(
    model: BaseModelClass, measured: NDArray[np.bool_], panel_key: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """:func:`background_moments` of a model's own data, or of a sample of it if it is large.

    Parameters
    ----------
    model
        The model.
    measured
        Shape ``(panels, proteins)``.
    panel_key
        Registry key of the panels.
    """
    manager = model.adata_manager
    rows = np.arange(manager.n_obs)
    if len(rows) > MAX_CELLS:
        chosen = generator("init", "background").choice(rows, MAX_CELLS, replace=False)
        rows = np.sort(chosen)
    parts = [
        (minibatch[REGISTRY_KEYS.PROTEIN_EXP_KEY], minibatch[panel_key][:, 0])
        for minibatch in AnnDataLoader(manager, rows, batch_size=1024)
    ]
    counts, panel = (torch.cat(list(tensors)).numpy() for tensors in zip(*parts, strict=True))
    return background_moments(counts, panel, measured)
