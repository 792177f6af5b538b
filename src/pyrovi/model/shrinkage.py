"""What sharing strength across genes does: estimates with and without it. Functions of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrovi._constants import REGISTRY_KEYS
from pyrovi._lazy import require
from pyrovi.errors import MissingKeyError, ModelError
from pyrovi.model.effects import get_effects
from pyrovi.model.glm_design import design_rows
from pyrovi.module.hierarchical_glm import NegativeBinomialGLMM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyrovi.model.hierarchical_glm import HierarchicalGLM

_LOG2 = float(np.log(2))
_PSEUDOCOUNT = 0.5
_BATCH_SIZE = 4096


def no_pooling_effects(model: HierarchicalGLM) -> pd.DataFrame:
    r"""Effects estimated from every gene alone: no pooling.

    Counts are added up over the cells of every donor in every condition, batch and level of the
    categorical covariates (over nothing, of data without donors). Of the log2 rates of these sums,
    :math:`\log_2 \frac{x + 1/2}{l}`, and the mean design of their cells the effects are estimated
    by least squares, in which sums count alike. Nothing is shared between genes, neither effects
    nor variances.

    Returns
    -------
    pandas.DataFrame
        Log2 fold changes, one row per gene and one column per coefficient.

    Raises
    ------
    ModelError
        If there are too few of these sums.
    """
    module, manager = model.module, model.adata_manager
    assert isinstance(module, NegativeBinomialGLMM)
    rows = design_rows(module, manager)[:, : 1 + module.n_coefficients]
    units = _units(model)
    n_units = int(units.max()) + 1
    counts, sizes = np.zeros((n_units, module.n_vars)), np.zeros((n_units, 1))
    design, cells = np.zeros((n_units, rows.shape[1])), np.bincount(units, minlength=n_units)
    np.add.at(design, units, rows)
    _, positions, loader = model.loader()
    for start, minibatch in zip(
        range(0, len(positions), _BATCH_SIZE), loader(_BATCH_SIZE), strict=True
    ):
        members = units[start : start + minibatch.n]
        np.add.at(counts, members, minibatch["X"].cpu().numpy())
        np.add.at(sizes, members, minibatch["size_factor"].cpu().double().numpy())
    design /= cells[:, None]
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ModelError(
            f"{n_units} donors (times their batches and categories) are too few to estimate "
            f"{design.shape[1] - 1} effects from each gene alone."
        )
    rates = np.log2((counts + _PSEUDOCOUNT) / sizes)
    estimates = np.linalg.lstsq(design, rates, rcond=None)[0]
    return pd.DataFrame(estimates[1:].T, model.var_names, model.coefficient_names)


def plot_shrinkage(
    model: HierarchicalGLM, coefficient: str | None = None, **options: Any
) -> Figure:
    """Draw effects with partial pooling against those without pooling.

    Points on the diagonal keep the estimate of the gene alone. Effects of genes that tell little,
    because their counts are low or their donors differ, are drawn towards zero: those of low
    expression most (the colour is the mean count of a gene in a cell of mean size).

    Parameters
    ----------
    coefficient
        Name of a coefficient; ``None`` for the first.
    options
        Further arguments of :meth:`get_effects`; called genes have a black edge.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingKeyError
        If there is no such coefficient.
    OptionalDependencyError
        If matplotlib is not installed.
    """
    name = model.coefficient_names[0] if coefficient is None else coefficient
    if name not in model.coefficient_names:
        raise MissingKeyError(
            f"{name!r} is no coefficient; there are: "
            f"{', '.join(map(repr, model.coefficient_names))}."
        )
    require("matplotlib", "plots")
    from pyrovi._shown import ShownFigure

    alone = no_pooling_effects(model)[name].to_numpy()
    table = get_effects(model, coefficients=name, **options)
    alpha = model.sample_posterior("alpha", reduce="mean")["alpha"].to_numpy()
    figure = ShownFigure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    limit = 1.05 * float(np.abs(alone).max())
    axes.axline((0, 0), slope=1, color="0.7", lw=0.8)
    axes.axhline(0, color="0.7", lw=0.8)
    edges = ["black" if called else "none" for called in table["called"]]
    points = axes.scatter(
        alone, table["mean"], c=alpha / np.log(10), s=14, cmap="viridis", edgecolors=edges,
        linewidths=0.8,
    )  # fmt: skip
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.set_xlabel("log2 fold change, gene by gene")
    axes.set_ylabel("log2 fold change, partial pooling")
    axes.set_title(name)
    figure.colorbar(points, label="log10 mean count")
    return figure


def _units(model: HierarchicalGLM) -> NDArray[np.int64]:
    """Number of the sum that every observation goes into."""
    manager = model.adata_manager
    if not model.has_donors:
        return np.arange(manager.n_obs)
    keys = ["donor", "condition", REGISTRY_KEYS.BATCH_KEY]
    if model.has_field(REGISTRY_KEYS.CAT_COVS_KEY):
        keys.append(REGISTRY_KEYS.CAT_COVS_KEY)
    codes = np.concatenate([np.asarray(manager.get_from_registry(key)) for key in keys], axis=1)
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
