"""KL warm-up: the weight of the KL terms as a function of training progress."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pyrovi.errors import TrainingError

WARMUP_FRACTION = 0.5
"""Default length of the warm-up, as a fraction of the planned epochs: it always completes."""


@dataclass(frozen=True)
class KLWarmup:
    """Linear warm-up of the KL weight; epochs take precedence over steps.

    Parameters
    ----------
    n_epochs, n_steps
        Length of the warm-up. Both ``None``: left open (see :meth:`planned`); until then, and if
        the length is 0, the weight is ``max_weight``.
    max_weight, min_weight
        Last and first weight.
    first_epoch, first_step
        Epochs and steps of earlier calls of ``train``, before which it does not begin.

    Raises
    ------
    TrainingError
        If a number is negative, or the first weight is larger than the last.
    """

    n_epochs: int | None = None
    n_steps: int | None = None
    max_weight: float = 1.0
    min_weight: float = 0.0
    first_epoch: int = 0
    first_step: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.min_weight <= self.max_weight:
            raise TrainingError(
                f"min_kl_weight ({self.min_weight}) must not be negative, nor larger than "
                f"max_kl_weight ({self.max_weight})."
            )
        for name, length in (("epochs", self.n_epochs), ("steps", self.n_steps)):
            if length is not None and length < 0:
                raise TrainingError(f"n_{name}_kl_warmup must not be negative, got {length}.")

    @property
    def is_open(self) -> bool:
        """Whether the length has not been given."""
        return self.n_epochs is None and self.n_steps is None

    def planned(self, max_epochs: int) -> KLWarmup:
        """The same with an open length fixed at half of the planned epochs, rounded down."""
        return replace(self, n_epochs=int(WARMUP_FRACTION * max_epochs)) if self.is_open else self

    def weight(self, epoch: int, step: int) -> float:
        """Weight after so many epochs and optimiser steps."""
        if self.n_epochs:
            done = (epoch - self.first_epoch) / self.n_epochs
        elif self.n_steps:
            done = (step - self.first_step) / self.n_steps
        else:
            done = 1.0
        return self.min_weight + (self.max_weight - self.min_weight) * min(max(done, 0.0), 1.0)
