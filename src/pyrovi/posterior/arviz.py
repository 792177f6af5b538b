"""ArviZ: groups of labelled datasets as the container of the installed ArviZ line."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyrovi.errors import DataError

if TYPE_CHECKING:
    import xarray as xr


def to_container(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any] | None = None) -> Any:
    """Put groups into an ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (1.x).

    Parameters
    ----------
    groups
        Group name (``posterior``, ``posterior_predictive``, ...) -> dataset.
    attrs
        Attributes of the container and of each group, whose own come first. What ArviZ writes
        itself (``created_at``, ``creation_library``, ``inference_library``, ``arviz_version``, ...)
        is added.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        What ``az.summary``, ``az.plot_forest``, ``az.loo`` of the installed line take.

    Raises
    ------
    DataError
        If labels are no longer unique once they are text (``1`` and ``"1"``).
    """
    shared = {**creation_attributes(), **(attrs or {})}
    made = {
        name: plain_labels(group).assign_attrs({**shared, **group.attrs})
        for name, group in groups.items()
    }
    if int(version("arviz").split(".")[0]) >= 1:
        import xarray as xr

        tree = xr.DataTree.from_dict({f"/{name}": group for name, group in made.items()})
        tree.attrs.update(shared)
        return tree
    import arviz as az

    return az.InferenceData(attrs=shared, **dict[str, Any](made))


def creation_attributes() -> dict[str, str]:
    """Attributes by which ArviZ's schema says who made a file, and when."""
    own = version("pyrovi")
    return {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "creation_library": "pyrovi",
        "creation_library_version": own,
        "creation_library_language": "Python",
        "inference_library": "pyrovi",
        "inference_library_version": own,
        "arviz_version": version("arviz"),
    }


def with_chain(dataset: xr.Dataset) -> xr.Dataset:
    """Add the chain dimension that ArviZ expects in front of ``draw``."""
    return dataset.expand_dims({"chain": [0]}) if "draw" in dataset.dims else dataset


def plain_labels(dataset: xr.Dataset) -> xr.Dataset:
    """A dataset whose labels are numbers or text.

    Other labels (booleans, dates, mixed types) become text: netCDF cannot store them, and ArviZ
    cannot select by them.

    Raises
    ------
    DataError
        If two labels are the same text.
    """
    changed = {}
    for dim, index in dataset.indexes.items():
        if index.dtype.kind in "iuf":
            continue
        labels = np.asarray([str(label) for label in index], dtype=object)
        if not pd.Index(labels).is_unique:
            repeated = pd.Index(labels)
            found = repeated[repeated.duplicated()].unique()[:3].tolist()
            raise DataError(
                f"Dimension {str(dim)!r} has labels that are the same text, e.g. {found}: in ArviZ "
                "they could not be told apart. Make them unique as text, e.g. "
                f"adata.obs[key].astype(str) before the setup."
            )
        changed[dim] = labels
    return dataset.assign_coords({dim: (dim, labels) for dim, labels in changed.items()})
