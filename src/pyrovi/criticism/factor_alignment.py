"""Factors of posterior draws brought to the factors of the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

from pyrovi.errors import ModelError

if TYPE_CHECKING:
    import xarray as xr

METHODS = ("rotation", "permutation", "signed_permutation")
"""Ways to align."""

MAX_PRODUCT_SIZE = 50
"""Variables of the anchor whose products are compared; of more, as many evenly spaced ones."""


@dataclass(frozen=True)
class Alignment:
    """Orthogonal matrices that bring the factors of each draw to the truth.

    Attributes
    ----------
    anchor
        Site that they were found with.
    factor
        Dimension that they act on.
    matrices
        Shape ``(S, F, F)``.
    truth
        True values of the anchor.
    """

    anchor: str
    factor: str
    matrices: np.ndarray
    truth: xr.DataArray

    def apply(self, drawn: xr.DataArray) -> xr.DataArray:
        """Aligned draws of any site that has the dimension.

        Raises
        ------
        ModelError
            If the site has it more than once.
        """
        axis = _factor_axis(drawn, self.factor)
        moved = np.moveaxis(drawn.to_numpy(), axis, 1)
        flat = moved.reshape(*moved.shape[:2], -1)
        aligned = (self.matrices @ flat).reshape(moved.shape)
        return drawn.copy(data=np.moveaxis(aligned, 1, axis))

    @property
    def product_name(self) -> str:
        """Name of the products of the anchor with itself."""
        return f"{self.anchor}'{self.anchor}"

    def products(self, values: xr.DataArray) -> xr.DataArray:
        """Sums over factors of products of the anchor's columns: no rotation changes them.

        Parameters
        ----------
        values
            Values of the anchor, with or without ``draw``.

        Returns
        -------
        xarray.DataArray
            Dimension ``pair``: each pair of columns once.
        """
        import xarray as xr

        drawn = "draw" in values.dims
        moved = np.moveaxis(values.to_numpy(), values.dims.index(self.factor), 1 if drawn else 0)
        columns = moved.reshape(len(moved) if drawn else 1, values.sizes[self.factor], -1)
        size = columns.shape[-1]
        kept = np.unique(np.linspace(0, size - 1, min(size, MAX_PRODUCT_SIZE)).round().astype(int))
        columns = columns[..., kept].astype(np.float64)
        products = np.swapaxes(columns, 1, 2) @ columns
        one, other = np.triu_indices(len(kept))
        pairs = products[:, one, other]
        if drawn:
            return xr.DataArray(pairs, dims=("draw", "pair"))
        return xr.DataArray(pairs[0], dims=("pair",))


def align_to_truth(drawn: xr.DataArray, truth: xr.DataArray, factor: str, method: str) -> Alignment:
    """Find the matrix of each draw that brings it closest to the truth.

    Parameters
    ----------
    drawn
        Draws of the anchor.
    truth
        Its true values, with the same dimensions but ``draw``.
    factor
        Dimension of the factors.
    method
        ``"rotation"``: any orthogonal matrix (Procrustes); ``"permutation"``: another order;
        ``"signed_permutation"``: another order and other signs.
    """
    moved = np.moveaxis(drawn.to_numpy(), _factor_axis(drawn, factor), 1).astype(np.float64)
    target = np.moveaxis(truth.to_numpy(), truth.dims.index(factor), 0).astype(np.float64)
    cross = target.reshape(len(target), -1) @ np.swapaxes(moved.reshape(*moved.shape[:2], -1), 1, 2)
    if method == "rotation":
        left, _, right = np.linalg.svd(cross)
        matrices = left @ right
    else:
        # of equal norm whatever the order, so the closest has the largest sum of products
        gain = np.abs(cross) if method == "signed_permutation" else cross
        matrices = np.zeros_like(cross)
        for draw, each in enumerate(gain):
            rows, columns = linear_sum_assignment(each, maximize=True)
            sign = np.sign(cross[draw, rows, columns]) if method == "signed_permutation" else 1.0
            matrices[draw, rows, columns] = np.where(sign == 0, 1.0, sign)
    return Alignment(str(drawn.name), factor, matrices, truth)


def _factor_axis(drawn: xr.DataArray, factor: str) -> int:
    axes = [axis for axis, dim in enumerate(drawn.dims) if dim == factor]
    if len(axes) != 1:
        raise ModelError(
            f"Site {drawn.name!r} has the dimensions {drawn.dims}; expected {factor!r} once."
        )
    return axes[0]
