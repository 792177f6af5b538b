"""Improper priors. A function of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


def improper_sites(model: BaseModelClass) -> list[str]:
    """Names of the latent sites with a flat prior, from which nothing can be drawn."""
    return model.sites.improper
