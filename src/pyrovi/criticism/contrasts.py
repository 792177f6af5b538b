"""Contrasts of posterior draws: along a dimension of a site, as differences or ratios."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrovi.errors import MissingKeyError, ModelError
from pyrovi.posterior.scalars import element_index

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from pyrovi.module.ledger import Site

Array = NDArray[np.float64]
Change = Literal["difference", "log2_ratio"]


def log2_positive(values: Array, pseudocount: float) -> Array:
    """Binary logarithm of values that have to be positive.

    Parameters
    ----------
    values
        Any shape.
    pseudocount
        Added to them first.

    Raises
    ------
    ModelError
        If a value is not positive then.
    """
    shifted = values + pseudocount
    if not (shifted > 0).all():
        raise ModelError(
            f"change='log2_ratio' needs positive values, found {shifted.min():.3g} (pseudocount "
            "included). Add a pseudocount, or use change='difference' for a site on another scale."
        )
    return np.asarray(np.log2(shifted))


def contrast_along(
    draws: xr.DataArray,
    site: Site,
    contrast: tuple[Any, Any] | None,
    dim: str | None,
    change: Change,
    pseudocount: float,
) -> tuple[Array, pd.Index]:
    """Contrast along a dimension of a site without observations.

    Parameters
    ----------
    draws
        Labelled draws of the site.
    site
        The site.
    contrast
        Two labels of one of its dimensions; ``None`` for the site itself.
    dim
        The dimension; ``None`` for the only one that has both labels.
    change, pseudocount
        As in :func:`~pyrovi.criticism.decide`.

    Returns
    -------
    tuple
        Draws of shape ``(S, K)`` and the names of the ``K`` elements.

    Raises
    ------
    ModelError
        If the question is ambiguous, or a ratio is not of positive values.
    MissingKeyError
        If the dimension or a label does not exist.
    """
    if contrast is None:
        if change != "difference" or dim is not None:
            raise ModelError(
                "Without contrast= the site itself is tested against zero: there is no ratio, and "
                "no dimension to compare along. Give contrast=(first, second) too."
            )
        return _flat(draws.astype(float))
    chosen = _dimension(draws, site.name, contrast, dim)
    first, second = (draws.sel({chosen: label}, drop=True).astype(float) for label in contrast)
    if change == "log2_ratio":
        first, second = (
            side.copy(data=log2_positive(side.values, pseudocount)) for side in (first, second)
        )
    return _flat(first - second)


def _dimension(draws: xr.DataArray, site: str, contrast: tuple[Any, Any], dim: str | None) -> str:
    dims = [str(d) for d in draws.dims if d != "draw"]
    if dim is not None and dim not in dims:
        raise MissingKeyError(
            f"{site!r} has no dimension {dim!r}; it has: {', '.join(dims) or 'none'}."
        )
    fitting = [
        d
        for d in (dims if dim is None else [dim])
        if all(label in draws.indexes[d] for label in contrast)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ModelError(
            f"{contrast} are labels of the dimensions {', '.join(fitting)}; name one: dim=..."
        )
    labels = "; ".join(f"{d}: {', '.join(map(str, draws[d].values[:8]))}" for d in dims)
    raise MissingKeyError(
        f"contrast={contrast!r} are no labels of a dimension of {site!r}. Its labels are: "
        f"{labels or 'none (a single number: leave contrast out)'}."
    )


def _flat(effect: xr.DataArray) -> tuple[Array, pd.Index]:
    values = effect.transpose("draw", ...)
    dims = [str(d) for d in values.dims if d != "draw"]
    labels = [values[d].to_numpy() for d in dims]
    return values.to_numpy().reshape(len(values), -1), element_index(str(effect.name), dims, labels)
