"""The course of training as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyrovi.criticism.style import NEUTRAL, TRAIN, VALIDATION, figure
from pyrovi.errors import ModelError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyrovi.model.base import BaseModelClass

_SETS = (("train", "training", TRAIN, "-"), ("validation", "held out", VALIDATION, "--"))


def plot_elbo(model: BaseModelClass) -> Figure:
    """Evidence lower bound and KL divergence per observation, by epoch.

    Parameters
    ----------
    model
        A trained model.

    Returns
    -------
    matplotlib.figure.Figure
        Left: the ELBO (higher is better) of training and held-out observations; the first epochs,
        which lie far below, may be cut off. Right: the divergence of the guide from the prior, and
        the warm-up of its weight as a shaded area.

    Raises
    ------
    ModelError
        If the model has no history.
    """
    history = model.history
    if "elbo_train" not in history:
        raise ModelError("The model has no training history; call model.train() first.")
    with figure(9.5, 3.8, columns=2) as (made, (left, right)):
        bounds = [
            _line(left, -history[f"elbo_{key}"], label, colour, style)
            for key, label, colour, style in _SETS
            if f"elbo_{key}" in history
        ]
        left.set(title="Evidence lower bound", xlabel="Epoch")
        left.set_ylabel("ELBO per observation (nats)")
        left.set_ylim(*_limits(bounds))
        left.legend(loc="lower right")

        for key, label, colour, style in _SETS:
            parts = [
                history[name] for name in (f"kl_local_{key}", f"kl_global_{key}") if name in history
            ]
            if parts:
                total = parts[0].copy()
                total.iloc[:, 0] = sum(part.iloc[:, 0].to_numpy() for part in parts)
                _line(right, total, label, colour, style)
        _shade_warmup(right, history)
        right.set(title="Divergence of the guide from the prior", xlabel="Epoch")
        right.set_ylabel("KL per observation (nats)")
        right.set_ylim(bottom=0)
        right.legend(loc="lower right")
    return made


def _line(axes: Axes, frame: pd.DataFrame, label: str, colour: str, style: str) -> np.ndarray:
    values = frame.iloc[:, 0].to_numpy()
    marker = "o" if len(values) < 3 else None
    axes.plot(frame.index, values, style, color=colour, label=label, marker=marker)
    return values


def _limits(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """Range of the curves without their first tenth, in which the parameters are arbitrary."""
    kept = [curve[len(curve) // 10 :] for curve in curves]
    low, high = min(map(np.nanmin, kept)), max(map(np.nanmax, kept))
    margin = 0.06 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _shade_warmup(axes: Axes, history: dict[str, pd.DataFrame]) -> None:
    if "kl_weight" not in history:
        return
    weight = history["kl_weight"].iloc[:, 0]
    below = weight.index[weight.to_numpy() < weight.max()]
    if len(below):
        axes.axvspan(
            below[0], below[-1], color=NEUTRAL, alpha=0.18, linewidth=0, label="KL warm-up"
        )
