"""Selections of observations: integer positions or boolean masks, checked once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrovi.errors import DataError


def resolve_indices(indices: Any, n_obs: int, what: str = "indices") -> NDArray[np.int64]:
    """Turn a selection of observations into integer positions.

    Parameters
    ----------
    indices
        ``None`` (all observations), integer positions in ``[0, n_obs)`` in any order and with
        repetitions, or a boolean mask of length ``n_obs``. Never modified.
    n_obs
        Number of observations to select from.
    what
        What the selection is called in error messages.

    Returns
    -------
    ndarray
        New int64 array of shape ``(n,)``, in the order given.

    Raises
    ------
    DataError
        If the selection is empty, not one-dimensional, neither integer nor boolean, out of range,
        or a mask of another length.
    """
    if indices is None:
        if n_obs == 0:
            raise DataError(f"{what}: there are no observations to select from")
        return np.arange(n_obs, dtype=np.int64)
    array = np.asarray(indices)
    if array.ndim != 1:
        raise DataError(f"{what} must be one-dimensional, got shape {array.shape}")
    if array.dtype == np.bool_:
        if len(array) != n_obs:
            raise DataError(
                f"{what} is a boolean mask of length {len(array)}, expected one entry for each of "
                f"the {n_obs} observations"
            )
        array = np.flatnonzero(array)
    if array.size == 0:
        raise DataError(f"{what} selects no observation; give at least one of the {n_obs}")
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{what} must be integer positions or a boolean mask, got dtype {array.dtype}; "
            "positions of names: adata.obs_names.get_indexer(names)"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= n_obs:
        raise DataError(
            f"{what} holds position {low if low < 0 else high}, expected positions from 0 to "
            f"{n_obs - 1}"
        )
    return np.array(array, dtype=np.int64)
