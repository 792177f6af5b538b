"""Posterior predictive checks: statistics of the data beside those of data the model would make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyrovi._rng import stream
from pyrovi._settings import settings
from pyrovi.criticism.statistics import Moments
from pyrovi.errors import ModelError
from pyrovi.model.draws import posterior_globals
from pyrovi.module.ledger import Role
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.engine import posterior_query, stream_query
from pyrovi.posterior.vectorise import map_draws

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from pyrovi.model.base import BaseModelClass
    from pyrovi.module.ledger import Site


@dataclass(frozen=True)
class PredictiveChecks:
    """Statistics of the observed data and of replicated data sets.

    Attributes
    ----------
    site
        The observed site.
    observed
        Dataset with ``mean``, ``variance`` and ``zero_fraction`` of each variable over the
        observations, and the ``total`` of each observation.
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
    num_samples: int = 100,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> PredictiveChecks:
    """Compare statistics of the data with those of replicated data sets.

    A replicated data set is one joint draw of the posterior predictive distribution of all
    observations. The statistics are added up minibatch by minibatch: memory holds
    ``draws x variables`` and ``draws x observations``, never all draws of all values.

    Parameters
    ----------
    model
        A fitted model.
    site
        Observed site with one value, or one row of values, per observation; ``None``: the only one.
    num_samples
        Number of replicated data sets.
    adata, indices, batch_size, seed
        As in :meth:`~pyrovi.model.BaseModelClass.posterior_predictive`, of which the replicated
        data are the draws.

    Returns
    -------
    PredictiveChecks
        Under the data's own names.

    Raises
    ------
    ModelError
        If the site is not observed, or is not a table with one row per observation.

    References
    ----------
    Gelman, Meng, Stern: Posterior predictive assessment of model fitness via realized
    discrepancies. Statistica Sinica 6, 733-807 (1996).
    """
    if num_samples < 1:
        raise ModelError(f"num_samples must be at least 1, got {num_samples}.")
    checked = _observed_site(model, site)
    sites = {checked.name: checked}
    manager, positions, loader = model.loader(adata, indices)
    globals_ = posterior_globals(model, num_samples, seed, manager)
    one = {name: draws[:1] for name, draws in globals_.items()}
    as_observed = posterior_query(model.module, [checked.name])
    replicated, observed = Moments(), Moments()
    batches = stream_query(
        model.module,
        loader,
        posterior_query(model.module, [checked.name], predictive=True),
        globals_,
        sites,
        num_draws=num_samples,
        batch_size=batch_size or settings.batch_size,
        seed=seed,
    )
    for minibatch, draws in batches:
        replicated.update(_table(draws[checked.name], checked))
        with stream("draws", "observed", seed=seed):
            values = map_draws(as_observed(minibatch), one, 1)
        observed.update(_table(values[checked.name], checked))

    coords = model.coords(manager, positions)
    variable = (checked.dims[1] if len(checked.dims) > 1 else None) or checked.name
    data = {name: value[0] for name, value in observed.result().items()}
    return PredictiveChecks(
        checked.name,
        _dataset(data, (), variable, coords),
        _dataset(replicated.result(), ("draw",), variable, coords),
    )


def _observed_site(model: BaseModelClass, name: str | None) -> Site:
    observed = model.sites.names(Role.OBSERVED)
    if name is None and len(observed) != 1:
        raise ModelError(
            f"The model has {len(observed)} observed sites ({', '.join(observed) or 'none'}); name "
            "the one to check: site=..."
        )
    name = observed[0] if name is None else name
    if name not in observed:
        raise ModelError(
            f"{name!r} is not an observed site; observed are: {', '.join(observed) or 'none'}."
        )
    site = model.sites[name]
    if not site.is_local or site.dims[0] != OBS_PLATE or len(site.dims) > 2:
        raise ModelError(
            f"{name!r} has dimensions {site.dims}; predictive checks need one value, or one row of "
            f"values, per observation: ({OBS_PLATE!r}, ...)."
        )
    return site


def _table(values: Tensor, site: Site) -> Tensor:
    """Draws as ``(S, n, d)``."""
    return values[..., None] if len(site.dims) == 1 else values


def _dataset(
    values: dict[str, Tensor], leading: tuple[str, ...], variable: str, coords: Any
) -> xr.Dataset:
    import xarray as xr

    arrays = {name: value.numpy() for name, value in values.items()}
    last = {name: OBS_PLATE if name == "total" else variable for name in arrays}
    labels = {last[name]: coords(last[name]) for name in arrays}
    return xr.Dataset(
        {name: ((*leading, last[name]), array) for name, array in arrays.items()},
        coords={
            dim: [str(label) for label in names]
            for dim, names in labels.items()
            if names is not None
        },
    )
