"""Fields of ``obsm`` and ``varm``: matrices aligned to observations or variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pandas as pd

from pyrovi.data.checks import check_values
from pyrovi.data.containers import AnyMatrix, as_matrix, preview
from pyrovi.data.fields.base import JSON, AnnDataField, AnyData, Axis, check_same_names
from pyrovi.errors import DataError


class ObsmField(AnnDataField):
    """An array of ``adata.obsm`` (dense, sparse or data frame), shape (n_obs, columns).

    Parameters
    ----------
    registry_key
        Name of the tensor.
    attr_key
        Key of ``adata.obsm``.
    colnames_uns_key
        Key of ``adata.uns`` with the names of the columns. By default the columns of a data frame,
        or "0", "1", ...
    is_count_data
        Whether the values are counts, and checked to be.

    Notes
    -----
    State: ``column_names``, ``is_count_data``. Summary statistic: ``n_<registry key>``, the number
    of columns. A transfer requires the same names in the same order.
    """

    def __init__(
        self,
        registry_key: str,
        attr_key: str,
        colnames_uns_key: str | None = None,
        is_count_data: bool = False,
    ) -> None:
        super().__init__(registry_key, f"{self.axis}m", attr_key)
        self.key = attr_key
        self.colnames_uns_key = colnames_uns_key
        self.is_count_data = is_count_data

    def _container(self, adata: AnyData) -> Any:
        return self._lookup(adata, self.attr_name, self.key)

    def _names(self, adata: AnyData) -> list[str]:
        container = self._container(adata)
        n_columns = as_matrix(container, self.where).shape[1]
        if self.colnames_uns_key is not None:
            names = [str(name) for name in self._lookup(adata, "uns", self.colnames_uns_key)]
            if len(names) != n_columns:
                raise DataError(
                    f"{self.owner}.uns[{self.colnames_uns_key!r}] has {len(names)} names, "
                    f"{self.where} has {n_columns} columns. Expected one name for each column: "
                    "correct the names."
                )
        elif isinstance(container, pd.DataFrame):
            names = [str(name) for name in container.columns]
        else:
            names = [str(column) for column in range(n_columns)]
        if not names:
            raise DataError(f"{self.where} has no columns. Expected one at least.")
        if len(set(names)) < len(names):
            twice = pd.Index(names)[pd.Index(names).duplicated()].unique()
            raise DataError(
                f"{self.where} has several columns of one name: {preview(twice)}. Expected unique "
                "names: rename or drop them."
            )
        return names

    def validate_field(self, adata: AnyData) -> None:
        check_values(
            as_matrix(self._container(adata), self.where),
            self.where,
            counts=self.is_count_data,
            fix="give raw counts, or register it with `is_count_data=False`",
            row_names=adata.var_names if self.axis == "var" else adata.obs_names,
            column_names=self._names(adata),
        )

    def register_field(self, adata: AnyData) -> JSON:
        self.validate_field(adata)
        return {
            "column_names": self._names(adata),
            "is_count_data": self.is_count_data,
            **self._size_state(adata),
        }

    def transfer_field(
        self,
        state_registry: Mapping[str, Any],
        adata_target: AnyData,
        *,
        extend_categories: bool = False,
        allow_missing_labels: bool = False,
    ) -> JSON:
        self._check_size(state_registry, adata_target)
        check_same_names(
            list(state_registry["column_names"]),
            self._names(adata_target),
            f"The columns of {self.where}",
            "select the columns by the names of the source",
        )
        return ObsmField.register_field(self, adata_target)

    def get_summary_stats(self, state_registry: Mapping[str, Any]) -> dict[str, int]:
        return {f"n_{self.registry_key}": len(state_registry["column_names"])}

    def get_field_data(self, adata: AnyData, state_registry: Mapping[str, Any]) -> AnyMatrix:
        return as_matrix(self._container(adata), self.where)

    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        return {
            "shape": self._shape(state_registry, len(state_registry["column_names"])),
            "dtype": "float32",
            "kind": "counts" if self.is_count_data else "continuous",
            "axis": self.axis,
        }


class VarmField(ObsmField):
    """An array of ``adata.varm``, shape (n_vars, columns).

    Parameters are those of :class:`ObsmField`; the state keeps ``n_vars`` as well.
    """

    axis: ClassVar[Axis] = "var"
