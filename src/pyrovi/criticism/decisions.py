"""Decisions: which contrasts of posterior draws are large enough, at a given rate of errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pyrovi._rng import generator
from pyrovi.criticism.contrasts import Array, Change, contrast_along, log2_positive
from pyrovi.criticism.group_means import GroupMeans, group_means
from pyrovi.criticism.num_draws import many_draws
from pyrovi.errors import ModelError
from pyrovi.posterior.differential import expected_fdr_calls

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass


def decide(
    model: BaseModelClass,
    site: str,
    contrast: tuple[Any, Any] | None = None,
    *,
    dim: str | None = None,
    groupby: str | None = None,
    by: str | None = None,
    population: bool = False,
    change: Change = "difference",
    pseudocount: float = 0.0,
    rope: float | tuple[float, float] = 0.0,
    fdr: float = 0.05,
    probability: float = 0.95,
    weights: Literal["uniform", "importance"] = "uniform",
    num_samples: int | None = None,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Differential test of any site on joint posterior draws.

    One of three contrasts :math:`\beta` is formed in every joint draw:

    - of a site without observations, along one of its dimensions (``dim="condition",
      contrast=("stim", "ctrl")``);
    - of a site with observations, between the means of two groups of them (``groupby="condition"``
      names a column of ``obs``). With ``by="donor"`` the observations of each donor are averaged
      first, and the donors of a group then count equally;
    - of a site without observations and without ``contrast``: the site itself, against zero.

    A test is decided for the more probable side: its ``probability`` is the larger one of
    :math:`P(\beta > \text{rope}_{high})` and :math:`P(\beta < \text{rope}_{low})`, so an effect of
    the wrong sign counts as a false discovery. The calls are the largest set whose posterior
    expected false discovery rate is at most ``fdr``.

    Parameters
    ----------
    model
        A fitted model.
    site
        A latent, deterministic or observed site (of which predictive draws are taken).
    contrast
        The two labels ``(first, second)``: first minus second, or first over second.
    dim
        Dimension of the site that the labels belong to; may be left out if only one has both.
    groupby
        Column of ``obs`` that holds the labels, for a site with observations.
    by
        Column of ``obs`` with the units (donors, samples) that the observations come from.
    population
        Let the contrast be of the populations that the donors are a sample of: in every draw the
        donors of a group get weights of the Bayesian bootstrap, so that the differences between
        donors widen the interval. Otherwise it is of these donors.
    change
        ``"difference"``, or ``"log2_ratio"`` (log fold change). With ``by`` the log fold change is
        that of geometric means of the donors' means.
    pseudocount
        Added to both sides of a ratio.
    rope
        Region of practical equivalence ``(low, high)``, or half its width around zero: changes
        inside are too small to matter. 0 asks for the sign alone.
    fdr
        Largest posterior expected false discovery rate of the calls.
    probability
        Content of the central interval ``lower``, ``upper``.
    weights
        ``"importance"`` resamples the draws of local latents towards the posterior of the model.
    num_samples
        Number of joint draws; ``None``: all stored ones, or 1000 of a guide.
    adata, indices, batch_size, seed
        As in :meth:`~pyrovi.model.BaseModelClass.sample_posterior`. Group means are added up
        minibatch by minibatch: memory holds draws x groups x variables.

    Returns
    -------
    pandas.DataFrame
        One row for each element of the site, under the data's own names, in their order: ``mean``,
        ``median``, ``sd``, ``lower``, ``upper`` of the contrast; ``p_positive``, the probability
        that it is above zero (draws at zero count half); ``p_above``, ``p_rope``, ``p_below``;
        ``probability``, ``direction`` (1, -1) of the decision, and ``called``.

    Raises
    ------
    ModelError
        If the site has no such contrast, or an argument is out of its range.
    MissingKeyError
        If a column, dimension or label does not exist.

    References
    ----------
    Kruschke: Rejecting or accepting parameter values in Bayesian estimation. Advances in Methods
    and Practices in Psychological Science 1, 270-280 (2018).

    Rubin: The Bayesian bootstrap. Annals of Statistics 9, 130-134 (1981).
    """
    num_samples = many_draws(model, num_samples)
    _check_options(change, pseudocount, probability, num_samples, population, by)
    low, high = _region(rope)
    known = model.sites[site]
    query: dict[str, Any] = {
        "num_samples": num_samples,
        "adata": adata,
        "indices": indices,
        "batch_size": batch_size,
        "seed": seed,
    }
    if known.is_local:
        if contrast is None or groupby is None or dim is not None:
            raise ModelError(
                f"{site!r} has one value per observation: name two groups of observations to "
                "compare, groupby='<column of obs>' and contrast=(first, second)."
            )
        means = group_means(model, site, groupby, contrast, by=by, weights=weights, **query)
        first, second = (
            _combine(means, side, change, pseudocount, population, seed) for side in (0, 1)
        )
        effect, index = first - second, means.index
    else:
        if groupby is not None or by is not None or weights != "uniform":
            raise ModelError(
                f"{site!r} has no value per observation, so there are no groups of observations "
                "to average (groupby, by) and no local draws to weigh; use dim= and contrast=."
            )
        draws = model.sample_posterior(site, **query)[site]
        effect, index = contrast_along(draws, known, contrast, dim, change, pseudocount)
    return decision_table(effect, index, low, high, fdr, probability)


