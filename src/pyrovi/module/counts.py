"""Parts that stories of counts share: library sizes, dispersions of groups, covariates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovi.errors import ModelError
from pyrovi.nn import one_hot


def set_library_prior(
    module: nn.Module, means: np.ndarray | None, variances: np.ndarray | None
) -> None:
    """Register the moments of the log totals in each batch, shape ``(n_batch,)``.

    Raises
    ------
    ModelError
        If they are missing.
    """
    if means is None or variances is None:
        raise ModelError(
            "A latent library size needs library_log_means and library_log_vars, the moments "
            "of the log totals in each batch."
        )
    module.register_buffer("library_log_means", torch.as_tensor(means, dtype=torch.float32))
    module.register_buffer("library_log_vars", torch.as_tensor(variances, dtype=torch.float32))


def sample_library(module: Any, X: Tensor, batch: Tensor, size_factor: Tensor | None) -> Tensor:
    """Log library size of each cell, shape ``(n, 1)``: latent, given, or the observed total.

    The module says which, by ``latent_library`` and ``use_size_factor_key``.
    """
    if module.latent_library:
        mean = module.library_log_means[batch[..., 0], None]
        sd = module.library_log_vars[batch[..., 0], None].sqrt()
        library = pyro.sample("l", dist.Normal(mean, sd).to_event(1))
    elif module.use_size_factor_key:
        assert size_factor is not None
        library = size_factor.log()
    else:
        library = X.sum(-1, keepdim=True).log()
    return pyro.deterministic("library", library, event_dim=1)


def dispersion_of(log_dispersion: Tensor, codes: Tensor, n_groups: int) -> Tensor:
    """Inverse dispersions, of each feature or of each feature and group of the cells.

    Parameters
    ----------
    log_dispersion
        Shape ``(features,)``, or ``(features, n_groups)``.
    codes
        Groups of the cells, shape ``(n, 1)``; not used for the former.
    n_groups
        Number of groups.

    Returns
    -------
    Tensor
        Shape ``(features,)`` or ``(n, features)``.
    """
    if log_dispersion.dim() == 1:
        return log_dispersion.exp()
    return (one_hot(codes, n_groups, log_dispersion.dtype) @ log_dispersion.T).exp()


def split_codes(*codes: Tensor | None) -> tuple[Tensor, ...]:
    """Codes column by column, each of shape ``(n, 1)``; ``None`` is left out."""
    return tuple(column for c in codes if c is not None for column in c.split(1, dim=-1))


def indicator_columns(
    codes: Sequence[Tensor], n_levels: Sequence[int], dtype: torch.dtype
) -> list[Tensor]:
    """Indicators of every level but the first one, shape ``(n, levels - 1)`` for each column."""
    pairs = zip(codes, n_levels, strict=True)
    return [one_hot(column, n, dtype)[..., 1:] for column, n in pairs]
