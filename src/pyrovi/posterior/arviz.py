"""ArviZ: groups of labelled datasets as the container of the installed ArviZ line."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr


def to_container(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any] | None = None) -> Any:
    """Put groups into an ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (1.x).

    Parameters
    ----------
    groups
        Group name (``posterior``, ``posterior_predictive``, ...) -> dataset.
    attrs
        Attributes of the container.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        What ``az.summary``, ``az.plot_forest``, ``az.loo`` of the installed line take.
    """
    if int(version("arviz").split(".")[0]) >= 1:
        import xarray as xr

        tree = xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})
        tree.attrs.update(attrs or {})
        return tree
    import arviz as az

    return az.InferenceData(attrs=dict(attrs or {}), **dict[str, Any](groups))


def with_chain(dataset: xr.Dataset) -> xr.Dataset:
    """Add the chain dimension that ArviZ expects in front of ``draw``."""
    return dataset.expand_dims({"chain": [0]}) if "draw" in dataset.dims else dataset
