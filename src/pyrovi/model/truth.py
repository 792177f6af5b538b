"""The truth of simulated data, kept in the data themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi.data.fields.mudata import is_mudata
from pyrovi.errors import DataError
from pyrovi.module.plates import OBS_PLATE

if TYPE_CHECKING:
    import xarray as xr

TRUTH_KEY = "pyrovi_truth"
"""Key of ``uns`` with the true values of global sites."""

ABOUT_KEY = "pyrovi_truth_about"
"""Key of ``uns`` with a JSON text: where the truth of each site is, its dimensions, the seed."""

_PREFIX = "truth_"
_VAR = "var"


def store_truth(data: Any, truth: xr.Dataset, about: Mapping[str, Any]) -> None:
    """Write true values into data, where subsetting and files keep them.

    Sites with observations go to ``obsm["truth_<site>"]`` (``layers``, if they have variables too
    and nothing else), sites with variables to ``varm``, all others to ``uns["pyrovi_truth"]``.

    Parameters
    ----------
    data
        AnnData or MuData, changed in place. A MuData has variables of its modalities only: there
        all that has no observations goes to ``uns``.
    truth
        One variable per site.
    about
        Plain facts to keep, e.g. the seed.
    """
    has_variables = not is_mudata(data)
    sites: dict[str, Any] = {}
    whole: dict[str, np.ndarray] = {}
    for name, variable in truth.data_vars.items():
        values, dims = variable.to_numpy(), tuple(map(str, variable.dims))
        of_variables = has_variables and _VAR in dims and variable.sizes[_VAR] == data.n_vars
        key = _PREFIX + str(name).replace("/", "%2F")
        if of_variables and dims == (OBS_PLATE, _VAR):
            place = "layers"
            data.layers[key] = values
        elif OBS_PLATE in dims:
            place = "obsm"
            data.obsm[key] = _rows(values, dims.index(OBS_PLATE))
        elif of_variables:
            place = "varm"
            data.varm[key] = _rows(values, dims.index(_VAR))
        else:
            place, key = "uns", key.removeprefix(_PREFIX)
            whole[key] = values
        shape = [int(n) for n in values.shape]
        sites[str(name)] = {"place": place, "key": key, "dims": list(dims), "shape": shape}
    named = {OBS_PLATE}
    if has_variables:
        named.add(_VAR)
    coords = {
        str(dim): [str(label) for label in truth[dim].to_numpy()]
        for dim in truth.dims
        if dim not in named and truth[dim].dtype.kind not in "iu"
    }
    data.uns[TRUTH_KEY] = whole
    data.uns[ABOUT_KEY] = json.dumps({**about, "sites": sites, "coords": coords})


def truth_of(data: Any) -> xr.Dataset:
    """True values of the sites that simulated data were made with.

    Parameters
    ----------
    data
        AnnData or MuData from :meth:`~pyrovi.model.BaseModelClass.simulate`, or a subset of it, or
        read from its file.

    Returns
    -------
    xarray.Dataset
        One variable per latent and deterministic site, under the data's own names. Its attributes
        are ``source`` (``"prior"`` or ``"posterior"``), ``seed`` and ``model``.

    Raises
    ------
    DataError
        If the data carry no truth.
    """
    import xarray as xr

    uns = getattr(data, "uns", {})
    if ABOUT_KEY not in uns:
        raise DataError(
            f"These data ({type(data).__name__}) carry no truth: uns has no {ABOUT_KEY!r}. "
            "Expected data from model.simulate(...)."
        )
    about = json.loads(str(uns[ABOUT_KEY]))
    variables: dict[str, Any] = {}
    for name, site in about["sites"].items():
        container = uns[TRUTH_KEY] if site["place"] == "uns" else getattr(data, site["place"])
        variables[name] = (site["dims"], _shaped(container[site["key"]], site))
    sizes = {
        dim: n
        for dims, values in variables.values()
        for dim, n in zip(dims, values.shape, strict=True)
    }
    coords = {dim: _labels(data, dim, size, about["coords"]) for dim, size in sizes.items()}
    attrs = {key: value for key, value in about.items() if key not in ("sites", "coords")}
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def _rows(values: np.ndarray, axis: int) -> np.ndarray:
    moved = np.moveaxis(values, axis, 0)
    return moved.reshape(len(moved), -1)


def _shaped(stored: Any, site: Mapping[str, Any]) -> np.ndarray:
    values, shape, dims = np.asarray(stored), list(site["shape"]), site["dims"]
    if site["place"] == "uns":
        return values.reshape(shape)
    if site["place"] == "layers":
        return values
    axis = dims.index(OBS_PLATE if site["place"] == "obsm" else _VAR)
    others = shape[:axis] + shape[axis + 1 :]
    return np.moveaxis(values.reshape(len(values), *others), 0, axis)


def _labels(data: Any, dim: str, size: int, coords: Mapping[str, Any]) -> Any:
    if dim in coords:
        return np.asarray(coords[dim], dtype=object)
    if dim == OBS_PLATE:
        return np.asarray(data.obs_names, dtype=object)
    if dim == _VAR and size == data.n_vars:
        return np.asarray(data.var_names, dtype=object)
    return np.arange(size)
