"""Comparison of models by how well they predict the same observations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi.criticism.count_thinning import thinning
from pyrovi.criticism.elpd import Elpd, difference_estimate, total
from pyrovi.criticism.held_out_density import cross_validate, held_out
from pyrovi.criticism.leave_one_out import loo
from pyrovi.criticism.stacking import stacking_weights
from pyrovi.errors import DataError, ModelError

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass

ESTIMATORS: dict[str, Callable[..., Elpd]] = {
    "loo": loo,
    "held_out": held_out,
    "cross_validation": cross_validate,
    "thinning": thinning,
}
"""What :func:`compare` can compare by."""

_FEWEST = 100
"""Observations below which the normal approximation of a difference is not to be trusted."""

_SMALL = 4.0
"""A difference (nats) below which models predict alike, whatever its standard error."""


def compare(
    models: Mapping[str, BaseModelClass | Elpd], *, by: str = "loo", **kwargs: Any
) -> pd.DataFrame:
    """Compare models by their expected log predictive density, the best first.

    Parameters
    ----------
    models
        Name -> fitted model, or the result of :func:`loo`, :func:`held_out`,
        :func:`cross_validate` or :func:`thinning`.
    by
        How models are judged: ``"loo"``, ``"held_out"``, ``"cross_validation"`` or ``"thinning"``.
        Results have to be of that kind.
    kwargs
        Arguments of that function, the same for every model (seeds of folds, splits and
        subsamples are then the same too).

    Returns
    -------
    pandas.DataFrame
        One row for each model: ``rank``; ``elpd`` and its standard error ``se``, in nats;
        ``elpd_diff`` to the best model and ``dse``, the standard error of this difference, paired
        by observation; ``weight``, of the mixture that predicts best (see
        :func:`stacking_weights`); ``bad``, the number of observations whose estimate is not to be
        relied on; ``note``, what to mind.

    Raises
    ------
    ModelError
        If ``by`` is unknown, a result is of another kind or unusable (LOO whose weights are
        unreliable for more than half of the observations), or the models do not observe the same
        sites.
    DataError
        If there are fewer than two models, or they do not predict the same observations (which are
        matched by name).

    References
    ----------
    Sivula, Magnusson, Matamoros, Vehtari: Uncertainty in Bayesian leave-one-out cross-validation
    based model comparison. arXiv:2008.10296 (2020).
    """
    import pandas as pd

    if by not in ESTIMATORS:
        raise ModelError(f"by={by!r} is unknown; expected one of {', '.join(ESTIMATORS)}.")
    if len(models) < 2:
        raise DataError(f"At least two models are needed for a comparison, got {len(models)}.")
    results = {
        name: model if isinstance(model, Elpd) else ESTIMATORS[by](model, **kwargs)
        for name, model in models.items()
    }
    _check_comparable(results, by)
    ranked = sorted(results, key=lambda name: -results[name].elpd)
    best = results[ranked[0]]
    rows = {name: results[name].pointwise["elpd"].reindex(best.pointwise.index) for name in ranked}
    weights = stacking_weights(np.column_stack([rows[name] for name in ranked]))
    table = []
    for rank, name in enumerate(ranked):
        result = results[name]
        difference, error = _difference(result, best)
        table.append(
            {
                "rank": rank,
                "elpd": result.elpd,
                "se": float(np.hypot(result.se, result.subsampling_se)),
                "elpd_diff": difference,
                "dse": error,
                "weight": weights[rank],
                "bad": result.n_bad,
                "note": _note(result, difference, error),
            }
        )
    return pd.DataFrame(table, index=pd.Index(ranked, name="model"))


def _difference(result: Elpd, best: Elpd) -> tuple[float, float]:
    """Difference to the best model and its paired standard error."""
    index = best.pointwise.index
    values = (result.pointwise["elpd"].reindex(index) - best.pointwise["elpd"]).to_numpy()
    if result.approximation is None or best.approximation is None:
        return total(values)
    cheap = result.approximation.reindex(best.approximation.index) - best.approximation
    sampled = best.approximation.index.get_indexer(index)
    if not np.any(values):
        return 0.0, 0.0
    estimate, subsampling, error = difference_estimate(values, cheap.to_numpy(), sampled)
    return estimate, float(np.hypot(subsampling, error))


def _note(result: Elpd, difference: float, error: float) -> str:
    notes = result.notes()
    if difference < 0 and abs(difference) < _SMALL:
        notes.append("difference below 4 nats: predicts like the best")
    elif difference < 0 and abs(difference) < 2 * error:
        notes.append("difference within two standard errors")
    if len(result.pointwise) < _FEWEST:
        notes.append(f"fewer than {_FEWEST} observations: standard errors are too small")
    return "; ".join(notes)


def _check_comparable(results: Mapping[str, Elpd], by: str) -> None:
    first_name = next(iter(results))
    first = results[first_name]
    for name, result in results.items():
        if result.kind != by:
            raise ModelError(
                f"The result of {name!r} is of kind {result.kind!r}, but models are compared "
                f"by={by!r}; pass by={result.kind!r}, or results of one kind."
            )
        if result.unusable:
            raise ModelError(
                f"The {by} of {name!r} is unusable: {result.n_bad} of {len(result.pointwise)} "
                "observations have unreliable weights, so a comparison would be by chance. Refit "
                "instead: by='cross_validation'; or mend the fit first (diagnose(model))."
            )
        if dict(result.sites) != dict(first.sites):
            raise ModelError(
                f"{name!r} predicts {_described(result)}, but {first_name!r} predicts "
                f"{_described(first)}: densities of different data cannot be compared. Models have "
                "to observe the same sites (the same values, not, say, their logarithms)."
            )
        if (result.approximation is None) != (first.approximation is None):
            raise DataError(
                f"One of {name!r} and {first_name!r} is subsampled and the other is not; use the "
                "same subsample= and seed= for all."
            )
        pairs = [(result.pointwise.index, first.pointwise.index)]
        if result.approximation is not None and first.approximation is not None:
            pairs.append((result.approximation.index, first.approximation.index))
        for index, expected in pairs:
            _check_names(name, index, first_name, expected)


def _check_names(name: str, index: pd.Index, first_name: str, expected: pd.Index) -> None:
    only, missing = index.difference(expected), expected.difference(index)
    if len(only) or len(missing):
        raise DataError(
            f"{name!r} and {first_name!r} do not predict the same observations: {len(only)} are "
            f"only in the first (e.g. {list(only[:2])}), {len(missing)} only in the second (e.g. "
            f"{list(missing[:2])}). Use the same data, split (train with the same seed) and "
            "indices for all."
        )


def _described(result: Elpd) -> str:
    return ", ".join(f"{site!r} of shape {shape}" for site, shape in result.sites.items())