def decision_table(
    effect: Array,
    index: pd.Index,
    low: float,
    high: float,
    fdr: float,
    probability: float = 0.95,
) -> pd.DataFrame:
    """Summary and calls of draws of contrasts, see :func:`decide`.

    Parameters
    ----------
    effect
        Draws of the contrasts, shape ``(S, K)``.
    index
        Names of the contrasts.
    low, high
        Region of practical equivalence.
    fdr
        Largest posterior expected false discovery rate.
    probability
        Content of the interval.
    """
    import pandas as pd

    above, below = (effect > high).mean(0), (effect < low).mean(0)
    tail = (1 - probability) / 2
    lower, median, upper = np.quantile(effect, [tail, 0.5, 1 - tail], axis=0)
    best = np.maximum(above, below)
    return pd.DataFrame(
        {
            "mean": effect.mean(0),
            "median": median,
            "sd": effect.std(0, ddof=1),
            "lower": lower,
            "upper": upper,
            "p_positive": (effect > 0).mean(0) + 0.5 * (effect == 0).mean(0),
            "p_above": above,
            "p_rope": ((effect >= low) & (effect <= high)).mean(0),
            "p_below": below,
            "probability": best,
            "direction": np.where(above >= below, 1, -1),
            "called": expected_fdr_calls(best, fdr),
        },
        index=index,
    )


def _check_options(
    change: str,
    pseudocount: float,
    probability: float,
    num_samples: int,
    population: bool,
    by: str | None,
) -> None:
    if change not in ("difference", "log2_ratio"):
        raise ModelError(f"change must be 'difference' or 'log2_ratio', got {change!r}.")
    if pseudocount < 0 or (pseudocount and change == "difference"):
        raise ModelError(
            f"pseudocount={pseudocount!r}: expected a number of at least 0, and only with "
            "change='log2_ratio'; it cancels in a difference."
        )
    if not 0 < probability < 1:
        raise ModelError(f"probability must lie between 0 and 1, got {probability!r}.")
    if num_samples < 2:
        raise ModelError(f"Decisions need at least 2 draws, got num_samples={num_samples}.")
    if population and by is None:
        raise ModelError("population=True needs by=, the column of obs that names the donors.")


def _region(rope: float | tuple[float, float]) -> tuple[float, float]:
    low, high = rope if isinstance(rope, (tuple, list)) else (-rope, rope)
    if not low <= high:
        raise ModelError(
            f"rope={rope!r} is empty: expected half its width (not negative), or (low, high)."
        )
    return float(low), float(high)


def _combine(
    means: GroupMeans,
    side: int,
    change: Change,
    pseudocount: float,
    population: bool,
    seed: int | None,
) -> Array:
    """One group in every draw, shape ``(S, K)``: the mean over its units."""
    values = means.values[means.side == side]  # (units, S, K)
    if change == "log2_ratio":
        values = log2_positive(values, pseudocount)
    if not population:
        return np.asarray(values.mean(0))
    if len(values) < 2:
        raise ModelError(
            f"population=True: the group {means.names[side]!r} has a single unit, which says "
            "nothing about the differences between units. Use population=False."
        )
    rng = generator("decide", "population", side, seed=seed)
    shares = rng.dirichlet(np.ones(len(values)), size=values.shape[1])
    return np.asarray(np.einsum("su,usk->sk", shares, values))
