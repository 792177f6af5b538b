"""Fields of several columns of ``obs`` or ``var`` that make one tensor: covariates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pyrovi.data.categories import encode, find_categories, raise_unseen, unseen_categories
from pyrovi.data.checks import numeric_column, warn_rare_categories
from pyrovi.data.containers import preview
from pyrovi.data.fields.base import JSON, AnnDataField, AnyData, Axis
from pyrovi.errors import DataError


class _JointField(AnnDataField):
    """What joint fields share: a list of columns, possibly none.

    Parameters
    ----------
    registry_key
        Name of the tensor.
    attr_keys
        Names of the columns, in the order of the tensor's columns. ``None`` or an empty list makes
        the field empty; its summary statistic ``n_<registry key>`` is then 0.
    """

    def __init__(self, registry_key: str, attr_keys: Sequence[str] | None = None) -> None:
        if isinstance(attr_keys, str):
            raise DataError(
                f"The field {registry_key!r} got the string {attr_keys!r}. Expected a list of "
                f"columns of adata.{self.axis}: pass [{attr_keys!r}]."
            )
        keys = [] if attr_keys is None else [str(key) for key in attr_keys]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise DataError(
                f"The field {registry_key!r} names columns more than once: {preview(twice)}. "
                "Expected each column once: remove the repetition."
            )
        super().__init__(registry_key, self.axis, keys)
        self.keys = keys

    @property
    def attr_keys(self) -> list[str]:
        """Names of the columns."""
        return list(self.keys)

    @property
    def is_empty(self) -> bool:
        return not self.keys

    def get_summary_stats(self, state_registry: Mapping[str, Any]) -> dict[str, int]:
        return {f"n_{self.registry_key}": len(self.keys)}


class NumericalJointObsField(_JointField):
    """Numeric columns of ``adata.obs`` side by side, shape (n_obs, number of columns).

    Parameters
    ----------
    registry_key
        Name of the tensor.
    attr_keys
        Names of the columns; ``None`` or empty makes the field empty.

    Notes
    -----
    State: ``columns``. Summary statistic: ``n_<registry key>``, the number of columns.
    """

    def validate_field(self, adata: AnyData) -> None:
        for key in self.keys:
            numeric_column(self._column(adata, key), self._where(key))

    def register_field(self, adata: AnyData) -> JSON:
        if self.is_empty:
            return {}
        self.validate_field(adata)
        return {"columns": self.attr_keys, **self._size_state(adata)}

    def transfer_field(
        self,
        state_registry: Mapping[str, Any],
        adata_target: AnyData,
        *,
        extend_categories: bool = False,
        allow_missing_labels: bool = False,
    ) -> JSON:
        if not self.is_empty:
            self._check_size(state_registry, adata_target)
        return self.register_field(adata_target)

    def get_field_data(self, adata: AnyData, state_registry: Mapping[str, Any]) -> NDArray[Any]:
        columns = [numeric_column(self._column(adata, k), self._where(k)) for k in self.keys]
        return np.column_stack(columns)

    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        return {
            "shape": self._shape(state_registry, len(self.keys)),
            "dtype": "float32",
            "kind": "continuous",
            "axis": self.axis,
        }


class NumericalJointVarField(NumericalJointObsField):
    """Numeric columns of ``adata.var`` side by side, shape (n_vars, number of columns).

    Parameters are those of :class:`NumericalJointObsField`; the state keeps ``n_vars`` as well.
    """

    axis: ClassVar[Axis] = "var"


class CategoricalJointObsField(_JointField):
    """Categorical columns of ``adata.obs`` side by side, as codes, shape (n_obs, columns).

    Parameters
    ----------
    registry_key
        Name of the tensor.
    attr_keys
        Names of the columns; ``None`` or empty makes the field empty.

    Notes
    -----
    State: ``mappings`` (column -> category of each code), ``field_keys`` and ``n_cats_per_key``.
    Summary statistic: ``n_<registry key>``, the number of columns.
    """

    def validate_field(self, adata: AnyData) -> None:
        for key in self.keys:
            find_categories(self._column(adata, key), self._where(key))

    def _state(self, mappings: dict[str, list[Any]], adata: AnyData) -> JSON:
        return {
            "mappings": mappings,
            "field_keys": self.attr_keys,
            "n_cats_per_key": [len(mappings[key]) for key in self.keys],
            **self._size_state(adata),
        }

    def register_field(self, adata: AnyData) -> JSON:
        if self.is_empty:
            return {}
        mappings: dict[str, list[Any]] = {}
        for key in self.keys:
            categories, counts = find_categories(self._column(adata, key), self._where(key))
            warn_rare_categories(categories, counts, self._where(key))
            mappings[key] = categories
        return self._state(mappings, adata)

    def transfer_field(
        self,
        state_registry: Mapping[str, Any],
        adata_target: AnyData,
        *,
        extend_categories: bool = False,
        allow_missing_labels: bool = False,
    ) -> JSON:
        if self.is_empty:
            return {}
        self._check_size(state_registry, adata_target)
        mappings: dict[str, list[Any]] = {}
        for key in self.keys:
            known = list(state_registry["mappings"][key])
            column, where = self._column(adata_target, key), self._where(key)
            unseen = unseen_categories(column, known, where)
            if unseen and not extend_categories:
                raise_unseen(unseen, known, where)
            mappings[key] = known + unseen
        return self._state(mappings, adata_target)

    def get_field_data(
        self, adata: AnyData, state_registry: Mapping[str, Any]
    ) -> NDArray[np.int64]:
        mappings = state_registry["mappings"]
        codes = [encode(self._column(adata, k), mappings[k], self._where(k)) for k in self.keys]
        return np.column_stack(codes)

    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        return {
            "shape": self._shape(state_registry, len(self.keys)),
            "dtype": "int64",
            "kind": "categorical",
            "axis": self.axis,
        }


class CategoricalJointVarField(CategoricalJointObsField):
    """Categorical columns of ``adata.var`` side by side, as codes, shape (n_vars, columns).

    Parameters are those of :class:`CategoricalJointObsField`; the state keeps ``n_vars`` as well.
    """

    axis: ClassVar[Axis] = "var"
