"""Number of joint draws that checks of tails and tests use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrovi.model.draws import resolve_num_samples
from pyrovi.module.stored import StoredDraws

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

MANY_DRAWS = 1000
"""Draws of a guide for what depends on the tails of a posterior."""


def many_draws(model: BaseModelClass, num_samples: int | None) -> int:
    """``num_samples``; for ``None`` all stored draws, or 1000 of a guide.

    Raises
    ------
    ModelError
        If the number is smaller than 1.
    """
    if num_samples is None and not isinstance(model.module.posterior, StoredDraws):
        return MANY_DRAWS
    return resolve_num_samples(model, num_samples)
