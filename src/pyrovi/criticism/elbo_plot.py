"""The course of training as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyrovi.criticism.style import NEUTRAL, OBSERVED, TRAIN, VALIDATION, figure
from pyrovi.errors import ModelError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyrovi.model.base import BaseModelClass

_SETS = (("train", "training", TRAIN, "-"), ("validation", "held out", VALIDATION, "--"))
_BLOCKS = 4
"""Parts of the epochs at the full KL weight; the last two are compared to judge convergence."""

_OUTLIERS = 0.005
"""Share of the epochs at either end that need not be inside the frame."""

_Curve = tuple["pd.Index", np.ndarray]


def plot_elbo(model: BaseModelClass) -> Figure:
    """Evidence lower bound and KL divergence per observation, by epoch.

    Parameters
    ----------
    model
        A trained model.

    Returns
    -------
    matplotlib.figure.Figure
        Left: the ELBO (higher is better) of training and held-out observations, and thin lines of
        the other restarts; the first epochs, which lie far below, may be cut off. Middle: its
        second half, with the means of the last two quarters, which tell whether training has come
        to its end. Right: the divergence of the guide from the prior, and the warm-up of its
        weight as a shaded area.

    Raises
    ------
    ModelError
        If the model has no history.
    """
    history = model.history
    if "elbo_train" not in history:
        raise ModelError("The model has no training history; call model.train() first.")
    with figure(12.0, 3.9, columns=3) as (made, (left, middle, right)):
        others = _other_restarts(model)
        for number, curve in enumerate(others):
            label = f"training, other restarts ({len(others)})" if number == 0 else None
            left.plot(*curve, color=NEUTRAL, linewidth=0.9, alpha=0.7, label=label)
        curves = [
            _line(left, -history[f"elbo_{key}"], label, colour, style)
            for key, label, colour, style in _SETS
            if f"elbo_{key}" in history
        ]
        left.set(title="Evidence lower bound", xlabel="Epoch")
        left.set_ylabel("ELBO per observation (nats)")
        left.set_ylim(*_limits([values for _, values in [*others, *curves]], 0.3))
        left.legend(loc="lower right")
        _second_half(middle, history, curves)

        for key, label, colour, style in _SETS:
            parts = [
                history[name] for name in (f"kl_local_{key}", f"kl_global_{key}") if name in history
            ]
            if parts:
                total = parts[0].copy()
                total.iloc[:, 0] = sum(part.iloc[:, 0].to_numpy() for part in parts)
                _line(right, total, label, colour, style)
        _shade_warmup(right, history)
        right.set(title="Divergence of guide from prior", xlabel="Epoch")
        right.set_ylabel("KL per observation (nats)")
        right.set_ylim(bottom=0)
        right.legend(loc="best")
    return made


def _line(axes: Axes, frame: pd.DataFrame, label: str, colour: str, style: str) -> _Curve:
    values = frame.iloc[:, 0].to_numpy()
    marker = "o" if len(values) < 3 else None
    axes.plot(frame.index, values, style, color=colour, label=label, marker=marker)
    return frame.index, values


def _other_restarts(model: BaseModelClass) -> list[_Curve]:
    """Training ELBO of the restarts that are not the model's own fit."""
    from pyrovi.model.restarts import best_restart

    if not model._restarts:
        return []
    frames = [
        model.restart_history(number)["elbo_train"]
        for number in range(len(model._restarts))
        if number != best_restart(model)
    ]
    return [(frame.index, -frame.iloc[:, 0].to_numpy()) for frame in frames]


def _second_half(axes: Axes, history: Mapping[str, pd.DataFrame], curves: Sequence[_Curve]) -> None:
    """The quarters whose means are compared, and these means."""
    epochs, values = curves[0]
    kept = np.ones(len(values), dtype=bool)
    if "kl_weight" in history:
        weight = history["kl_weight"].iloc[:, 0].reindex(epochs)
        kept = ~(weight < weight.max()).to_numpy()
    epochs, values = epochs[kept], values[kept]
    block = max(1, len(values) // _BLOCKS)
    axes.plot(epochs[-2 * block :], values[-2 * block :], color=TRAIN, linewidth=1.0, alpha=0.65)
    for number, style in ((2, ":"), (1, "-")):
        rows = slice(-number * block, len(values) - (number - 1) * block)
        part, within = values[rows], epochs[rows]
        if not len(part):
            continue
        words = "last quarter" if number == 1 else "quarter before"
        axes.plot(
            [within[0], within[-1]], [part.mean()] * 2, style, color=OBSERVED, linewidth=2.2,
            label=f"mean of the {words}: {part.mean():.5g}",
        )  # fmt: skip
    axes.set(title="Last two quarters of training", xlabel="Epoch")
    axes.set_ylabel("ELBO per observation (nats)")
    axes.ticklabel_format(useOffset=False)
    axes.set_ylim(*_limits([values[-2 * block :]], 0.4))
    axes.legend(loc="lower center")


def _limits(curves: Sequence[np.ndarray], room: float) -> tuple[float, float]:
    """Range of the curves without their first tenth, in which the parameters are arbitrary.

    Single epochs far away are left out; ``room`` of the range is added below, for a legend.
    """
    kept = [curve[len(curve) // 10 :] for curve in curves]
    low = min(np.nanquantile(curve, _OUTLIERS) for curve in kept)
    high = max(np.nanquantile(curve, 1 - _OUTLIERS) for curve in kept)
    margin = 0.1 * (high - low) or 1.0
    return float(low - room * (high - low) - margin), float(high + margin)


def _shade_warmup(axes: Axes, history: Mapping[str, pd.DataFrame]) -> None:
    if "kl_weight" not in history:
        return
    weight = history["kl_weight"].iloc[:, 0]
    below = weight.index[weight.to_numpy() < weight.max()]
    if len(below):
        axes.axvspan(
            below[0], below[-1], color=NEUTRAL, alpha=0.18, linewidth=0, label="KL warm-up"
        )
