"""What every query begins with: the latent sites of a model and joint draws of its globals."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrovi.dataloaders.example import example_minibatches, fixed_tensors
from pyrovi.errors import ModelError
from pyrovi.model.posteriors import has_stored_locals
from pyrovi.module.ledger import Role, Site
from pyrovi.module.plates import OBS_PLATE
from pyrovi.module.stored import ROWS, StoredDraws
from pyrovi.posterior.globals import draw_globals

if TYPE_CHECKING:
    from pyrovi.data import AnnDataManager
    from pyrovi.dataloaders.minibatch import Minibatch
    from pyrovi.model.base import BaseModelClass


GUIDE_DRAWS = 250
"""Number of draws of a guide unless told otherwise."""


def warn_if_untrained(model: BaseModelClass) -> None:
    """Say that a query of the posterior asks a guide that has not been fitted, but could be."""
    if not model.is_trained and any(p.requires_grad for p in model.module.parameters()):
        warnings.warn(
            f"This {type(model).__name__} is not trained: the answer comes from the initial "
            "parameters. Call train() first.",
            stacklevel=4,
        )


def latent_sites(model: BaseModelClass) -> list[str]:
    """The latent sites that can be drawn: all but enumerated ones outside the observation plate."""
    names = model.sites.names(Role.GLOBAL, Role.LOCAL, Role.ENUMERATED)
    sites = model.sites
    return [n for n in names if sites[n].role is not Role.ENUMERATED or _can_be_drawn(sites[n])]


def _can_be_drawn(enumerated: Site) -> bool:
    return enumerated.plates == (OBS_PLATE,)


def example_on_device(model: BaseModelClass, manager: AnnDataManager | None) -> Minibatch:
    """The example minibatch that globals are drawn with; what all minibatches share is real.

    Parameters
    ----------
    model
        The model.
    manager
        Manager of the queried data; ``None`` for the model's own.
    """
    fixed = fixed_tensors(model.adata_manager if manager is None else manager)
    example = example_minibatches(model.registry, model.n_obs_training, fixed)(2).to(model.device)
    if not has_stored_locals(model):
        return example
    first = torch.zeros(example.n, dtype=torch.int64, device=model.device)  # as good as any row
    return example.replace(tensors={**example.tensors, ROWS: first})


def resolve_num_samples(
    model: BaseModelClass, num_samples: int | None, default: int | None = None
) -> int:
    """Number of draws of a query.

    Parameters
    ----------
    num_samples
        The number asked for; ``None`` is ``default``, or all stored draws if these are fewer.
    default
        ``None``: all stored draws, or 250 of a guide.

    Raises
    ------
    ModelError
        If the number is smaller than 1.
    """
    if num_samples is None:
        posterior = model.module.posterior
        if isinstance(posterior, StoredDraws):
            return min(posterior.num_available, default or posterior.num_available)
        return default or GUIDE_DRAWS
    if num_samples < 1:
        raise ModelError(f"num_samples must be at least 1, got {num_samples}.")
    return num_samples


def posterior_globals(
    model: BaseModelClass,
    num_samples: int | None,
    seed: int | None = None,
    manager: AnnDataManager | None = None,
) -> Mapping[str, Tensor]:
    """Joint draws of the global sites, given the queried data's manager."""
    warn_if_untrained(model)
    count = resolve_num_samples(model, num_samples)
    return draw_globals(model.module, example_on_device(model, manager), count, seed)
