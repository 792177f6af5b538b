"""Unconstrained coordinates of draws of single sites, with the densities they need."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributions import biject_to

from pyrovi.module.ledger import Site
from pyrovi.module.plates import OBS_PLATE


def unconstrained(
    site: Site, values: NDArray[Any], leading: int, device: torch.device | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Real coordinates of values of a site, and the log volume that the map back has there.

    Parameters
    ----------
    site
        The site; its support has to be fixed and continuous.
    values
        Draws of shape ``(*leading, *site)``, broadcast dimensions of size one included.
    leading
        Number of axes of the draws.
    device
        Device of the support's bounds.

    Returns
    -------
    tuple
        The coordinates :math:`u`, of shape ``(*leading, *unconstrained)``: as the values, but for
        the event dimensions of supports such as simplices; and
        :math:`\log |\det \partial x / \partial u|` of each draw, of shape ``(*leading,)``.
    """
    transform = biject_to(site.support)
    x = torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float64, device=device)
    u = transform.inv(x)
    volume = transform.log_abs_det_jacobian(u, x)
    return u.cpu().numpy(), volume.reshape(*x.shape[:leading], -1).sum(-1).cpu().numpy()


def unconstrained_dims(site: Site, shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """Names of the dimensions of unconstrained values of a shape: the site's own where they fit."""
    n_batch = len(site.dims) - site.event_dim
    if len(shape) == len(site.shape) and all(
        size in (OBS_PLATE, now) for size, now in zip(site.shape, shape, strict=True)
    ):
        return site.dims
    free = len(shape) - n_batch
    return (*site.dims[:n_batch], *(f"{site.name}_unconstrained_{i}" for i in range(free)))
