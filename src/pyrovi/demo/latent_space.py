"""What a latent space tells of known cell types: agreement with labels, and a picture."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyrovi._lazy import require
from pyrovi._rng import derive_seed
from pyrovi.criticism.style import CATEGORIES, MARKERS, figure
from pyrovi.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FOLDS, _NEIGHBOURS = 5, 15


def label_agreement(
    latent: np.ndarray, labels: np.ndarray, seed: int | None = None
) -> dict[str, float]:
    """How well a space separates labelled groups.

    Parameters
    ----------
    latent
        One row per cell.
    labels
        Label of each cell.
    seed
        Root seed of folds and clustering.

    Returns
    -------
    dict
        ``knn_accuracy``: share of cells whose label a 15-nearest-neighbour vote among the other
        four fifths of the cells gets right (five-fold cross-validation); ``majority``: share of
        the largest label, which guessing would reach; ``ari``: adjusted Rand index of k-means with
        as many clusters as labels (1: the same partition, 0: as by chance).

    Raises
    ------
    DataError
        If fewer than two labels have at least five cells.
    """
    model_selection = require("sklearn.model_selection", "demo")
    neighbours = require("sklearn.neighbors", "demo")
    cluster, metrics = require("sklearn.cluster", "demo"), require("sklearn.metrics", "demo")
    names, counts = np.unique(labels, return_counts=True)
    frequent = np.isin(labels, names[counts >= _FOLDS])
    if (counts >= _FOLDS).sum() < 2:
        raise DataError(
            f"The check needs at least two labels with {_FOLDS} cells each; found "
            f"{dict(zip(names.tolist(), counts.tolist(), strict=True))}."
        )
    latent, labels = np.asarray(latent)[frequent], np.asarray(labels)[frequent]
    state = derive_seed("label agreement", seed=seed) % 2**32
    folds = model_selection.StratifiedKFold(_FOLDS, shuffle=True, random_state=state)
    classifier = neighbours.KNeighborsClassifier(min(_NEIGHBOURS, len(labels) // 2))
    predicted = model_selection.cross_val_predict(classifier, latent, labels, cv=folds)
    groups = cluster.KMeans(len(np.unique(labels)), n_init=10, random_state=state)
    return {
        "knn_accuracy": float((predicted == labels).mean()),
        "majority": float(counts.max() / counts[counts >= _FOLDS].sum()),
        "ari": float(metrics.adjusted_rand_score(labels, groups.fit_predict(latent))),
    }


def principal_components(counts: object, n_components: int, seed: int | None = None) -> np.ndarray:
    """Scores of log-normalised counts: the usual space to compare a latent space with."""
    decomposition = require("sklearn.decomposition", "demo")
    import scipy.sparse as sp

    matrix = sp.csr_matrix(counts, dtype=np.float64)
    totals = np.asarray(matrix.sum(1)).ravel()
    matrix = sp.diags(np.median(totals) / totals) @ matrix
    matrix.data = np.log1p(matrix.data)
    state = derive_seed("principal components", seed=seed) % 2**32
    size = min(n_components, min(matrix.shape) - 1)
    pca = decomposition.PCA(size, svd_solver="arpack", random_state=state)
    return pca.fit_transform(matrix)


def umap_embedding(latent: np.ndarray, seed: int | None = None) -> np.ndarray:
    """Two-dimensional UMAP of a latent space.

    References
    ----------
    McInnes, Healy, Melville: UMAP: Uniform Manifold Approximation and Projection. arXiv:1802.03426.
    """
    umap = require("umap", "demo")
    reducer = umap.UMAP(
        n_neighbors=min(15, len(latent) - 1),
        min_dist=0.3,
        random_state=derive_seed("umap", seed=seed) % 2**32,
        n_jobs=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between umap and scikit-learn
        return np.asarray(reducer.fit_transform(latent))


def plot_embedding(embedding: np.ndarray, groups: dict[str, pd.Series]) -> Figure:
    """Scatter plots of a two-dimensional embedding, one for each grouping.

    Parameters
    ----------
    embedding
        Shape ``(n, 2)``.
    groups
        Title -> label of each cell. Each label has a colour and a shape of its own.

    Returns
    -------
    matplotlib.figure.Figure
        One panel for each grouping, legends beside them.
    """
    width, height = np.ptp(embedding, axis=0)
    tall = float(np.clip(0.7 + 4.4 * height / max(width, 1e-9), 3.4, 6.5))
    with figure(7.6 * len(groups), tall, columns=len(groups)) as (made, panels):
        for axes, (title, labels) in zip(panels, groups.items(), strict=True):
            _scatter(axes, embedding, pd.Categorical(labels))
            axes.set(title=title, xlabel="UMAP 1", ylabel="UMAP 2")
            axes.set(xticks=[], yticks=[])
            axes.set_aspect("equal", adjustable="datalim")
    return made


def _scatter(axes: Axes, embedding: np.ndarray, labels: pd.Categorical) -> None:
    size = float(np.clip(6_000 / len(embedding), 4, 22))
    counts = pd.Series(labels).value_counts(sort=False)
    for position, name in enumerate(labels.categories):
        inside = np.asarray(labels == name)
        axes.scatter(
            embedding[inside, 0],
            embedding[inside, 1],
            s=size,
            color=CATEGORIES[position % len(CATEGORIES)],
            marker=MARKERS[position % len(MARKERS)],
            alpha=0.85,
            linewidths=0,
            label=f"{name} ({counts[name]:,})",
            rasterized=True,
        )
    axes.legend(
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        markerscale=max(1.0, (40 / size) ** 0.5),
        ncols=1 + len(labels.categories) // 22,
        handletextpad=0.2,
    )
