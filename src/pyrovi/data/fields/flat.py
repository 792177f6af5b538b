"""Fields in the shape that the data themselves have: vectors, and arrays of any number of axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrovi.data.categories import find_categories
from pyrovi.data.checks import pieces_to_check
from pyrovi.data.containers import is_backed, is_sparse, locate
from pyrovi.data.fields.base import JSON, AnnDataField, AnyData
from pyrovi.data.fields.dataframe import CategoricalObsField, NumericalObsField
from pyrovi.errors import DataError, RegistryError


class ColumnField(NumericalObsField):
    """A numeric column of ``adata.obs`` as a vector of shape (n_obs,).

    Parameters
    ----------
    registry_key
        Name of the tensor.
    attr_key
        Name of the column.
    integers
        Whether the values are integers that stay integers, e.g. to index with.
    """

    def __init__(self, registry_key: str, attr_key: str, integers: bool = False) -> None:
        super().__init__(registry_key, attr_key)
        self.integers = integers

    def _values(self, adata: AnyData) -> NDArray[Any]:
        values = super()._values(adata)
        if self.integers:
            _check_integers(values, self.where)
        return values

    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        dtype = "int64" if self.integers else "float32"
        return super().tensor_spec(state_registry) | {"shape": [], "dtype": dtype}


class IntegerObsField(ColumnField):
    """A column of integers of ``adata.obs``, shape (n_obs, 1); they stay integers.

    Parameters are the first two of :class:`ColumnField`.
    """

    def __init__(self, registry_key: str, attr_key: str) -> None:
        super().__init__(registry_key, attr_key, integers=True)

    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        return super().tensor_spec(state_registry) | {"shape": [1]}


class CategoricalColumnField(CategoricalObsField):
    """A categorical column of ``adata.obs`` as a vector of integer codes, shape (n_obs,).

    Parameters, state and summary statistic are those of :class:`CategoricalObsField`.
    """

    def register_field(self, adata: AnyData) -> JSON:
        # Groups of few rows are what hierarchical models are for: no warning.
        categories, _ = find_categories(self._column(adata, str(self.key)), self.where)
        return {"categorical_mapping": categories, "original_key": self.key}

    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        return super().tensor_spec(state_registry) | {"shape": []}


class ArrayField(AnnDataField):
    """An array of ``adata.obsm`` with any number of axes, shape (n_obs, ...), dense or sparse.

    Parameters
    ----------
    registry_key
        Name of the tensor.
    attr_key
        Key of ``adata.obsm``.
    integers
        Whether the values are integers that stay integers.

    Notes
    -----
    State: ``shape``, of one observation. Summary statistic: ``n_<registry key>``, the length of the
    last axis. A transfer requires the same shape.
    """

    def __init__(self, registry_key: str, attr_key: str, integers: bool = False) -> None:
        super().__init__(registry_key, "obsm", attr_key)
        self.key = attr_key
        self.integers = integers

    def _array(self, adata: AnyData) -> Any:
        array = self._lookup(adata, "obsm", self.key)
        if not (is_sparse(array) or is_backed(array)):
            array = np.asarray(array)
        if np.dtype(array.dtype).kind not in "biuf":
            raise DataError(f"{self.where} is of dtype {array.dtype}. Expected numbers.")
        return array

    def _checked(self, adata: AnyData) -> Any:
        array = self._array(adata)
        for first_row, _, block in pieces_to_check(array):
            values = block.data if is_sparse(block) else np.asarray(block)
            if not (finite := np.isfinite(values)).all():
                at = int(np.argmin(finite))
                place = (
                    locate(block, at) if is_sparse(block) else np.unravel_index(at, values.shape)
                )
                row, *rest = map(int, place)
                raise DataError(
                    f"{self.where} has {values.flat[at]} at {(first_row + row, *rest)}. "
                    "Expected finite numbers: impute the missing ones, or leave these observations "
                    "out."
                )
            if self.integers:
                _check_integers(values, self.where)
        return array

    def validate_field(self, adata: AnyData) -> None:
        self._checked(adata)

    def register_field(self, adata: AnyData) -> JSON:
        return {"shape": [int(n) for n in self._checked(adata).shape[1:]]}

    def transfer_field(
        self,
        state_registry: Mapping[str, Any],
        adata_target: AnyData,
        *,
        extend_categories: bool = False,
        allow_missing_labels: bool = False,
    ) -> JSON:
        state = self.register_field(adata_target)
        if state["shape"] != list(state_registry["shape"]):
            raise RegistryError(
                f"{self.where} has the shape {state['shape']} per observation. Expected that of "
                f"the source, {list(state_registry['shape'])}."
            )
        return state

    def get_summary_stats(self, state_registry: Mapping[str, Any]) -> dict[str, int]:
        return {f"n_{self.registry_key}": int(state_registry["shape"][-1])}

    def get_field_data(self, adata: AnyData, state_registry: Mapping[str, Any]) -> Any:
        return self._array(adata)

    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        return {
            "shape": list(state_registry["shape"]),
            "dtype": "int64" if self.integers else "float32",
            "kind": "continuous",
            "axis": "obs",
        }


def _check_integers(values: NDArray[Any], where: str) -> None:
    whole = values == np.floor(values)
    if not whole.all():
        raise DataError(
            f"{where} holds {values[~whole].flat[0]!s}. Expected integers, as its field says: use "
            "kind='numbers'."
        )
