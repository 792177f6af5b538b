"""Which observation each row of the per-observation parameters belongs to: it goes by name."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pyrovi.data import AnnDataManager
from pyrovi.errors import TrainingError

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


def names_of_rows(model: BaseModelClass) -> pd.Index | None:
    """Names for the rows of a new model: those of its data; ``None`` without rows or data."""
    if not model.module.row_parameters or model._adata_manager is None:
        return None
    return pd.Index(model._adata_manager.obs_names.astype(str))


def saved_names(model: BaseModelClass, names: Any) -> pd.Index | None:
    """Names for the rows of a model, as a file has them.

    Raises
    ------
    ValueError
        If they are not one name for each row.
    """
    if not model.module.row_parameters:
        return None
    n_obs = int(model.summary_stats.n_obs)
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or not len(names) == len(set(names)) == n_obs
    ):
        raise ValueError(
            f"obs_names must be the {n_obs} different names of the observations that "
            f"{model.module.row_parameters[0]!r} has rows of"
        )
    return pd.Index(names)


def rows_of(model: BaseModelClass, manager: AnnDataManager) -> np.ndarray:
    """Row of each observation of some data in the tables of a model, by name.

    Names that AnnData makes up (``"0"``, ``"1"``, ... in order) name positions, not observations:
    they are trusted in as many data of the model's own only.

    Parameters
    ----------
    model
        A model with per-observation parameters.
    manager
        Manager of the data.

    Returns
    -------
    ndarray
        Integers of shape ``(n_obs,)``; -1 for observations whose name the model does not know.
    """
    names = manager.obs_names.astype(str)
    own = manager is model._adata_manager and len(names) == model.summary_stats.n_obs
    if model._row_names is None or (not own and made_up(names)):
        return np.full(len(names), -1)
    return np.asarray(model._row_names.get_indexer(names))


def made_up(names: pd.Index) -> bool:
    """Whether names are the numbers of the positions."""
    return list(names) == [str(i) for i in range(len(names))]


def in_order(rows: np.ndarray, n_rows: int) -> bool:
    """Whether the observations are those of the tables, in the order of the rows."""
    return len(rows) == n_rows and bool((rows == np.arange(n_rows)).all())


def fingerprint(model: BaseModelClass) -> str | None:
    """Hash of data whose names identify nothing; ``None`` if names do, or no rows depend on them.

    Of up to 1000 observations, spread over the data.
    """
    manager, names = model._adata_manager, model._row_names
    if manager is None or names is None or not made_up(names):
        return None
    from pyrovi.dataloaders import AnnDataLoader

    n_obs = manager.n_obs
    chosen = np.unique(np.linspace(0, n_obs - 1, 1000).astype(np.int64))
    digest = hashlib.blake2b(str(n_obs).encode(), digest_size=16)
    for minibatch in AnnDataLoader(manager, chosen, batch_size=100):
        for name in sorted(minibatch):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(minibatch[name].cpu().numpy()).tobytes())
    return digest.hexdigest()


def align_rows(model: BaseModelClass, known: str | None = None) -> None:
    """Bring rows and index sets into the order of the model's data, if they are a permutation.

    Parameters
    ----------
    model
        A loaded model with its data.
    known
        Fingerprint of the data that it was saved with.

    Warns
    -----
    UserWarning
        If names match that identify nothing, and the data are others.
    """
    manager = model._adata_manager
    if manager is None or not model.module.row_parameters or model._row_names is None:
        return
    rows = rows_of(model, manager)
    n_rows = len(model._row_names)
    nameless = in_order(rows, n_rows) and made_up(model._row_names)
    if nameless and (known is None or known != fingerprint(model)):
        warnings.warn(
            f"{', '.join(model.module.row_parameters)} belong to observations named '0', '1', ..., "
            "and the data given are not those that the model was saved with. That they are these "
            "observations in this order is taken for granted. Give the data obs_names of their own "
            "before training.",
            stacklevel=5,
        )
    if len(rows) != n_rows or (rows < 0).any() or in_order(rows, n_rows):
        return
    tables = dict(model.module.named_parameters())
    with torch.no_grad():
        for name, axis in model.module.row_axes.items():
            table = tables[name]
            table.copy_(table.index_select(table.dim() + axis, torch.as_tensor(rows)))
            for state in model._restarts:
                saved = state[name]
                state[name] = saved.index_select(saved.dim() + axis, torch.as_tensor(rows))
    position_of = np.argsort(rows)
    for which in ("train_indices", "validation_indices", "test_indices"):
        indices = getattr(model, which)
        if indices is not None:
            setattr(model, which, position_of[indices])
    model._row_names = model._row_names[rows]


def check_rows(model: BaseModelClass) -> None:
    """Refuse to train the rows of some observations on others.

    Raises
    ------
    TrainingError
        If the model's data are not the observations that its rows belong to.
    """
    if not model.module.row_parameters:
        return
    manager = model.adata_manager
    n_rows = int(model.summary_stats.n_obs)
    rows = rows_of(model, manager)
    if in_order(rows, n_rows):
        return
    raise TrainingError(
        f"{', '.join(model.module.row_parameters)} have one row for each of the {n_rows} "
        f"observations the model was made with; these data have {manager.n_obs}, of which "
        f"{int((rows >= 0).sum())} are known by their obs_names"
        + (" but are in another order" if len(rows) == n_rows and (rows >= 0).all() else "")
        + ". Make a new model of these data, load this one with the data it was made with, or "
        "query it with adata=."
    )
