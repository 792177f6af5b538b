"""KL warm-up: the weight of the KL terms as a function of training progress."""

from __future__ import annotations

WARMUP_FRACTION = 0.5
"""Default length of the warm-up, as a fraction of the planned epochs: it always completes."""


def kl_weight(
    epoch: int,
    step: int,
    n_epochs_kl_warmup: int | None,
    n_steps_kl_warmup: int | None,
    max_kl_weight: float = 1.0,
    min_kl_weight: float = 0.0,
) -> float:
    """Linear warm-up from ``min_kl_weight`` to ``max_kl_weight``; epochs take precedence over steps.

    Parameters
    ----------
    epoch, step
        Epochs and optimiser steps done so far.
    n_epochs_kl_warmup, n_steps_kl_warmup
        Length of the warm-up; 0 or ``None`` for both means no warm-up.

    Raises
    ------
    ValueError
        If the largest weight is smaller than the smallest.
    """
    if min_kl_weight > max_kl_weight:
        raise ValueError(
            f"min_kl_weight ({min_kl_weight}) must not be larger than max_kl_weight "
            f"({max_kl_weight})."
        )
    if n_epochs_kl_warmup:
        done = epoch / n_epochs_kl_warmup
    elif n_steps_kl_warmup:
        done = step / n_steps_kl_warmup
    else:
        done = 1.0
    return min_kl_weight + (max_kl_weight - min_kl_weight) * min(done, 1.0)
