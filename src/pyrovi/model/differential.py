"""Differential expression between groups of cells. Functions of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrovi._constants import REGISTRY_KEYS
from pyrovi._rng import derive_seed, generator
from pyrovi._settings import settings
from pyrovi.data import AnnDataManager
from pyrovi.errors import ModelError
from pyrovi.model.decoding import Weights, batch_codes, read_sites, spread_draws, stream_decoded
from pyrovi.model.groups import Comparison, comparisons
from pyrovi.module.ledger import Role
from pyrovi.module.minified import is_minified, no_counts
from pyrovi.posterior.differential import (
    change_statistics,
    estimate_pseudocount,
    expected_fdr_calls,
    raw_moments,
    vanilla_statistics,
)

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

_RAW = {
    "mean": "raw_mean",
    "non_zeros_proportion": "non_zeros_proportion",
    "normalized_mean": "raw_normalized_mean",
}


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
    if mode not in ("change", "vanilla"):
        raise ModelError(f"mode must be 'change' or 'vanilla', got {mode!r}.")
    _refuse_globals(model)
    manager = model.manager_of(adata)
    tasks = comparisons(manager.adata.obs, groupby, group1, group2, idx1, idx2)
    batches = _batches(model, batch_correction, batchid1, batchid2)
    cells = np.stack([cells for task in tasks for cells in (task.cells1, task.cells2)])
    by_counts = all_stats or (mode == "change" and pseudocounts is None)
    if by_counts and is_minified(manager.data_registry):
        raise no_counts("Means of counts (all_stats=True, pseudocounts=None)")
    raw = raw_moments(manager.get_from_registry(REGISTRY_KEYS.X_KEY), cells) if by_counts else {}
    tables = []
    for i, task in enumerate(_progress(tasks, silent)):
        draws = [
            _draw_scales(
                model, manager, members, codes, n_samples_overall, weights, batch_size,
                # each group has a stream of its own: paired draws have to be independent
                derive_seed("differential", str(task.name1), str(task.name2), side, seed=seed),
            )
            for side, members, codes in zip(
                (1, 2), (task.cells1, task.cells2), batches, strict=True
            )
        ]  # fmt: skip
        moments = {name: (values[2 * i], values[2 * i + 1]) for name, values in raw.items()}
        table: dict[str, Any]
        if mode == "vanilla":
            table = vanilla_statistics(*draws) | _means(*draws)
        else:
            table = _change(draws, moments.get("mean"), delta, pseudocounts, test_mode)
        if all_stats:
            for name, column in _RAW.items():
                table[f"{column}1"], table[f"{column}2"] = moments[name]
        if mode == "change":
            called = expected_fdr_calls(table["proba_de"], fdr_target)
            table[f"is_de_fdr_{fdr_target}"] = called
        tables.append(_label(table, task, model.var_names, mode))
    return pd.concat(tables)


def _draw_scales(
    model: BaseModelClass,
    manager: AnnDataManager,
    cells: NDArray[np.bool_],
    batches: Sequence[int | None],
    num_draws: int,
    weights: Weights,
    batch_size: int | None,
    seed: int,
) -> NDArray[np.float32]:
    """Draws of the average posterior of a group, equal shares in each batch, ``(S, genes)``."""
    rows = spread_draws(np.flatnonzero(cells), num_draws, generator("draws", "cells", seed=seed))
    result = np.empty((num_draws, len(model.var_names)), dtype=np.float32)
    filled = 0
    for share, code in zip(np.array_split(rows, len(batches)), batches, strict=True):
        if not len(share):
            continue
        for values in stream_decoded(
            model,
            read_sites(["rho"]),
            manager,
            share,
            batches=[code],
            weights=weights,
            batch_size=batch_size,
            seed=derive_seed("batch", str(code), seed=seed),
        ):
            block = values["rho"][0].cpu().numpy()
            result[filled : filled + len(block)] = block
            filled += len(block)
    return result


def _change(
    draws: Sequence[NDArray[Any]],
    raw_means: Sequence[NDArray[Any]] | None,
    delta: float,
    pseudocounts: float | None,
    test_mode: Literal["two", "three"],
) -> dict[str, Any]:
    if pseudocounts is None:
        assert raw_means is not None
        pseudocounts = estimate_pseudocount(
            draws[0], draws[1], raw_means[0] == 0, raw_means[1] == 0
        )
    statistics = change_statistics(
        *draws, delta=delta, pseudocounts=pseudocounts, test_mode=test_mode
    )
    first = ("proba_de", "proba_not_de", "bayes_factor")
    return {
        **{name: statistics.pop(name) for name in first},
        **_means(*draws),
        "pseudocounts": pseudocounts,
        "delta": delta,
        **statistics,
    }


def _means(draws1: NDArray[Any], draws2: NDArray[Any]) -> dict[str, Any]:
    return {"scale1": draws1.mean(0, dtype=float), "scale2": draws2.mean(0, dtype=float)}


def _label(table: dict[str, Any], task: Comparison, genes: pd.Index, mode: str) -> pd.DataFrame:
    frame = pd.DataFrame(table, index=genes)
    frame["comparison"] = f"{task.name1} vs {task.name2}"
    frame["group1"], frame["group2"] = task.name1, task.name2
    key = "proba_de" if mode == "change" else "bayes_factor"
    return frame.sort_values(key, ascending=False, kind="stable")


def _batches(
    model: BaseModelClass, batch_correction: bool, batchid1: Any, batchid2: Any
) -> tuple[Sequence[int | None], Sequence[int | None]]:
    if not batch_correction:
        if batchid1 is not None or batchid2 is not None:
            raise ModelError(
                "batchid1 and batchid2 say which batches to decode in; pass batch_correction=True "
                "too."
            )
        return [None], [None]
    known = list(range(model.summary_stats.n_batch))
    first, second = (
        known if names is None else batch_codes(model, names) for names in (batchid1, batchid2)
    )
    # in one order, so that pairs of draws share a batch where both groups have the same ones
    return sorted(first, key=str), sorted(second, key=str)


def _refuse_globals(model: BaseModelClass) -> None:
    if names := model.sites.names(Role.GLOBAL):
        raise ModelError(
            f"differential_expression draws cells independently, but {', '.join(names)} is shared "
            "by all cells. Compare joint draws from sample_posterior('rho') with "
            "pyrovi.posterior.differential.change_statistics."
        )


def _progress(tasks: Sequence[Comparison], silent: bool) -> Any:
    if silent or len(tasks) == 1 or not settings.enable_progress_bar:
        return tasks
    from rich.progress import track

    return track(tasks, description="Differential expression", transient=True)
