"""Differential statistics of two sets of posterior draws: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from anndata.abc import CSCDataset
from numpy.typing import NDArray
from scipy import sparse

from pyrovi.errors import ModelError

BLOCK = 2**21
"""Largest number of draws x genes (or observations x genes) that are worked on at a time."""

_TINY = 1e-8
"""Keeps the logarithm of a probability finite that no draw supports."""

_SMALLEST_PSEUDOCOUNT = 1e-10

Array = NDArray[Any]


def bayes_factor(p: Array, q: Array) -> Array:
    r"""Log of the ratio of two probabilities, :math:`\log (p + 10^{-8}) - \log (q + 10^{-8})`."""
    return np.log(p + _TINY) - np.log(q + _TINY)


def expected_fdr_calls(probabilities: Array, target: float) -> NDArray[np.bool_]:
    r"""Largest set of discoveries whose posterior expected false discovery rate is on target.

    With the probabilities in descending order, the expected rate of the first :math:`k` calls is
    :math:`\frac{1}{k} \sum_{i \le k} (1 - p_{(i)})`; it grows with :math:`k`.

    Parameters
    ----------
    probabilities
        Posterior probability of each hypothesis, shape ``(n,)``.
    target
        Largest expected rate, between 0 and 1.

    Returns
    -------
    numpy.ndarray
        Which hypotheses are called, shape ``(n,)``.

    Raises
    ------
    ModelError
        If the target is not between 0 and 1.

    References
    ----------
    Newton, Noueiry, Sarkar, Ahlquist: Detecting differential gene expression with a semiparametric
    hierarchical mixture method. Biostatistics 5, 155-176 (2004).
    """
    if not 0 <= target <= 1:
        raise ModelError(f"fdr_target must be between 0 and 1, got {target!r}; 0.05 is usual.")
    probabilities = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-probabilities, kind="stable")
    rate = np.cumsum(1 - probabilities[order]) / np.arange(1, len(order) + 1)
    called = np.zeros(len(order), dtype=bool)
    called[order[: int(np.count_nonzero(rate <= target))]] = True
    return called


def estimate_pseudocount(
    draws1: Array, draws2: Array, silent1: Array, silent2: Array, quantile: float = 0.9
) -> float:
    """Expression that a gene without any count in a group may still seem to have.

    The ``quantile`` over these genes of their largest draw: fold changes below it are noise.

    Parameters
    ----------
    draws1, draws2
        Draws of the two groups, shape ``(S, genes)``.
    silent1, silent2
        Which genes have no count in the group, shape ``(genes,)``.
    quantile
        The quantile.

    Returns
    -------
    float
        At least 1e-10, which is also the answer if every gene is expressed in both groups.
    """
    pairs = ((draws1, silent1), (draws2, silent2))
    largest = np.concatenate([draws.max(0)[np.asarray(silent)] for draws, silent in pairs])
    if not len(largest):
        return _SMALLEST_PSEUDOCOUNT
    return max(float(np.quantile(largest, quantile)), _SMALLEST_PSEUDOCOUNT)


def change_statistics(
    draws1: Array,
    draws2: Array,
    *,
    delta: float,
    pseudocounts: float,
    test_mode: Literal["two", "three"] = "three",
) -> dict[str, Array]:
    r"""Statistics of the log fold change of paired draws, for each gene.

    .. math:: \beta_{sg} = \log_2 (x_{sg} + c) - \log_2 (y_{sg} + c)

    Parameters
    ----------
    draws1, draws2
        Draws :math:`x` and :math:`y`, each of shape ``(S, genes)`` and not negative.
    delta
        Smallest absolute log fold change that counts as a difference.
    pseudocounts
        The offset :math:`c`.
    test_mode
        ``"three"``: ``proba_de`` is the larger of :math:`P(\beta \ge \delta)` and
        :math:`P(\beta \le -\delta)`, so draws of both signs do not add up. ``"two"``:
        :math:`P(|\beta| \ge \delta)`.

    Returns
    -------
    dict
        ``proba_de``, ``proba_not_de``, ``bayes_factor``, ``lfc_mean``, ``lfc_median``, ``lfc_std``,
        ``lfc_min``, ``lfc_max``: arrays of shape ``(genes,)``.

    Raises
    ------
    ModelError
        If ``test_mode`` is unknown, ``delta`` or ``pseudocounts`` is negative, or the shapes
        differ.
    """
    _check_pair(draws1, draws2)
    if test_mode not in ("two", "three"):
        raise ModelError(f"test_mode must be 'two' or 'three', got {test_mode!r}.")
    if delta < 0 or pseudocounts < 0:
        raise ModelError(
            f"delta and pseudocounts must not be negative, got {delta!r} and {pseudocounts!r}."
        )
    offset = np.asarray(pseudocounts, dtype=draws1.dtype)
    blocks = []
    for genes in _gene_blocks(draws1):
        # one gene per row: medians of contiguous draws are several times faster
        lfc = np.ascontiguousarray(
            (np.log2(draws1[:, genes] + offset) - np.log2(draws2[:, genes] + offset)).T
        )
        up, down = (lfc >= delta).mean(1), (lfc <= -delta).mean(1)
        both = up + down if delta > 0 else np.ones_like(up)
        blocks.append(
            {
                "proba_de": np.maximum(up, down) if test_mode == "three" else both,
                "lfc_mean": lfc.mean(1, dtype=np.float64),
                "lfc_median": np.median(lfc, axis=1),
                "lfc_std": lfc.std(1, dtype=np.float64),
                "lfc_min": lfc.min(1),
                "lfc_max": lfc.max(1),
            }
        )
    statistics = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    probability = statistics.pop("proba_de")
    return {
        "proba_de": probability,
        "proba_not_de": 1 - probability,
        "bayes_factor": bayes_factor(probability, 1 - probability),
        **statistics,
    }


def vanilla_statistics(draws1: Array, draws2: Array) -> dict[str, Array]:
    """Probability that one group's expression is the larger, for each gene.

    Parameters
    ----------
    draws1, draws2
        Paired draws, each of shape ``(S, genes)``. Equal draws count for both groups by half, so
        exchanging the groups changes the sign of the Bayes factor and nothing else.

    Returns
    -------
    dict
        ``proba_m1``, ``proba_m2`` (they sum to one) and ``bayes_factor``, of shape ``(genes,)``.

    Raises
    ------
    ModelError
        If the shapes differ.

    References
    ----------
    Lopez et al. 2018, Nature Methods 15:1053.
    """
    _check_pair(draws1, draws2)
    above, below = [], []
    for genes in _gene_blocks(draws1):
        above.append((draws1[:, genes] > draws2[:, genes]).sum(0))
        below.append((draws1[:, genes] < draws2[:, genes]).sum(0))
    more, less = np.concatenate(above), np.concatenate(below)
    tied = len(draws1) - more - less
    first, second = ((count + tied / 2) / len(draws1) for count in (more, less))
    return {"proba_m1": first, "proba_m2": second, "bayes_factor": bayes_factor(first, second)}


def raw_moments(counts: Any, groups: NDArray[np.bool_]) -> dict[str, Array]:
    """Means of raw counts within groups of observations, in one pass over the counts.

    Parameters
    ----------
    counts
        Counts, dense or sparse, in memory or on disk, shape ``(n, genes)``.
    groups
        Membership, shape ``(groups, n)``; groups may overlap, and none is empty.

    Returns
    -------
    dict
        ``mean``; ``non_zeros_proportion``; and ``normalized_mean``, the mean of the counts per
        10,000 of their observation. Each of shape ``(groups, genes)``, in double precision.
    """
    if isinstance(counts, CSCDataset):  # stored by column: row blocks would read all of it each
        counts = counts.to_memory()
    n, n_genes = counts.shape
    if sparse.issparse(counts):
        counts = counts.tocsr()
    totals = np.zeros((3, len(groups), n_genes))
    step = max(1, BLOCK // max(1, n_genes))
    for start in range(0, n, step):
        member = groups[:, start : start + step]
        if not (used := member.any(0)).any():
            continue
        block = counts[start : start + step]
        if not sparse.issparse(block):
            block = np.asarray(block)
        block, weight = block[used].astype(np.float64), member[:, used].astype(np.float64)
        library = np.asarray(block.sum(1)).reshape(-1)
        scale = 1e4 / np.where(library > 0, library, 1.0)
        expressed = (block != 0).astype(np.float64)
        for total, rows, values in (
            (totals[0], weight, block),
            (totals[1], weight, expressed),
            (totals[2], weight * scale, block),
        ):
            total += (values.T @ rows.T).T
    means = totals / groups.sum(1)[:, None]
    return {"mean": means[0], "non_zeros_proportion": means[1], "normalized_mean": means[2]}


def _gene_blocks(draws: Array) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, len(draws)))
    for start in range(0, draws.shape[1], step):
        yield slice(start, start + step)


def _check_pair(draws1: Array, draws2: Array) -> None:
    if draws1.ndim != 2 or draws1.shape != draws2.shape or not draws1.size:
        raise ModelError(
            "The draws of the two groups must have the same shape (draws, genes), got "
            f"{draws1.shape} and {draws2.shape}; take as many draws of one as of the other."
        )
