"""Predictive checks: statistics of the data beside those of data the model would make."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyrovi.criticism.quantiles import Quantiles
from pyrovi.criticism.replicated import observed_site, stream_replicated
from pyrovi.criticism.statistics import (
    VARIABLE,
    Additive,
    CheckedData,
    Extremes,
    Frequencies,
    Moments,
    ObservationZeros,
    Statistic,
    StatisticSpec,
    as_numpy,
)
from pyrovi.errors import ModelError
from pyrovi.model.draws import resolve_num_samples
from pyrovi.module.plates import OBS_PLATE

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from pyrovi.model.base import BaseModelClass


@dataclass(frozen=True)
class PredictiveChecks:
    """Statistics of the observed data and of replicated data sets.

    Attributes
    ----------
    site
        The observed site.
    observed
        Dataset of statistics. By default ``mean``, ``variance`` and ``zero_fraction`` of each
        variable over the observations, and the ``total`` of each observation.
    replicated
        The same with a leading dimension ``draw``: each draw is one replicated data set, made with
        one joint draw of all latents.
    """

    site: str
    observed: xr.Dataset
    replicated: xr.Dataset

    def interval(
        self, statistic: str, probability: float = 0.9
    ) -> tuple[xr.DataArray, xr.DataArray]:
        """Central interval of a statistic over replicated data sets: lower and upper end."""
        tail = (1 - probability) / 2
        ends = self.replicated[statistic].quantile([tail, 1 - tail], dim="draw")
        return ends.isel(quantile=0, drop=True), ends.isel(quantile=1, drop=True)

    def coverage(self, statistic: str, probability: float = 0.9) -> float:
        """Fraction of the observed values that lie in their interval.

        A model that describes the data well has a coverage of at least ``probability``; more is
        usual, because the same data have been used to fit it.
        """
        low, high = self.interval(statistic, probability)
        values = self.observed[statistic]
        return float(((values >= low) & (values <= high)).mean())

    def p_values(self, statistic: str) -> xr.DataArray:
        """Posterior predictive p-values: probability that a replicated value exceeds the observed.

        Ties count one half. Values near 0 or 1 mark what the model does not reproduce; under a good
        model they pile up around 0.5, more so than a uniform distribution.
        """
        replicated, observed = self.replicated[statistic], self.observed[statistic]
        return ((replicated > observed) + 0.5 * (replicated == observed)).mean("draw")

    def summary(self, probability: float = 0.9) -> pd.DataFrame:
        """One row for each statistic: number of values, averages, and coverage."""
        import pandas as pd

        rows = {
            statistic: {
                "values": int(self.observed[statistic].size),
                "observed (average)": float(self.observed[statistic].mean()),
                "predicted (average)": float(self.replicated[statistic].mean()),
                f"in {probability:.0%} interval": self.coverage(statistic, probability),
            }
            for statistic in map(str, self.observed.data_vars)
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("statistic")


def posterior_predictive_checks(
    model: BaseModelClass,
    site: str | None = None,
    *,
    statistics: Sequence[StatisticSpec] | Mapping[str, StatisticSpec] | None = None,
    num_samples: int | None = None,
    prior: bool = False,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> PredictiveChecks:
    """Compare statistics of the data with those of replicated data sets.

    A replicated data set is one joint draw of the posterior predictive distribution of all
    observations. The statistics are added up minibatch by minibatch, in one pass over the data:
    memory holds what the statistics keep (``draws x variables`` or ``draws x observations``), never
    all draws of all values.

    Parameters
    ----------
    model
        A fitted model.
    site
        Observed site with one value, or one row of values, per observation; ``None``: the only one.
    statistics
        ``None``: ``"moments"``. Otherwise some of

        - ``"moments"``: mean, variance and fraction of zeros of each variable, total of each
          observation;
        - ``"extremes"``: largest value of each variable and of all;
        - ``"zeros"``: fraction of zeros of each observation;
        - ``"frequencies"``: how often each count occurs (for rootograms);
        - ``"quantiles"``: of the counts of each variable;
        - a :class:`Statistic`, e.g. ``Dropout("batch")``, ``Quantiles([0.5, 0.99])``;
        - a function of values of shape ``(draws, observations, variables)`` and the minibatch that
          returns ``(draws, ...)``; it is summed over minibatches.

        A mapping gives functions their names.
    num_samples
        Number of replicated data sets; ``None`` for 100, or all stored draws if these are fewer.
    prior
        Draw all latents from the prior: a prior predictive check.
    adata, indices, batch_size, seed
        As in :meth:`~pyrovi.model.BaseModelClass.posterior_predictive`, of which the replicated
        data are the draws. Checks of held-out observations (``indices=model.validation_indices``)
        do not use the data twice.

    Returns
    -------
    PredictiveChecks
        Under the data's own names.

    Raises
    ------
    ModelError
        If the site is not observed, or is not a table with one row per observation; if a statistic
        is unknown, or does not suit the values.

    References
    ----------
    Gelman, Meng, Stern: Posterior predictive assessment of model fitness via realized
    discrepancies. Statistica Sinica 6, 733-807 (1996).

    Moran, Cunningham, Blei: The posterior predictive null. Bayesian Analysis 18, 1071-1097 (2023).
    """
    checked = observed_site(model, site)
    if num_samples is None:
        num_samples = 100 if prior else resolve_num_samples(model, None, 100)
    of_replicated = _statistics(statistics)
    of_observed = copy.deepcopy(of_replicated)
    manager, positions, batches = stream_replicated(
        model,
        checked,
        num_samples,
        prior=prior,
        adata=adata,
        indices=indices,
        batch_size=batch_size,
        seed=seed,
    )
    about: CheckedData | None = None
    for minibatch, replicated, observed in batches:
        if about is None:
            about = CheckedData(manager.adata, checked.name, replicated.shape[-1])
            for statistic in (*of_replicated, *of_observed):
                statistic.prepare(about)
        for one, other in zip(of_replicated, of_observed, strict=True):
            one.update(replicated, minibatch)
            other.update(observed, minibatch)

    coords = model.coords(manager, positions)
    variable = (checked.dims[1] if len(checked.dims) > 1 else None) or checked.name
    return PredictiveChecks(
        checked.name,
        _dataset(of_observed, variable, coords).isel(draw=0),
        _dataset(of_replicated, variable, coords),
    )


NAMED: dict[str, Callable[[], Statistic]] = {
    "moments": Moments,
    "extremes": Extremes,
    "zeros": ObservationZeros,
    "frequencies": Frequencies,
    "quantiles": Quantiles,
}
"""Statistics that are known by a word."""


def _statistics(
    given: Sequence[StatisticSpec] | Mapping[str, StatisticSpec] | None,
) -> list[Statistic]:
    if given is None:
        return [Moments()]
    if isinstance(given, str | Statistic) or callable(given):
        given = [given]
    named = given.items() if isinstance(given, Mapping) else ((None, spec) for spec in given)
    made: list[Statistic] = []
    for name, spec in named:
        if isinstance(spec, Statistic):
            made.append(copy.deepcopy(spec))
        elif isinstance(spec, str) and spec in NAMED:
            made.append(NAMED[spec]())
        elif callable(spec):
            made.append(Additive(str(name or getattr(spec, "__name__", "statistic")), spec))
        else:
            raise ModelError(
                f"Unknown statistic {spec!r}: expected one of {', '.join(map(repr, NAMED))}, a "
                "Statistic, or a function of (values, minibatch)."
            )
    if not made:
        raise ModelError("statistics is empty: name at least one, or leave it out.")
    return made


def _dataset(statistics: Sequence[Statistic], variable: str, coords: Any) -> xr.Dataset:
    import xarray as xr

    arrays: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    for statistic in statistics:
        for name, summary in statistic.result().items():
            if name in arrays:
                raise ModelError(f"Two statistics are named {name!r}: give them other names.")
            dims = tuple(variable if dim == VARIABLE else dim for dim in summary.dims)
            arrays[name] = (("draw", *dims), as_numpy(summary))
            labels.update(summary.coords)
    for dim in (variable, OBS_PLATE):
        names = coords(dim)
        if names is not None and any(dim in dims for dims, _ in arrays.values()):
            labels[dim] = [str(label) for label in names]
    return xr.Dataset(arrays, coords=labels)
