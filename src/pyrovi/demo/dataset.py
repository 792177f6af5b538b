"""The data of the demonstration."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from pyrovi._lazy import require
from pyrovi.demo.counts import recover_counts

if TYPE_CHECKING:
    from anndata import AnnData

LABELS_KEY = "bulk_labels"
"""Column of the bundled data with the cell types."""


def bundled_pbmc() -> AnnData:
    """Counts of 700 peripheral blood cells and 765 genes that scanpy brings along.

    Returns
    -------
    anndata.AnnData
        ``X`` holds the counts, recovered from the log-normalised values; ``obs["bulk_labels"]`` the
        cell types that were transferred from sorted cells.

    Raises
    ------
    MissingExtraError
        If scanpy is not installed.
    DataError
        If the counts cannot be recovered from what scanpy brings.

    References
    ----------
    Zheng et al.: Massively parallel digital transcriptional profiling of single cells. Nature
    Communications 8, 14049 (2017).
    """
    from anndata import AnnData

    scanpy = require("scanpy", "demo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the file's layout is scanpy's affair
        stored = scanpy.datasets.pbmc68k_reduced()
    return AnnData(
        recover_counts(stored.raw.X),
        obs=stored.obs[[LABELS_KEY, "phase"]].copy(),
        var=stored.raw.var[[]].copy(),
    )
