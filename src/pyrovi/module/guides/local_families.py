"""Families of distributions for the local sites, with one row of parameters per observation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam

from pyrovi.errors import ModelError
from pyrovi.module.guides.distributions import (
    draw_joint,
    draw_normal,
    draw_point,
    full_rank_normal,
)
from pyrovi.module.guides.sites import LatentSite, Plates

MAX_LOCAL_SIZE = 128
"""Largest number of coordinates of one observation that have all their covariances."""


def local_joint_site(obs_dim: int) -> str:
    """Name of the auxiliary site that holds the local coordinates of a plate."""
    return f"_locals_on_real_line_{-obs_dim}"


def by_plate_dimension(sites: Sequence[LatentSite]) -> list[tuple[int, tuple[LatentSite, ...]]]:
    """Local sites by the dimension of the observation plate that they stand in."""
    dimensions = sorted(sites, key=lambda site: site.obs_dim or 0)
    groups = groupby(dimensions, key=lambda site: site.obs_dim or 0)
    return [(dim, tuple(group)) for dim, group in groups]


def check_local_size(sites: Sequence[LatentSite]) -> int:
    """Number of coordinates of one observation.

    Raises
    ------
    ModelError
        If they are too many to have all their covariances.
    """
    size = sum(site.size for site in sites)
    if size > MAX_LOCAL_SIZE:
        names = ", ".join(repr(site.name) for site in sites)
        raise ModelError(
            f"The local sites {names} have {size} coordinates per observation; at most "
            f'{MAX_LOCAL_SIZE} can have all their covariances. Use locals="normal".'
        )
    return size


class RowMeanField(PyroModule):
    """Independent normal coordinates, with a row of means and scales per observation.

    Parameters
    ----------
    sites
        The sites.
    init_scale
        Standard deviation of every coordinate to start from.
    n_rows
        Number of registered observations.
    """

    def __init__(self, sites: Sequence[LatentSite], init_scale: float, n_rows: int) -> None:
        super().__init__()
        self.sites = tuple(sites)
        for site in sites:
            loc = site.rows(n_rows)
            log_scale = torch.full_like(loc, math.log(init_scale))
            for name, value in (("loc", loc), ("log_scale", log_scale)):
                rows = PyroParam(value, constraints.real, site.real_event_dim)
                setattr(self, f"{site.key}_{name}", rows)

    def forward(self, plates: Plates) -> None:
        """Draw the sites of the minibatch."""
        for site in self.sites:
            with plates(site.frames):
                scale = getattr(self, f"{site.key}_log_scale").exp()
                draw_normal(site, getattr(self, f"{site.key}_loc"), scale)


class RowFullRank(PyroModule):
    """Normal coordinates with all covariances within an observation, a row of parameters each.

    Parameters
    ----------
    sites
        The sites.
    init_scale
        Standard deviation of every coordinate to start from.
    n_rows
        Number of registered observations.

    Raises
    ------
    ModelError
        If an observation has too many coordinates.
    """

    def __init__(self, sites: Sequence[LatentSite], init_scale: float, n_rows: int) -> None:
        super().__init__()
        self.groups = by_plate_dimension(sites)
        for dim, group in self.groups:
            size = check_local_size(group)
            start = torch.cat([site.initial.reshape(-1) for site in group])
            inner = (1,) * (-dim - 1)  # plates between that of the observations and the event
            loc = start.reshape(1, *inner, size).repeat(n_rows, *inner, 1)
            lower = loc.new_zeros(n_rows, *inner, size, size)
            log_scale = torch.full_like(loc, math.log(init_scale))
            for name, value, event_dim in (
                ("loc", loc, 1),
                ("log_scale", log_scale, 1),
                ("lower", lower, 2),
            ):
                setattr(self, f"{name}_{-dim}", PyroParam(value, constraints.real, event_dim))

    def forward(self, plates: Plates) -> None:
        """Draw the sites of the minibatch."""
        for dim, group in self.groups:
            frames = [frame for frame in group[0].frames if frame.dim == dim]
            with plates(frames):
                loc = getattr(self, f"loc_{-dim}")
                scale = getattr(self, f"log_scale_{-dim}").exp()
                lower = getattr(self, f"lower_{-dim}")
            fn = full_rank_normal(loc, scale, lower)
            draw_joint(local_joint_site(dim), group, plates, fn)


class RowPoint(PyroModule):
    """One value of every site per observation (see :class:`Point`).

    Parameters
    ----------
    sites
        The sites.
    on_real_line
        As for :class:`Point`.
    n_rows
        Number of registered observations.
    """

    def __init__(self, sites: Sequence[LatentSite], on_real_line: bool, n_rows: int) -> None:
        super().__init__()
        self.sites, self.on_real_line = tuple(sites), on_real_line
        for site in sites:
            rows = PyroParam(site.rows(n_rows), constraints.real, site.real_event_dim)
            setattr(self, f"{site.key}_loc", rows)

    def forward(self, plates: Plates) -> None:
        """Give the sites of the minibatch their values."""
        for site in self.sites:
            with plates(site.frames):
                loc = getattr(self, f"{site.key}_loc")
            draw_point(site, plates, loc, density_on_real_line=self.on_real_line)
