"""Recovery: whether a fit finds the values that its data were simulated with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi.criticism.factor_alignment import METHODS, Alignment, align_to_truth
from pyrovi.errors import ModelError
from pyrovi.model.truth import truth_of
from pyrovi.module.ledger import Role

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from pyrovi.model.base import BaseModelClass

_SHOWN = 8
"""Largest number of sites in the short form of a result."""


@dataclass(frozen=True, repr=False)
class Recovery:
    """True values beside their posteriors.

    Attributes
    ----------
    table
        One row per site:

        - ``values``: number of values;
        - ``bias``: average of posterior mean minus truth; ``rmse``: root of its mean square;
        - ``coverage_50``, ...: fraction of true values in their central posterior interval;
        - ``z_mean``, ``z_sd``: of the z-scores, (posterior mean - truth) / posterior sd; over many
          simulations from the prior 0 and 1 if the posterior is right (and normal);
        - ``contraction``: median of 1 - posterior variance / prior variance; 0 says that the data
          tell nothing about a value, 1 that they tell all;
        - ``correlation`` of posterior mean and truth over the values.
    pointwise
        Site -> dataset of the same for every value: ``truth``, ``mean``, ``sd``, ``prior_sd``,
        ``z_score``, ``contraction``, and ``lower_50``, ``upper_50``, ...
    probabilities
        Contents of the intervals.
    """

    table: pd.DataFrame
    pointwise: Mapping[str, xr.Dataset]
    probabilities: tuple[float, ...]

    def summary(self) -> pd.DataFrame:
        """The table."""
        return self.table

    @property
    def verdict(self) -> str:
        """How many true values the widest intervals hold, in a sentence."""
        p = max(self.probabilities)
        count = self.table["values"]
        inside = (self.table[f"coverage_{100 * p:g}"] * count).sum()
        return (
            f"{inside:.0f} of {count.sum()} true values lie in their central {p:.0%} intervals "
            f"({p * count.sum():.0f} expected)"
        )

    def __repr__(self) -> str:
        table = self.table.head(_SHOWN).to_string(float_format="{:.3g}".format)
        return "\n".join(
            [f"Recovery of {len(self.table)} sites: {self.verdict}", table, *self._rest]
        )

    def _repr_html_(self) -> str:
        table = self.table.head(_SHOWN).to_html(float_format="{:.3g}".format)
        return f"<div>{self.verdict}</div>{table}" + "".join(f"<div>{t}</div>" for t in self._rest)

    @property
    def _rest(self) -> list[str]:
        more = len(self.table) - _SHOWN
        return [f"and {more} more; see .table"] if more > 0 else []

    def plot(self, sites: str | Sequence[str] | None = None) -> Figure:
        """Estimates against truth, and z-scores against contraction.

        Parameters
        ----------
        sites
            Sites whose estimates are shown; ``None`` for the first three.
        """
        from pyrovi.criticism.recovery_plot import plot_recovery

        return plot_recovery(self, [sites] if isinstance(sites, str) else sites)


def recovery(
    fit: BaseModelClass,
    truth: Any,
    *,
    sites: str | Sequence[str] | None = None,
    align: str | None = None,
    factor: str = "factor",
    anchor: str | None = None,
    probability: float | Sequence[float] = (0.5, 0.9),
    num_samples: int | None = None,
    num_prior_samples: int = 1000,
    seed: int | None = None,
) -> Recovery:
    """Compare the posterior of a fit to simulated data with the truth.

    Parameters
    ----------
    fit
        Model trained on simulated data, e.g. ``fresh_copy(model, simulated)``.
    truth
        The simulated data (:meth:`~pyrovi.model.BaseModelClass.simulate`), or site -> true values.
    sites
        Sites to compare; ``None``: all latent sites with continuous values that the truth has.
    align
        For factor models, whose factors have no order, sign or direction of their own:
        ``"permutation"``, ``"signed_permutation"`` or ``"rotation"`` brings the factors of each
        draw to those of the truth, in all sites that have the dimension ``factor``. The products
        of the anchor with itself (``W'W``), which need no alignment, are compared too.
    factor
        Name of the dimension that is aligned.
    anchor
        Site that determines the alignment; ``None``: the first global one with that dimension.
    probability
        Contents of the central intervals.
    num_samples
        Number of posterior draws; ``None`` for the default of ``sample_posterior``.
    num_prior_samples
        Number of prior draws for the prior standard deviations.
    seed
        Root seed.

    Returns
    -------
    Recovery

    Raises
    ------
    ModelError
        If a site has no truth, the truth has another shape, or a site to align is not there.

    Notes
    -----
    One data set tells little about the coverage of a single global value: repeat with other seeds,
    or use simulation-based calibration. Aligning to the truth takes the best of all rotations, and
    so flatters a little: ``F (F - 1) / 2`` numbers are fitted to the truth.

    A prior without variance (e.g. half-Cauchy) has a contraction that depends on its draws.

    References
    ----------
    Schad, Betancourt, Vasishth: Toward a principled Bayesian workflow in cognitive science.
    Psychological Methods 26, 103-126 (2021).
    """
    true = _truth(truth)
    probabilities = tuple(float(p) for p in np.atleast_1d(np.asarray(probability)))
    if wrong := [p for p in probabilities if not 0 < p < 1]:
        raise ModelError(f"probability must lie between 0 and 1, got {wrong[0]}.")
    names = _names(fit, true, sites)
    draws: dict[str, Any] = {} if num_samples is None else {"num_samples": num_samples}
    pointwise: dict[str, xr.Dataset] = {}
    alignment = None
    if align is not None:
        alignment = _alignment(fit, true, names, align, factor, anchor, draws, seed)
    for name in names:
        if alignment is not None and factor in fit.sites[name].dims:
            drawn = alignment.apply(fit.sample_posterior(name, seed=seed, **draws)[name])
            values = _reduced(drawn, probabilities)
        else:
            values = _posterior(fit, name, probabilities, draws, seed)
        prior = fit.sample_prior(name, num_samples=num_prior_samples, reduce="sd", seed=seed)[name]
        pointwise[name] = _compare(name, values, _of_site(true, name, values), prior)
    if alignment is not None:
        name, products = alignment.product_name, alignment.products
        prior_draws = fit.sample_prior(alignment.anchor, num_samples=num_prior_samples, seed=seed)
        prior = products(prior_draws[alignment.anchor]).std("draw", ddof=1)
        values = _reduced(
            products(fit.sample_posterior(alignment.anchor, seed=seed, **draws)[alignment.anchor]),
            probabilities,
        )
        pointwise[name] = _compare(name, values, products(alignment.truth), prior)
    return Recovery(_table(pointwise, probabilities), pointwise, probabilities)


def _truth(truth: Any) -> Mapping[str, Any]:
    import xarray as xr

    if isinstance(truth, xr.Dataset):
        return {str(name): truth[name] for name in truth.data_vars}
    if isinstance(truth, Mapping):
        return {str(name): value for name, value in truth.items()}
    simulated = truth_of(truth)
    return {str(name): simulated[name] for name in simulated.data_vars}


def _names(
    fit: BaseModelClass, true: Mapping[str, Any], sites: str | Sequence[str] | None
) -> list[str]:
    if sites is None:
        latent = fit.sites.names(Role.GLOBAL, Role.LOCAL)
        names = [n for n in latent if n in true and np.asarray(true[n]).dtype.kind == "f"]
        if not names:
            raise ModelError(
                f"The truth has none of the model's latent sites ({', '.join(latent)}); it has "
                f"{', '.join(true) or 'nothing'}."
            )
        return names
    names = fit.sites.resolve(sites)
    if missing := [name for name in names if name not in true]:
        raise ModelError(
            f"The truth has no value of {', '.join(map(repr, missing))}; it has "
            f"{', '.join(true) or 'nothing'}."
        )
    if other := [n for n in names if fit.sites[n].role in (Role.OBSERVED, Role.FACTOR)]:
        raise ModelError(f"{other[0]!r} is observed: it has no posterior to compare with a truth.")
    return names


def _of_site(true: Mapping[str, Any], name: str, like: xr.Dataset) -> xr.DataArray:
    """True values in the order of the posterior's."""
    import xarray as xr

    value, mean = true[name], like["mean"]
    if isinstance(value, xr.DataArray):
        value = value.transpose(*mean.dims) if set(value.dims) == set(mean.dims) else value
        for dim in value.dims:
            named = dim in value.coords and dim in mean.coords
            if named and not np.array_equal(value[dim], mean[dim]):
                if set(mean[dim].values) - set(value[dim].values):
                    raise ModelError(
                        f"The truth of {name!r} has other labels of {dim!r} than the fit: it was "
                        "simulated for other data. Pass the data that the fit was trained on."
                    )
                value = value.sel({dim: mean[dim]})
    array = np.asarray(value, dtype=np.float64)
    if array.shape != mean.shape:
        raise ModelError(
            f"The truth of {name!r} has shape {array.shape}; the posterior has {mean.shape} "
            f"({', '.join(map(str, mean.dims)) or 'a single value'})."
        )
    return mean.copy(data=array)


def _alignment(
    fit: BaseModelClass,
    true: Mapping[str, Any],
    names: Sequence[str],
    align: str,
    factor: str,
    anchor: str | None,
    draws: Mapping[str, Any],
    seed: int | None,
) -> Alignment:
    if align not in METHODS:
        raise ModelError(f"align must be one of {', '.join(map(repr, METHODS))}, got {align!r}.")
    candidates = [
        name
        for name in names
        if factor in fit.sites[name].dims and fit.sites[name].role is Role.GLOBAL
    ]
    if anchor is None and candidates:
        anchor = candidates[0]
    if anchor not in candidates:
        dims = {name: fit.sites[name].dims for name in names}
        raise ModelError(
            f"No global site {'' if anchor is None else repr(anchor) + ' '}with the dimension "
            f"{factor!r} to align by; the sites have the dimensions {dims}. Name the dimension of "
            "the factors: factor=..., (and in site_dims)."
        )
    drawn = fit.sample_posterior(anchor, seed=seed, **draws)[anchor]
    like = drawn.isel(draw=0, drop=True).to_dataset(name="mean")
    return align_to_truth(drawn, _of_site(true, str(anchor), like), factor, align)


def _ends(probabilities: Sequence[float]) -> list[tuple[str, float]]:
    ends = []
    for p in probabilities:
        ends += [(f"lower_{100 * p:g}", (1 - p) / 2), (f"upper_{100 * p:g}", (1 + p) / 2)]
    return ends


def _posterior(
    fit: BaseModelClass,
    name: str,
    probabilities: Sequence[float],
    draws: Mapping[str, Any],
    seed: int | None,
) -> xr.Dataset:
    """Summaries of one site, streamed over the observations."""
    import xarray as xr

    levels = {end: f"q{100 * level:05.2f}" for end, level in _ends(probabilities)}
    statistics = ["mean", "sd", *dict.fromkeys(levels.values())]
    found = fit.sample_posterior(name, reduce=statistics, seed=seed, **draws)[name]
    pick = {"mean": "mean", "sd": "sd", **levels}
    return xr.Dataset(
        {key: found.sel(statistic=statistic, drop=True) for key, statistic in pick.items()}
    )


def _reduced(drawn: xr.DataArray, probabilities: Sequence[float]) -> xr.Dataset:
    import xarray as xr

    ends = _ends(probabilities)
    quantiles = drawn.quantile([level for _, level in ends], dim="draw")
    values = {name: quantiles.isel(quantile=i, drop=True) for i, (name, _) in enumerate(ends)}
    return xr.Dataset({"mean": drawn.mean("draw"), "sd": drawn.std("draw", ddof=1), **values})


def _compare(
    name: str, posterior: xr.Dataset, truth: xr.DataArray, prior_sd: xr.DataArray
) -> xr.Dataset:
    if not bool((posterior["sd"] > 0).any()):
        raise ModelError(
            f"The posterior of {name!r} is a point: recovery compares distributions. Fit with a "
            "guide that has a width (e.g. guide='normal'), or leave the site out (sites=)."
        )
    found = posterior.astype(np.float64).assign(
        truth=truth, prior_sd=(prior_sd.dims, prior_sd.to_numpy().astype(np.float64))
    )
    return found.assign(
        z_score=(found["mean"] - found["truth"]) / found["sd"],
        contraction=1 - found["sd"] ** 2 / found["prior_sd"] ** 2,
    )


def _table(pointwise: Mapping[str, xr.Dataset], probabilities: Sequence[float]) -> pd.DataFrame:
    import pandas as pd

    rows = {}
    for name, found in pointwise.items():
        truth, mean = found["truth"].to_numpy().ravel(), found["mean"].to_numpy().ravel()
        error, z = mean - truth, found["z_score"].to_numpy().ravel()
        row: dict[str, float] = {
            "values": truth.size,
            "bias": error.mean(),
            "rmse": np.sqrt(np.square(error).mean()),
        }
        for p in probabilities:
            low, high = found[f"lower_{100 * p:g}"], found[f"upper_{100 * p:g}"]
            inside = (found["truth"] >= low) & (found["truth"] <= high)
            row[f"coverage_{100 * p:g}"] = float(inside.mean())
        row["z_mean"] = z.mean()
        row["z_sd"] = z.std(ddof=1) if z.size > 1 else np.nan
        row["contraction"] = float(np.median(found["contraction"].to_numpy()))
        varies = truth.size > 1 and truth.std() > 0 and mean.std() > 0
        row["correlation"] = np.corrcoef(truth, mean)[0, 1] if varies else np.nan
        rows[name] = row
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("site")
    return frame.astype({"values": int})
