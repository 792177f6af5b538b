"""What a model holds in the place of its guide: whose draws they are, and how they are saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovi.data import AnnDataManager
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.model.rows import made_up
from pyrovi.module.stored import ROWS, NormalPosterior, StoredDraws

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


def has_stored_locals(model: BaseModelClass) -> bool:
    """Whether the posterior is draws of the latents of certain observations."""
    posterior = model.module.posterior
    return isinstance(posterior, StoredDraws) and bool(posterior.obs_axes)


def stored_rows(model: BaseModelClass, manager: AnnDataManager) -> np.ndarray:
    """Row of each observation of some data in the stored draws, by name; -1 for none.

    As everywhere, names that AnnData makes up are trusted in the model's own data only.
    """
    posterior = model.module.posterior
    assert isinstance(posterior, StoredDraws)
    names = manager.obs_names.astype(str)
    own = manager is model._adata_manager and len(names) == model.summary_stats.n_obs
    if not own and made_up(names):
        return np.full(len(names), -1)
    return np.asarray(pd.Index(posterior.obs_names).get_indexer(names))


def with_stored_rows(batches: Iterable[Minibatch], rows: np.ndarray) -> Iterator[Minibatch]:
    """Minibatches that know the rows of their observations in the stored draws.

    Parameters
    ----------
    batches
        The minibatches.
    rows
        Row of each of their observations, in their order.
    """
    start, all_rows = 0, torch.as_tensor(rows)
    for minibatch in batches:
        chosen = all_rows[start : start + minibatch.n].to(minibatch.indices.device)
        start += minibatch.n
        yield minibatch.replace(tensors={**minibatch.tensors, ROWS: chosen})


def describe_posterior(model: BaseModelClass) -> dict[str, Any] | None:
    """The posterior for the description of a saved model; its tensors are the module's."""
    posterior = model.module.posterior
    if isinstance(posterior, StoredDraws):
        return {
            "kind": "draws",
            "sites": list(posterior.names),
            "obs_axes": posterior.obs_axes,
            "obs_names": list(posterior.obs_names),
            "statistics": list(posterior.statistic_names),
        }
    if isinstance(posterior, NormalPosterior):
        shapes = {name: list(shape) for name, shape in posterior.shapes.items()}
        return {"kind": "normal", "sites": shapes}
    return None


def restore_posterior(
    model: BaseModelClass, description: Mapping[str, Any] | None, state: Mapping[str, Tensor]
) -> None:
    """Make the posterior of a saved model again, ready to load its tensors.

    Parameters
    ----------
    model
        The model.
    description
        What :func:`describe_posterior` returned.
    state
        Tensors of the module.

    Raises
    ------
    KeyError, TypeError, ValueError, AttributeError
        If the description is damaged.
    """
    if description is None:
        return
    posterior: StoredDraws | NormalPosterior
    if description["kind"] == "normal":
        sites = {
            name: (model.sites[name].support, shape) for name, shape in description["sites"].items()
        }
        tensors = (state["posterior.loc"], state["posterior.scale_tril"])
        posterior = NormalPosterior(*tensors, sites)
    elif description["kind"] == "draws":
        names = description["sites"]
        posterior = StoredDraws(
            {model.sites[n].name: state[f"posterior.value_{i}"] for i, n in enumerate(names)},
            {name: int(axis) for name, axis in description["obs_axes"].items()},
            [str(name) for name in description["obs_names"]],
            {n: state[f"posterior.statistic_{n}"] for n in description["statistics"]},
        )
    else:
        raise ValueError(f"posterior is of kind {description['kind']!r}")
    model.module.use_posterior(posterior)
