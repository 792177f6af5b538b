"""Differential expression between groups of cells. Functions of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data import AnnDataManager
from pyrovi.model.comparing import Features, compare_groups
from pyrovi.model.decoding import Weights
from pyrovi.posterior.differential import raw_moments

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


def differential_expression(
    model: BaseModelClass,
    adata: Any = None,
    groupby: str | None = None,
    group1: Any = None,
    group2: Any = None,
    idx1: Any = None,
    idx2: Any = None,
    mode: Literal["change", "vanilla"] = "change",
    delta: float = 0.25,
    batch_size: int | None = None,
    all_stats: bool = True,
    batch_correction: bool = False,
    batchid1: Sequence[Any] | None = None,
    batchid2: Sequence[Any] | None = None,
    fdr_target: float = 0.05,
    silent: bool = False,
    weights: Weights = "uniform",
    *,
    n_samples_overall: int = 5000,
    pseudocounts: float | None = None,
    test_mode: Literal["two", "three"] = "three",
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Which genes are expressed differently in two groups of cells.

    Let :math:`\bar q_A(\rho) = \frac{1}{|A|} \sum_{n \in A} q(\rho_n \mid x_n)` be the average of
    the posteriors of the normalised expression of the cells of group :math:`A`. The estimand is the
    distribution of

    .. math:: \beta_g = \log_2(\rho^A_g + c) - \log_2(\rho^B_g + c), \qquad
              \rho^A \sim \bar q_A, \; \rho^B \sim \bar q_B \text{ independently}:

    the fold change between a cell of one group and a cell of the other, picked at random. It holds
    both the uncertainty of the model and the variety within the groups.

    Parameters
    ----------
    adata
        Data; ``None`` for the model's own. It is not modified.
    groupby, group1, group2
        Column of ``obs``, the group or groups of interest (``None`` for each in turn), and the
        group to compare with (``None`` for all other cells).
    idx1, idx2
        Cells instead of ``groupby``: positions, a boolean mask, or a query of ``obs``.
    mode
        ``"change"``: probability that the fold change exceeds ``delta``. ``"vanilla"``: Bayes
        factor of "larger in group 1" against "larger in group 2" (Lopez et al. 2018).
    delta
        Smallest absolute log2 fold change that matters.
    batch_size
        Largest number of cells at a time.
    all_stats
        Add means of the raw counts.
    batch_correction
        Decode the draws of both groups in the same batches (an intervention, see
        :meth:`get_normalized_expression`), instead of each cell in its own.
    batchid1, batchid2
        Batches to decode each group in, with equal shares; ``None`` for all. Only with
        ``batch_correction``. If both are the same, a pair of draws is always decoded in one batch.
    fdr_target
        Posterior expected false discovery rate of the calls in ``is_de_fdr_<target>``.
    silent
        Show no progress bar.
    weights
        As in :meth:`get_normalized_expression`.
    n_samples_overall
        Number of pairs of draws. They take ``8 * n_samples_overall * n_vars`` bytes.
    pseudocounts
        The offset :math:`c`; ``None`` estimates it from genes without counts in one of the groups
        (:func:`~pyrovi.posterior.differential.estimate_pseudocount`).
    test_mode
        Whether fold changes of both signs count together (``"two"``) or the more probable sign
        counts alone (``"three"``).
    seed
        Root seed; ``None`` for ``settings.seed``.

    Returns
    -------
    pandas.DataFrame
        One row per gene and comparison, the most probable differences first. Columns in mode
        ``"change"``: ``proba_de``, ``proba_not_de``, ``bayes_factor``, ``scale1``, ``scale2``
        (mean normalised expression), ``pseudocounts``, ``delta``, ``lfc_mean``, ``lfc_median``,
        ``lfc_std``, ``lfc_min``, ``lfc_max``, ``is_de_fdr_<target>``; in mode ``"vanilla"``:
        ``proba_m1``, ``proba_m2``, ``bayes_factor``, ``scale1``, ``scale2``. With ``all_stats``:
        ``raw_mean1``, ``raw_mean2``, ``non_zeros_proportion1``, ``non_zeros_proportion2``,
        ``raw_normalized_mean1``, ``raw_normalized_mean2`` (per 10,000 counts). Always:
        ``comparison``, ``group1``, ``group2``.

    Raises
    ------
    MissingKeyError, DataError
        If a column, group or batch does not exist, or a group is empty or compared with itself.
    ModelError
        If options contradict one another or have no meaning.

    References
    ----------
    Boyeau et al.: An empirical Bayes method for differential expression analysis of single cells
    with deep generative models. PNAS 120, e2209124120 (2023).
    """
    options = {k: v for k, v in locals().items() if k != "model"}
    return compare_groups(model, genes_of(model), **options)


def genes_of(model: BaseModelClass) -> Features:
    r"""The genes of a model, compared by their normalised expression :math:`\rho`."""
    return Features(model.var_names, lambda nodes: nodes["rho"]["value"], _gene_counts)


def _gene_counts(manager: AnnDataManager, cells: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    return raw_moments(manager.get_from_registry(REGISTRY_KEYS.X_KEY), cells)
