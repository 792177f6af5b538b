"""Expected log predictive density: what every way of comparing models estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi.errors import DataError
from pyrovi.module.ledger import Role
from pyrovi.module.plates import OBS_PLATE

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass


@dataclass(frozen=True, repr=False)
class Elpd:
    """An estimate of the expected log predictive density of the observations, in nats.

    Attributes
    ----------
    kind
        How it was estimated: ``"loo"``, ``"held_out"``, ``"cross_validation"`` or ``"thinning"``.
    elpd
        Sum over the observations; higher is better.
    se
        Standard error of the sum, as an estimate for other observations of the same population.
    pointwise
        One row for each observation, indexed by its name: ``elpd`` and what else is known of it.
    sites
        Observed sites that are predicted -> shape of one observation.
    n_bad
        Number of observations whose estimate is not to be relied on (``pointwise["good"]`` false).
    settings
        Numbers of draws, seeds and the like that the estimate was made with.
    n_obs
        Number of observations that the sum is for; more than ``pointwise`` has when subsampled.
    approximation
        For a subsampled estimate, the cheap approximation of every observation; otherwise ``None``.
    subsampling_se
        Standard error from having evaluated a subsample only; 0 if all were evaluated.
    """

    kind: str
    elpd: float
    se: float
    pointwise: pd.DataFrame
    sites: Mapping[str, tuple[int, ...]]
    n_bad: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    n_obs: int = 0
    approximation: pd.Series | None = None
    subsampling_se: float = 0.0

    def summary(self) -> pd.DataFrame:
        """One row: the sum, its errors, and how many observations it cannot be relied on for."""
        import pandas as pd

        row = {
            "observations": self.n_obs,
            "elpd": self.elpd,
            "se": self.se,
            **self._more(),
            "bad": self.n_bad,
        }
        if self.approximation is not None:
            row |= {"evaluated": len(self.pointwise), "subsampling se": self.subsampling_se}
        return pd.DataFrame([row], index=pd.Index([self.kind], name="estimate"))

    def __repr__(self) -> str:
        table = self.summary().to_string(float_format="{:.2f}".format)
        head = f"{type(self).__name__} of {', '.join(self.sites)}"
        return "\n".join([*self.warning(), head, table, *self.notes()])

    def _repr_html_(self) -> str:
        table = self.summary().to_html(float_format="{:.2f}".format)
        warning = "".join(f"<div><b>{escape(words)}</b></div>" for words in self.warning())
        return warning + str(table) + "".join(f"<div>{escape(note)}</div>" for note in self.notes())

    def notes(self) -> list[str]:
        """What to mind, in words."""
        if not self.n_bad:
            return []
        return [f"unreliable for {self.n_bad} of {len(self.pointwise)} observations"]

    @property
    def unusable(self) -> bool:
        """Whether the sum says nothing, so that models cannot be compared by it."""
        return False

    def warning(self) -> list[str]:
        """What is said before anything else."""
        return []

    def _more(self) -> dict[str, float]:
        return {}


def total(pointwise: NDArray[np.float64]) -> tuple[float, float]:
    """Sum over observations, and its standard error ``sqrt(N var)``; NaN for a single one."""
    n = len(pointwise)
    error = float(np.sqrt(n * pointwise.var(ddof=1))) if n > 1 else float("nan")
    return float(pointwise.sum()), error


def difference_estimate(
    values: NDArray[np.float64], approximations: NDArray[np.float64], sampled: NDArray[np.int64]
) -> tuple[float, float, float]:
    r"""Estimate a sum over a population from a subsample and a cheap approximation of every term.

    .. math:: \sum_i \tilde\pi_i + \frac{N}{m} \sum_{j \in S} (\pi_j - \tilde\pi_j)

    is unbiased however good the approximation is; the better, the smaller is its variance.

    Parameters
    ----------
    values
        Exact terms of the subsample, shape ``(m,)``.
    approximations
        Approximations of all terms, shape ``(N,)``.
    sampled
        Positions of the subsample, drawn without replacement, shape ``(m,)``.

    Returns
    -------
    tuple of float
        The sum; its standard error from subsampling; and an estimate of the standard error
        ``sqrt(N var)`` that the sum of all exact terms would have.

    Raises
    ------
    DataError
        If fewer than two terms have been evaluated.

    References
    ----------
    Magnusson, Vehtari, Jonasson, Andersen: Leave-one-out cross-validation for Bayesian model
    comparison in large data. AISTATS (2020), equations 7 to 9.
    """
    n, m = len(approximations), len(values)
    if m < 2:
        raise DataError(f"A subsample needs at least 2 observations, got {m}.")
    differences = values - approximations[sampled]
    estimate = float(approximations.sum() + n * differences.mean())
    variance = float(n**2 * (1 - m / n) * differences.var(ddof=1) / m)
    squares = (approximations**2).sum() + n * (values**2 - approximations[sampled] ** 2).mean()
    # the square of an unbiased estimate is too large by its variance
    population = (squares - (estimate**2 - variance) / n) * n / (n - 1)
    return estimate, float(np.sqrt(variance)), float(np.sqrt(max(population, 0.0)))


def has_observations(model: BaseModelClass) -> bool:
    """Whether anything stands in the observation plate; if not, the data are one observation."""
    return any(site.is_local for site in model.sites.values())


def observed_sites(model: BaseModelClass) -> dict[str, tuple[int, ...]]:
    """Observed sites in the observation plate and the shape of one observation of each."""
    sites = model.sites
    return {
        name: tuple(size for size in sites[name].shape if isinstance(size, int))
        for name in sites.names(Role.OBSERVED)
        if OBS_PLATE in sites[name].dims
    }


def predicted_sites(model: BaseModelClass) -> dict[str, tuple[int, ...]]:
    """What a log density of single observations is of: observed sites, and ``pyro.factor`` terms.

    A factor has no values, so its shape is empty.
    """
    sites = model.sites
    factors = {name: () for name in sites.names(Role.FACTOR) if sites[name].is_local}
    return {**observed_sites(model), **factors}
