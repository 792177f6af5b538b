"""Means of a site over groups of observations, in every joint draw, added up in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovi._settings import settings
from pyrovi.data import AnnDataManager
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import MissingKeyError, ModelError
from pyrovi.model.draws import posterior_globals
from pyrovi.module.ledger import Role
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.engine import bounded_batch_size, posterior_query, stream_query
from pyrovi.posterior.importance import resampled_latents
from pyrovi.posterior.scalars import element_index
from pyrovi.posterior.stories import model_trace
from pyrovi.posterior.vectorise import Story

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass

NUM_PROPOSALS = 25
"""Draws of the guide that each importance-weighted draw is chosen from."""


@dataclass(frozen=True)
class GroupMeans:
    """Means of the units (donors, or whole groups) that two groups of observations consist of.

    Attributes
    ----------
    values
        Shape ``(units, S, K)``.
    side
        Which of the two groups each unit belongs to: 0 or 1, shape ``(units,)``.
    names
        Names of the two groups.
    units
        Names of the units.
    index
        Names of the ``K`` elements.
    """

    values: NDArray[np.float64]
    side: NDArray[np.int64]
    names: tuple[Any, Any]
    units: list[str]
    index: pd.Index


def group_means(
    model: BaseModelClass,
    site: str,
    groupby: str,
    groups: tuple[Any, Any],
    *,
    by: str | None = None,
    weights: Literal["uniform", "importance"] = "uniform",
    num_samples: int,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> GroupMeans:
    """Average a site over the observations of each unit of two groups, draw by draw.

    Parameters
    ----------
    model
        A fitted model.
    site
        A site with one value, or one array of values, per observation.
    groupby, groups
        Column of ``obs``, and two of its values.
    by
        Column of ``obs`` with the units within a group; ``None``: each group is one unit.
    weights
        ``"importance"`` resamples local draws towards the posterior of the model.
    num_samples, adata, indices, batch_size, seed
        As in :meth:`~pyrovi.model.BaseModelClass.sample_posterior`.

    Returns
    -------
    GroupMeans

    Raises
    ------
    MissingKeyError
        If a column or a group does not exist.
    ModelError
        If the groups are one, or ``weights`` is unknown.
    """
    if weights not in ("uniform", "importance"):
        raise ModelError(f"weights must be 'uniform' or 'importance', got {weights!r}.")
    manager = model.manager_of(adata)
    positions = resolve_indices(indices, manager.n_obs)
    used, unit_of, side, units = _units(manager.adata.obs, positions, groupby, groups, by)
    known = model.sites[site]
    sites = {site: known}
    held = num_samples * (NUM_PROPOSALS if weights == "importance" else 1)
    size = bounded_batch_size(model.sites.values(), held, batch_size or settings.batch_size)
    _, _, loader = model.loader(manager, used)
    if weights == "importance":
        make_story = _importance_query(model, site)
    else:
        make_story = posterior_query(model.module, [site], predictive=known.role is Role.OBSERVED)
    sums: Tensor | None = None
    counts = torch.zeros(len(units), dtype=torch.float64)
    start = 0
    for minibatch, draws in stream_query(
        model.module,
        loader,
        make_story,
        posterior_globals(model, num_samples, seed, manager),
        sites,
        num_draws=num_samples,
        batch_size=size,
        seed=seed,
    ):
        axis = known.obs_axis
        assert axis is not None
        rows_first = draws[site].movedim(axis, 0).double()
        values = rows_first.reshape(minibatch.n, num_samples, -1)
        members = torch.as_tensor(unit_of[start : start + minibatch.n], device=values.device)
        if sums is None:
            sums = values.new_zeros((len(units), *values.shape[1:]))
        sums.index_add_(0, members, values)
        counts += torch.bincount(members.cpu(), minlength=len(units))
        start += minibatch.n
    assert sums is not None
    means = sums.cpu() / counts[:, None, None]
    return GroupMeans(means.numpy(), side, groups, units, _index(model, manager, site))


def _importance_query(model: BaseModelClass, site: str) -> Any:
    module, predictive = model.module, model.sites[site].role is Role.OBSERVED

    def make(minibatch: Minibatch) -> Story:
        def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
            latents = resampled_latents(module, minibatch, values, NUM_PROPOSALS)
            trace = model_trace(module, minibatch, latents, predictive=predictive)
            nodes: Mapping[str, Any] = trace.nodes
            return {site: nodes[site]["value"]}

        return story

    return make


def _units(
    obs: pd.DataFrame,
    positions: NDArray[np.int64],
    groupby: str,
    groups: tuple[Any, Any],
    by: str | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Observations of both groups, the unit of each, and the group and name of each unit."""
    if len(groups) != 2 or groups[0] == groups[1]:
        raise ModelError(f"contrast={groups!r}: expected two different groups, (first, second).")
    for column in (groupby, by):
        if column is not None and column not in obs:
            raise MissingKeyError(
                f"{column!r} is no column of obs; columns: {', '.join(map(str, obs.columns))}."
            )
    labels = obs[groupby].to_numpy()[positions]
    rows: list[NDArray[np.int64]] = []
    unit_of: list[NDArray[np.int64]] = []
    side: list[int] = []
    names: list[str] = []
    for which, group in enumerate(groups):
        members = positions[labels == group]
        if not len(members):
            found = ", ".join(sorted({str(label) for label in labels})[:10])
            raise MissingKeyError(
                f"There is no observation of group {group!r} in obs[{groupby!r}]; its groups are: "
                f"{found}."
            )
        of_member = np.full(len(members), str(group))
        if by is not None:
            if obs[by].iloc[members].isna().any():
                raise ModelError(
                    f"obs[{by!r}] has no value for some observations of {group!r}: every "
                    "observation needs its unit. Fill them in, or leave those rows out (indices=)."
                )
            of_member = obs[by].astype(str).to_numpy()[members]
        unique, codes = np.unique(of_member, return_inverse=True)
        rows.append(members)
        unit_of.append(codes + len(names))
        side += [which] * len(unique)
        names += [str(name) for name in unique]
    return np.concatenate(rows), np.concatenate(unit_of), np.asarray(side), names


def _index(model: BaseModelClass, manager: AnnDataManager, site: str) -> pd.Index:
    known = model.sites[site]
    named = model.coords(manager, np.zeros(0, dtype=np.int64))
    dims: list[str] = []
    labels: list[Any] = []
    for dim, size in zip(known.dims, known.shape, strict=True):
        if dim is None or dim == OBS_PLATE:
            continue
        names = named(dim)
        dims.append(dim)
        labels.append(np.arange(int(size)) if names is None else names)
    return element_index(site, dims, labels)
