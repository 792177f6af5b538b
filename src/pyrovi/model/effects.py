r"""Effects of conditions and donors: summaries and decisions. Functions of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrovi.errors import MissingKeyError, ModelError
from pyrovi.posterior.differential import expected_fdr_calls

if TYPE_CHECKING:
    from pyrovi.model.hierarchical_glm import HierarchicalGLM

NUM_SAMPLES = 2000
"""Draws of a guide: a probability of 0.95 then has a standard error of 0.005."""

_LOG2 = float(np.log(2))


def get_effects(
    model: HierarchicalGLM,
    contrast: tuple[Any, Any] | None = None,
    *,
    coefficients: str | list[str] | None = None,
    delta: float = 0.25,
    fdr: float = 0.05,
    probability: float = 0.95,
    num_samples: int | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Effects on every gene as log2 fold changes, and which of them are large enough.

    An effect is decided for the more probable side: ``p_effect`` is the larger one of
    :math:`P(\mathrm{lfc} > \delta)` and :math:`P(\mathrm{lfc} < -\delta)`. The calls of a contrast
    are the largest set of genes whose posterior expected false discovery rate, the mean of
    ``1 - p_effect``, is at most ``fdr``. The rate is that of effects that are smaller than
    ``delta``, or of the other sign. With ``delta=0`` it is the rate of wrong signs, and says
    nothing of genes without any effect: under a continuous prior there are none.

    Parameters
    ----------
    contrast
        Two levels of the condition ``(first, second)``: first over second. ``None``: every level
        over the reference.
    coefficients
        Names among :attr:`coefficient_names` instead (batches, covariates).
    delta
        Smallest log2 fold change that matters.
    fdr
        Largest posterior expected false discovery rate of the calls.
    probability
        Content of the central interval ``lower``, ``upper``.
    num_samples
        Number of joint draws; ``None``: all stored ones, or 2000 of the guide.
    seed
        Root seed; ``None`` for ``settings.seed``.

    Returns
    -------
    pandas.DataFrame
        One row per gene and contrast, indexed by gene, in the order of the data: ``contrast``;
        ``mean``, ``sd``, ``lower``, ``upper`` of the log2 fold change; ``p_direction``, the
        probability of the more probable sign; ``lfsr``, the local false sign rate, 1 minus that;
        ``p_effect``; ``direction`` (1, -1); ``called``.

    Raises
    ------
    MissingKeyError
        If a level or coefficient does not exist.
    ModelError
        If an argument is out of its range, or contrast and coefficients are both given.
    """
    _check(delta, probability)
    draws = _draws(model, "beta", num_samples, seed)  # (S, coefficients, genes)
    tables = []
    for name, effect in _contrasts(model, draws, contrast, coefficients).items():
        table = effect_table(effect, delta, fdr, probability)
        table.insert(0, "contrast", name)
        tables.append(table.set_index(model.var_names))
    return pd.concat(tables)


def donor_effects(
    model: HierarchicalGLM,
    *,
    delta: float = 0.25,
    fdr: float = 0.05,
    probability: float = 0.95,
    num_samples: int | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    """Effects of the donors on every gene: how far each is from what its condition explains.

    Parameters
    ----------
    delta, fdr, probability, num_samples, seed
        As in :meth:`get_effects`; the rate is that over the genes of one donor.

    Returns
    -------
    pandas.DataFrame
        As of :meth:`get_effects`, one row per gene and donor, with a column ``donor``.

    Raises
    ------
    ModelError
        If the model has no donors.
    """
    _check(delta, probability)
    if not model.has_donors:
        raise ModelError(
            "The data were set up without donors; set them up with donor_key= to have their "
            "effects."
        )
    draws = _draws(model, "u", num_samples, seed)
    tables = []
    for i, donor in enumerate(model.get_state_registry("donor")["categorical_mapping"]):
        table = effect_table(draws[:, i], delta, fdr, probability)
        table.insert(0, "donor", donor)
        tables.append(table.set_index(model.var_names))
    return pd.concat(tables)


def effect_table(draws: NDArray[Any], delta: float, fdr: float, probability: float) -> pd.DataFrame:
    """Summary and calls of draws of effects; see :func:`get_effects`.

    Parameters
    ----------
    draws
        Draws of the effects, shape ``(S, K)``.
    delta, fdr, probability
        As there.
    """
    tail = (1 - probability) / 2
    lower, upper = np.quantile(draws, [tail, 1 - tail], axis=0)
    positive = (draws > 0).mean(0) + 0.5 * (draws == 0).mean(0)
    above, below = (draws > delta).mean(0), (draws < -delta).mean(0)
    p_direction, p_effect = np.maximum(positive, 1 - positive), np.maximum(above, below)
    return pd.DataFrame(
        {
            "mean": draws.mean(0),
            "sd": draws.std(0, ddof=1),
            "lower": lower,
            "upper": upper,
            "p_direction": p_direction,
            "lfsr": 1 - p_direction,
            "p_effect": p_effect,
            "direction": np.where(positive >= 0.5, 1, -1),
            "called": expected_fdr_calls(p_effect, fdr),
        }
    )


def _draws(
    model: HierarchicalGLM, site: str, num_samples: int | None, seed: int | None
) -> NDArray[np.float64]:
    """Draws of effects on the log2 scale."""
    from pyrovi.module.stored import StoredDraws

    if num_samples is None and not isinstance(model.module.posterior, StoredDraws):
        num_samples = NUM_SAMPLES
    draws = model.sample_posterior(site, num_samples=num_samples, seed=seed)[site]
    return np.asarray(draws.values, dtype=np.float64) / _LOG2


def _contrasts(
    model: HierarchicalGLM,
    draws: NDArray[np.float64],
    contrast: tuple[Any, Any] | None,
    coefficients: str | list[str] | None,
) -> dict[str, NDArray[np.float64]]:
    """Name -> draws ``(S, genes)``."""
    names = model.coefficient_names
    if coefficients is not None:
        if contrast is not None:
            raise ModelError("Give contrast= (levels of the condition) or coefficients=, not both.")
        wanted = [coefficients] if isinstance(coefficients, str) else list(coefficients)
        for name in wanted:
            if name not in names:
                raise MissingKeyError(
                    f"{name!r} is no coefficient; there are: {', '.join(map(repr, names))}."
                )
        return {name: draws[:, names.index(name)] for name in wanted}
    others = [level for level in model.conditions if level != model.reference]
    of_level = {level: draws[:, i] for i, level in enumerate(others)}
    of_level[model.reference] = np.zeros_like(draws[:, 0])
    if contrast is None:
        return {f"{level} vs {model.reference}": of_level[level] for level in others}
    if len(contrast) != 2 or contrast[0] == contrast[1]:
        raise ModelError(f"contrast={contrast!r}: expected two different levels (first, second).")
    for level in contrast:
        if level not in of_level:
            raise MissingKeyError(
                f"{level!r} is no level of the condition; there are: "
                f"{', '.join(map(repr, model.conditions))}."
            )
    first, second = contrast
    return {f"{first} vs {second}": of_level[first] - of_level[second]}


def _check(delta: float, probability: float) -> None:
    if not delta >= 0:
        raise ModelError(f"delta must not be negative, got {delta!r}; 0 asks for the sign alone.")
    if not 0 < probability < 1:
        raise ModelError(f"probability must lie between 0 and 1, got {probability!r}.")
