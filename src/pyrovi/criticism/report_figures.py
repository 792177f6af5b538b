"""Figures of the report: histograms of diagnostics, energies of chains, forests, small checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from pyrovi.criticism.style import CATEGORIES, NEUTRAL, OBSERVED, REPLICATED, axes_of, figure

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyrovi.criticism.predictive import PredictiveChecks

_BEYOND = "#D55E00"


def plot_threshold_histogram(
    values: ArrayLike,
    threshold: float,
    *,
    name: str,
    of: str,
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """Histogram of a diagnostic with its limit; what lies beyond it is orange.

    Parameters
    ----------
    values
        The diagnostic; what is not finite is left out.
    threshold
        Largest good value.
    name
        Label of the axis.
    of
        What is counted.
    title
        Title.
    ax
        Axes to draw into; ``None`` makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    found = np.asarray(values, dtype=np.float64)
    found = found[np.isfinite(found)]
    low, high = min(found.min(initial=threshold), threshold), max(found.max(initial=0), threshold)
    margin = 0.03 * (high - low) or 0.01
    width = (high - low + 2 * margin) / 30
    below = np.arange(threshold, low - margin - width, -width)[::-1]
    above = np.arange(threshold, high + margin + width, width)
    with axes_of(ax, 6.0, 3.5) as axes:
        for edges, colour, kept, words in (
            (below, REPLICATED, found <= threshold, "within the limit"),
            (above, _BEYOND, found > threshold, "beyond"),
        ):
            axes.hist(
                found[kept], bins=edges.tolist(), color=colour, alpha=0.65,
                label=f"{words}: {int(kept.sum()):,}",
            )  # fmt: skip
        axes.axvline(
            threshold, color=OBSERVED, linestyle="--", linewidth=1.3, label=f"limit {threshold:.4g}"
        )
        axes.set(title=title, xlabel=name, ylabel=of)
        axes.set_ylim(top=1.5 * axes.get_ylim()[1])
        axes.legend(loc="upper left" if threshold > (low + high) / 2 else "upper right")
        return axes


def plot_energy(
    energy: ArrayLike, diverging: ArrayLike | None = None, *, ax: Axes | None = None
) -> Axes:
    """Marginal energies of NUTS beside their changes from draw to draw.

    Parameters
    ----------
    energy
        Energies of the draws, shape ``(chain, draw)``.
    diverging
        Which transitions diverged, of the same shape; marked below the axis.
    ax
        Axes to draw into; ``None`` makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        If the changes are much narrower than the energies, the sampler explores the posterior
        slowly (a low E-BFMI).

    References
    ----------
    Betancourt: Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo.
    arXiv:1604.00695 (2016).
    """
    values = np.asarray(energy, dtype=np.float64)
    marginal = values - values.mean(1, keepdims=True)
    changes = np.diff(values, axis=1)
    edges = np.histogram_bin_edges(np.r_[marginal.ravel(), changes.ravel()], 45)
    with axes_of(ax, 6.0, 3.5) as axes:
        axes.hist(
            marginal.ravel(), bins=edges.tolist(), density=True, color=REPLICATED, alpha=0.5,
            label="energy − mean of its chain",
        )  # fmt: skip
        axes.hist(
            changes.ravel(), bins=edges.tolist(), density=True, histtype="step", color=OBSERVED,
            linewidth=1.5, label="change between draws",
        )  # fmt: skip
        if diverging is not None and (marked := np.asarray(diverging, dtype=bool)).any():
            axes.plot(
                marginal[marked], np.zeros(int(marked.sum())), "|", color=_BEYOND, markersize=12,
                label=f"divergent ({int(marked.sum())})", clip_on=False,
            )  # fmt: skip
        axes.set(title="Energy of the chains", xlabel="Energy (nats)", ylabel="Density")
        axes.legend(loc="upper right")
        return axes


def plot_forest(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Posterior means and intervals, one line for each number.

    Parameters
    ----------
    table
        Rows of ``model.summary()``: ``mean``, ``sd``, and two columns with the limits.
    ax
        Axes to draw into; ``None`` makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    low, high = (table[column].to_numpy() for column in table.columns[2:4])
    mean, sd = table["mean"].to_numpy(), table["sd"].to_numpy()
    rows = np.arange(len(table))[::-1]
    sites = [str(name).partition("[")[0] for name in table.index]
    order = list(dict.fromkeys(sites))
    colours = [CATEGORIES[order.index(site) % len(CATEGORIES)] for site in sites]
    with axes_of(ax, 7.2, 1.1 + 0.25 * len(table)) as axes:
        axes.axvline(0, color=NEUTRAL, linewidth=1.0, linestyle="--")
        axes.hlines(rows, low, high, color=colours, linewidth=1.5)
        axes.hlines(rows, mean - sd, mean + sd, color=colours, linewidth=4, alpha=0.55)
        axes.scatter(mean, rows, color=colours, s=22, zorder=3)
        axes.set_yticks(rows, [_short(str(name)) for name in table.index])
        axes.set_ylim(-0.8, len(table) - 0.2)
        axes.set(title="Posterior of the globals", xlabel="Value (in the site's own units)")
        axes.grid(axis="y", visible=False)
        return axes


def plot_few_variables(checks: PredictiveChecks, statistics: list[str]) -> Figure:
    """Statistics of few variables: a histogram of each over replicated data sets.

    Parameters
    ----------
    checks
        Checks of at most a handful of variables.
    statistics
        Names of statistics with a value per variable.

    Returns
    -------
    matplotlib.figure.Figure
        A row for each variable, a column for each statistic.
    """
    observed = {name: checks.observed[name].to_numpy().ravel() for name in statistics}
    count = len(next(iter(observed.values())))
    labels = checks.observed[statistics[0]]
    names = _variable_names(checks.site, labels)
    width = 3.6 * len(statistics)
    with figure(width, 2.9 * count, columns=len(statistics), rows=count) as (made, axes):
        for variable in range(count):
            for column, name in enumerate(statistics):
                replicated = checks.replicated[name].to_numpy().reshape(-1, count)[:, variable]
                value = observed[name][variable]
                p = float(np.mean(replicated > value) + 0.5 * np.mean(replicated == value))
                one = axes[variable * len(statistics) + column]
                one.hist(replicated, bins=15, color=REPLICATED, alpha=0.55, label="replicated")
                one.axvline(value, color=OBSERVED, label=f"observed (p = {p:.2f})")
                words = name.replace("_", " ")
                one.set(
                    title=f"{words.capitalize()} of {names[variable]}", xlabel=words.capitalize()
                )
                one.set_ylabel("Replicated data sets" if column == 0 else "")
                one.set_ylim(top=1.45 * one.get_ylim()[1])
                one.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")
    return made


def _variable_names(site: str, of_variables: xr.DataArray) -> list[str]:
    """Name of each variable: its label if it has one, else its place in the site."""
    count = of_variables.size
    if count == 1:
        return [site]
    dim = of_variables.dims[0]
    if dim in of_variables.coords:
        return [str(name) for name in of_variables[dim].to_numpy()]
    return [f"{site}[{place}]" for place in range(count)]


def _short(name: str, length: int = 34) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
