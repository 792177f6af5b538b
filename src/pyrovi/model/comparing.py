"""Groups of cells compared feature by feature: what differential expression of a model is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from pyrovi._rng import derive_seed, generator
from pyrovi._settings import settings
from pyrovi.data import AnnDataManager
from pyrovi.errors import ModelError
from pyrovi.model.decoding import Weights, batch_codes, spread_draws, stream_decoded
from pyrovi.model.groups import Comparison, comparisons
from pyrovi.module.ledger import Role
from pyrovi.module.minified import is_minified, no_counts
from pyrovi.posterior.differential import (
    change_statistics,
    estimate_pseudocount,
    expected_fdr_calls,
    vanilla_statistics,
)

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

_RAW = {
    "mean": "raw_mean",
    "non_zeros_proportion": "non_zeros_proportion",
    "normalized_mean": "raw_normalized_mean",
}


@dataclass(frozen=True)
class Features:
    """What of a model is compared between groups of cells."""

    names: pd.Index
    """Names of the features."""
    scale: Callable[[Mapping[str, Any]], Tensor]
    """Their normalised expression, shape ``(n, features)``, from the nodes of a model trace."""
    raw_moments: Callable[[AnnDataManager, NDArray[np.bool_]], dict[str, NDArray[Any]]]
    """Moments of their counts in groups of cells, as of
    :func:`~pyrovi.posterior.differential.raw_moments`."""


def compare_groups(
    model: BaseModelClass,
    features: Features,
    *,
    adata: Any,
    groupby: str | None,
    group1: Any,
    group2: Any,
    idx1: Any,
    idx2: Any,
    mode: Literal["change", "vanilla"],
    delta: float,
    batch_size: int | None,
    all_stats: bool,
    batch_correction: bool,
    batchid1: Sequence[Any] | None,
    batchid2: Sequence[Any] | None,
    fdr_target: float,
    silent: bool,
    weights: Weights,
    n_samples_overall: int,
    pseudocounts: float | None,
    test_mode: Literal["two", "three"],
    seed: int | None,
) -> pd.DataFrame:
    """Compare features of groups of cells.

    Parameters and the table are those of
    :func:`~pyrovi.model.differential.differential_expression`.
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
        raise no_counts(
            "Means of counts (all_stats=True, pseudocounts=None)",
            "Or leave them out: all_stats=False, and a number of pseudocounts, e.g. 1e-5.",
        )
    raw = features.raw_moments(manager, cells) if by_counts else {}
    tables = []
    for i, task in enumerate(_progress(tasks, silent)):
        draws = [
            _draw_scales(
                model, features, manager, members, codes, n_samples_overall, weights, batch_size,
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
        tables.append(_label(table, task, features.names, mode))
    return pd.concat(tables)


def _draw_scales(
    model: BaseModelClass,
    features: Features,
    manager: AnnDataManager,
    cells: NDArray[np.bool_],
    batches: Sequence[int | None],
    num_draws: int,
    weights: Weights,
    batch_size: int | None,
    seed: int,
) -> NDArray[np.float32]:
    """Draws of the average posterior of a group, equal shares in each batch, ``(S, features)``."""
    rows = spread_draws(np.flatnonzero(cells), num_draws, generator("draws", "cells", seed=seed))
    result = np.empty((num_draws, len(features.names)), dtype=np.float32)
    filled = 0
    for share, code in zip(np.array_split(rows, len(batches)), batches, strict=True):
        if not len(share):
            continue
        for values in stream_decoded(
            model,
            lambda nodes: {"scale": features.scale(nodes)},
            manager,
            share,
            batches=[code],
            weights=weights,
            batch_size=batch_size,
            seed=derive_seed("batch", str(code), seed=seed),
        ):
            block = values["scale"][0].cpu().numpy()
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


def _label(table: dict[str, Any], task: Comparison, names: pd.Index, mode: str) -> pd.DataFrame:
    frame = pd.DataFrame(table, index=names)
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
