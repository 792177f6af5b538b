"""Scalars: every single number of labelled draws as a column with a name of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def scalar_columns(
    dataset: xr.Dataset, leading: Sequence[str] = ("draw",)
) -> tuple[list[str], NDArray[np.float64]]:
    """Columns of a dataset of draws.

    Parameters
    ----------
    dataset
        Labelled draws.
    leading
        Dimensions that are not part of a scalar's name, in the order wanted.

    Returns
    -------
    tuple
        Names, e.g. ``"mu"`` and ``"beta[var=CD3D]"``, and values of shape ``(*leading, K)``, in
        double precision.
    """
    names: list[str] = []
    columns: list[NDArray[np.float64]] = []
    sizes = tuple(dataset.sizes[dim] for dim in leading)
    for name, array in dataset.data_vars.items():
        rest = [str(dim) for dim in array.dims if dim not in leading]
        values = array.transpose(*leading, *rest).to_numpy()
        columns.append(values.reshape(*sizes, -1).astype(np.float64))
        labels = [[f"{dim}={label}" for label in array[dim].to_numpy()] for dim in rest]
        names += _names(str(name), labels)
    together = np.concatenate(columns, -1) if columns else np.zeros((*sizes, 0))
    return names, together


def element_index(site: str, dims: Sequence[str], labels: Sequence[Any]) -> pd.Index:
    """Index of the elements of a site: by its dimension, by several, or its name alone.

    Parameters
    ----------
    site
        Name of the site.
    dims, labels
        Its dimensions and their labels.
    """
    import pandas as pd

    if not dims:
        return pd.Index([site], name="site")
    if len(dims) == 1:
        return pd.Index(labels[0], name=dims[0])
    return pd.MultiIndex.from_product(list(labels), names=list(dims))


def _names(site: str, labels: list[list[str]]) -> list[str]:
    if not labels:
        return [site]
    sizes = [len(values) for values in labels]
    return [
        f"{site}[{', '.join(labels[i][k] for i, k in enumerate(np.unravel_index(flat, sizes)))}]"
        for flat in range(math.prod(sizes))
    ]
