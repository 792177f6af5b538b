"""Labels: arrays of draws under the data's own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyrovi.errors import DataError, ModelError
from pyrovi.module.ledger import Site

if TYPE_CHECKING:
    import xarray as xr

RESERVED = ("chain", "draw", "sample")
"""Dimensions that have a meaning of their own in labelled draws, here and in ArviZ."""

Coords = Callable[[str], "np.ndarray | None"]
"""Coordinate values of a dimension; ``None`` if the data have no names for it."""


def label(
    arrays: Mapping[str, np.ndarray],
    sites: Mapping[str, Site],
    coords: Coords,
    *,
    leading: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Make a dataset of draws.

    Parameters
    ----------
    arrays
        Site -> array of shape ``(*leading, *site)``.
    sites
        Site -> what it is.
    coords
        Coordinate values by dimension.
    leading
        Names of the dimensions in front of the site's own, with their labels or ``None``.
    attrs
        Attributes of the dataset.

    Returns
    -------
    xarray.Dataset
        Broadcast dimensions of size one are left out.

    Raises
    ------
    DataError
        If coordinates repeat a label, which ArviZ and xarray cannot select by.
    ModelError
        If a dimension stands for two things: twice in a site, with two sizes, or named like a site
        or like the draws.
    """
    import xarray as xr

    leading = dict(leading or {})
    variables: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        site = sites[name]
        array = np.asarray(array)
        squeeze = tuple(len(leading) + i for i, dim in enumerate(site.dims) if dim is None)
        array = array.squeeze(squeeze)
        own = tuple(dim for dim in site.dims if dim is not None)
        dims = (*leading, *own)
        _check_dims(name, own, dict(zip(dims, array.shape, strict=True)), sizes, arrays)
        variables[name] = (dims, array)
        sizes.update(zip(dims, array.shape, strict=True))
    values = {dim: _labels(dim, size, leading.get(dim), coords) for dim, size in sizes.items()}
    return xr.Dataset(variables, coords=values, attrs=dict(attrs or {}))


def _check_dims(
    name: str,
    own: tuple[str, ...],
    now: Mapping[str, int],
    sizes: Mapping[str, int],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Refuse dimensions that could not be told apart; ``sizes`` are those of the sites before."""
    advice = "Give it another name in site_dims (or pv.plate)."
    for position, dim in enumerate(own):
        if dim in own[:position]:
            raise ModelError(
                f"Site {name!r} has the dimension {dim!r} twice ({', '.join(own)}), so no label "
                f"could say which is meant. {advice[:-1]}: e.g. "
                f"site_dims={{{name!r}: ({dim!r}, {dim + '_2'!r})}}."
            )
        if dim in RESERVED:
            raise ModelError(
                f"Site {name!r} has a dimension named {dim!r}, which is what the draws of a "
                f"posterior are called. {advice}"
            )
        if dim in arrays:
            raise ModelError(
                f"Site {name!r} has a dimension named {dim!r}, like the site {dim!r}: a labelled "
                f"result holds both under their names. {advice}"
            )
        if sizes.get(dim, now[dim]) != now[dim]:
            raise ModelError(
                f"Dimension {dim!r} has size {now[dim]} in site {name!r} and {sizes[dim]} in a "
                f"site before it. {advice}"
            )


def _labels(dim: str, size: int, given: Any, coords: Coords) -> np.ndarray:
    labels = coords(dim) if given is None else np.asarray(given)
    if labels is None:
        return np.arange(size)
    if len(labels) != size:
        raise DataError(
            f"Dimension {dim!r} has size {size}, but the data have {len(labels)} names for it. If "
            "the dimension is another one, give it another name in site_dims (or pv.plate)."
        )
    index = pd.Index(labels)
    if not index.is_unique:
        repeated = index[index.duplicated()].unique()[:3].tolist()
        raise DataError(
            f"Dimension {dim!r} has repeated names, e.g. {repeated}: labelled results need unique "
            "ones. Make them unique, e.g. adata.var_names_make_unique()."
        )
    # plain objects: categorical and other extension indexes cannot be written to netCDF
    return np.asarray(labels, dtype=object) if index.dtype.kind not in "iuf" else np.asarray(labels)
