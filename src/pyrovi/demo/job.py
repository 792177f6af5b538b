"""The main job: from counts to a checked, saved model and a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyrovi._rng import generator
from pyrovi._settings import settings
from pyrovi.criticism.bounds import evidence_bounds
from pyrovi.criticism.document import Image, Section, Table
from pyrovi.criticism.elbo_plot import plot_elbo
from pyrovi.criticism.model_report import report
from pyrovi.criticism.predictive import PredictiveChecks, posterior_predictive_checks
from pyrovi.criticism.predictive_plots import plot_mean_variance, plot_totals, plot_zero_fraction
from pyrovi.demo.latent_space import (
    label_agreement,
    plot_embedding,
    principal_components,
    umap_embedding,
)
from pyrovi.errors import MissingKeyError, SaveLoadError

if TYPE_CHECKING:
    from anndata import AnnData

    from pyrovi.model.scvi import SCVI

MAX_EPOCHS = 400
MAX_CELLS = 5_000
"""Most cells of the predictive checks and of the ArviZ file; a seeded sample of larger data."""


@dataclass
class DemoResult:
    """What the demonstration found.

    Attributes
    ----------
    out
        Folder of the files.
    bounds
        Bounds on the evidence (see :func:`~pyrovi.criticism.evidence_bounds`).
    agreement
        Agreement of the latent space (and, for comparison, of principal components) with the
        labels; ``None`` without labels.
    checks
        Posterior predictive checks.
    files
        What was written, in words.
    seconds
        Duration of each step.
    """

    out: Path
    bounds: pd.DataFrame
    agreement: pd.DataFrame | None
    checks: PredictiveChecks
    files: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def run_demo(
    adata: AnnData,
    out: str | Path,
    *,
    labels_key: str | None = None,
    batch_key: str | None = None,
    layer: str | None = None,
    max_epochs: int = MAX_EPOCHS,
    num_draws: int = 100,
    source: str = "the given data",
    say: Callable[[str], None] = print,
) -> DemoResult:
    """Fit SCVI to counts, check it, and write everything to a folder.

    Parameters
    ----------
    adata
        Counts.
    out
        Folder; files of an earlier run are replaced.
    labels_key
        Column of ``obs`` with cell types, to compare the latent space with. It is not shown to the
        model.
    batch_key, layer
        As in :meth:`~pyrovi.model.SCVI.setup_anndata`.
    max_epochs
        Epochs of training.
    num_draws
        Number of replicated data sets and of posterior draws.
    source
        Where the data come from, for the report.
    say
        Function that is told the beginning of each step.

    Returns
    -------
    DemoResult
        The numbers and the names of the files.

    Raises
    ------
    MissingKeyError
        If a column is missing.
    DataError
        If the data are not counts.
    SaveLoadError
        If the folder cannot be written.
    """
    from pyrovi.model.scvi import SCVI

    if labels_key is not None and labels_key not in adata.obs:
        raise MissingKeyError(
            f"obs has no column {labels_key!r}; its columns are: {', '.join(map(str, adata.obs))}."
        )
    clock = _Clock(say)
    SCVI.setup_anndata(adata, layer=layer, batch_key=batch_key)
    model = SCVI(adata, gene_likelihood="nb")
    folder = _folder(out)

    with clock(f"Training SCVI on {adata.n_obs:,} cells x {adata.n_vars:,} genes"):
        model.train(max_epochs)
        model.save(folder / "model", overwrite=True)
    with clock("Bounding the evidence"):
        bounds = evidence_bounds(model)
    with clock("Latent space: agreement with cell types, UMAP"):
        latent = np.asarray(model.get_latent_representation())
        agreement = _agreement(model, latent, labels_key)
        groups = _groups(adata, labels_key, batch_key)
        embedding = plot_embedding(umap_embedding(latent), groups)
    used = _sample(adata.n_obs)
    with clock(f"Posterior predictive checks: {num_draws} replicated data sets"):
        checks = posterior_predictive_checks(model, num_samples=num_draws, indices=used)
    with clock("Writing files"):
        figures = {
            "umap.png": embedding,
            "elbo.png": plot_elbo(model),
            "predictive_mean_variance.png": plot_mean_variance(checks),
            "predictive_zeros.png": plot_zero_fraction(checks),
            "predictive_library_size.png": plot_totals(checks),
        }
        files = _write(model, folder, latent, figures, num_draws, used)
        report(
            model,
            folder / "report.html",
            title="SCVI on " + source,
            sections=[_latent_section(embedding, agreement)],
            values={
                "source": source,
                "seed": settings.seed,
                "agreement": None if agreement is None else agreement.to_dict(orient="index"),
                "seconds": {k: round(v, 1) for k, v in clock.seconds.items()},
            },
            bounds=bounds,
            checks=checks,
        )
    return DemoResult(folder, bounds, agreement, checks, files, clock.seconds)


def _agreement(model: SCVI, latent: np.ndarray, labels_key: str | None) -> pd.DataFrame | None:
    if labels_key is None:
        return None
    labels = model.adata.obs[labels_key].astype(str).to_numpy()
    counts = model.adata_manager.get_from_registry("X")
    spaces = {
        f"SCVI latent space ({latent.shape[1]} dimensions)": latent,
        "PCA of log-normalised counts, for comparison": principal_components(
            counts, latent.shape[1]
        ),
    }
    rows = {name: label_agreement(space, labels) for name, space in spaces.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("space")


def _groups(adata: AnnData, labels_key: str | None, batch_key: str | None) -> dict[str, pd.Series]:
    groups = {}
    if labels_key is not None:
        groups[f"Cell type ({labels_key})"] = adata.obs[labels_key]
    if batch_key is not None:
        groups[f"Batch ({batch_key})"] = adata.obs[batch_key]
    return groups or {"Cells": pd.Series(["cell"] * adata.n_obs, index=adata.obs_names)}


def _write(
    model: SCVI,
    folder: Path,
    latent: np.ndarray,
    figures: dict[str, Any],
    num_draws: int,
    used: np.ndarray | None,
) -> dict[str, str]:
    np.save(folder / "latent.npy", latent)
    columns = [f"latent_{i}" for i in range(latent.shape[1])]
    pd.DataFrame(latent, index=model.adata.obs_names, columns=columns).to_csv(folder / "latent.csv")
    for name, made in figures.items():
        made.savefig(folder / name)
    idata = model.to_arviz("z", num_samples=num_draws, indices=used)
    (folder / "posterior.nc").unlink(missing_ok=True)
    idata.to_netcdf(str(folder / "posterior.nc"))
    return {
        "report.html": "everything below in one page (and report.json, for programs)",
        "model/": "the model: tensors and JSON; pyrovi.load('model', adata)",
        "latent.csv, latent.npy": "posterior means of the latent space",
        "posterior.nc": f"{num_draws} posterior draws for ArviZ",
        "*.png": "the figures",
    }


def _latent_section(embedding: Any, agreement: pd.DataFrame | None) -> Section:
    image = Image(
        embedding,
        "UMAP of the latent space. The model has not seen the cell types. Distances between far "
        "groups mean little in a UMAP.",
        "Scatter plot of the cells in two dimensions, coloured by group.",
    )
    if agreement is None:
        return Section("Latent space", [image])
    table = Table(
        agreement,
        "knn_accuracy: share of cells whose type the 15 nearest neighbours get right (five-fold "
        "cross-validation). majority: what guessing the most frequent type would reach. ari: "
        "adjusted Rand index of k-means with as many clusters as types (1: same, 0: by chance).",
    )
    return Section("Latent space", [table, image])


def _sample(n_obs: int) -> np.ndarray | None:
    if n_obs <= MAX_CELLS:
        return None
    return np.sort(generator("demo", "cells").choice(n_obs, MAX_CELLS, replace=False))


def _folder(out: str | Path) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveLoadError(f"Cannot make the folder {str(folder)!r}: {error}") from error
    return folder


class _Clock:
    """Announces steps and takes their time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.seconds: dict[str, float] = {}
        self._step = ""

    def __call__(self, step: str) -> _Clock:
        self._step = step
        return self

    def __enter__(self) -> None:
        self._say(self._step)
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._step] = time.perf_counter() - self._start
