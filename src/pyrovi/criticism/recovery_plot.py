"""Figure of recovery: estimates against truth, and z-scores against contraction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyrovi._rng import generator
from pyrovi.criticism.style import CATEGORIES, MARKERS, NEUTRAL, figure
from pyrovi.errors import ModelError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyrovi.criticism.parameter_recovery import Recovery

_SHOWN = 2000
"""Points of a site that are drawn; of more, a random part."""

_PANELS = 3
_MISFIT = "#D55E00"


def plot_recovery(recovery: Recovery, sites: Sequence[str] | None = None) -> Figure:
    """Draw what a fit recovered.

    Parameters
    ----------
    recovery
        Result of :func:`~pyrovi.criticism.recovery`.
    sites
        Sites whose estimates are shown; ``None`` for the first three.

    Returns
    -------
    matplotlib.figure.Figure
        A panel of posterior mean and widest interval against truth for each site, and one of
        z-score against contraction: points should lie to the right (the data inform) and between
        -2 and 2 (the posterior is neither biased nor too narrow).

    Raises
    ------
    ModelError
        If a site was not compared.
    """
    known = list(recovery.pointwise)
    shown = known[:_PANELS] if sites is None else list(sites)
    if unknown := [name for name in shown if name not in known]:
        raise ModelError(f"{unknown[0]!r} was not compared; compared were {', '.join(known)}.")
    with figure(4.3 * (len(shown) + 1), 4.0, columns=len(shown) + 1) as (made, axes):
        for name, panel in zip(shown, axes[:-1], strict=True):
            _estimates(panel, recovery, name)
        _scores(axes[-1], recovery)
    return made


def _estimates(axes: Axes, recovery: Recovery, name: str) -> None:
    found, widest = recovery.pointwise[name], max(recovery.probabilities)
    kept = _some(found["truth"].size)
    truth, mean, low, high = (
        found[key].to_numpy().ravel()[kept]
        for key in ("truth", "mean", f"lower_{100 * widest:g}", f"upper_{100 * widest:g}")
    )
    inside = (truth >= low) & (truth <= high)
    coverage = float(recovery.table[f"coverage_{100 * widest:g}"][name])
    faint = 0.9 if len(kept) < 30 else 0.35
    for rows, colour, label in (
        (inside, CATEGORIES[0], f"{widest:.0%} interval covers the truth ({coverage:.0%})"),
        (~inside, _MISFIT, f"does not ({1 - coverage:.0%})"),
    ):
        axes.vlines(truth[rows], low[rows], high[rows], color=colour, alpha=faint, linewidth=1.2,
                    rasterized=True)  # fmt: skip
        axes.scatter(truth[rows], mean[rows], s=9, color=colour, linewidths=0, label=label,
                     zorder=3, rasterized=True)  # fmt: skip
    ends = [min(truth.min(), low.min()), max(truth.max(), high.max())]
    axes.plot(ends, ends, color=NEUTRAL, linewidth=1.0, zorder=2)
    axes.set(title=name, xlabel="Truth", ylabel=f"Posterior mean and {widest:.0%} interval")
    axes.set_ylim(ends[0], ends[1] + 0.28 * (ends[1] - ends[0]))
    axes.legend(loc="upper left", markerscale=2, handletextpad=0.3)


def _scores(axes: Axes, recovery: Recovery) -> None:
    for position, (name, found) in enumerate(recovery.pointwise.items()):
        kept = _some(found["truth"].size)
        contraction = found["contraction"].to_numpy().ravel()[kept]
        axes.scatter(
            np.clip(contraction, -0.25, 1), found["z_score"].to_numpy().ravel()[kept],
            s=26 if len(kept) < 30 else 9, alpha=0.9 if len(kept) < 30 else 0.5, linewidths=0,
            color=CATEGORIES[position % len(CATEGORIES)],
            marker=MARKERS[position % len(MARKERS)], label=name, rasterized=True,
        )  # fmt: skip
    axes.axhspan(-2, 2, color=NEUTRAL, alpha=0.15, linewidth=0)
    axes.axhline(0, color=NEUTRAL, linewidth=1.0)
    low, high = axes.get_ylim()
    low, high = min(low, -3), max(high, 3)
    axes.set(
        title="What was learned, and how well",
        xlabel="Posterior contraction",
        ylabel="Posterior z-score",
        xlim=(-0.27, 1.04),
        ylim=(low, high + 0.2 * (high - low)),
    )
    axes.legend(loc="upper left", ncols=2, markerscale=1.3, handletextpad=0.2)


def _some(size: int) -> np.ndarray:
    if size <= _SHOWN:
        return np.arange(size)
    return np.sort(generator("shown points", seed=0).choice(size, _SHOWN, replace=False))
