"""Fields of ``X`` and the layers: the observations-by-variables matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data.checks import check_values, warn_empty_columns, warn_reads
from pyrovi.data.containers import AnyMatrix, as_matrix, row_sums
from pyrovi.data.fields.base import JSON, AnnDataField, AnyData, check_same_names
from pyrovi.errors import DataError, MissingKeyError


class LayerField(AnnDataField):
    """A layer of the AnnData, or ``X``.

    Parameters
    ----------
    registry_key
        Name of the tensor.
    layer
        Key of ``adata.layers``; ``None`` for ``adata.X``.
    is_count_data
        Whether the values are counts. Counts are checked to be finite non-negative integers.
    check_fragment_counts
        Warn if the counts look like sequencing reads where fragments are expected (chromatin).
    allow_empty_obs
        Whether observations without a single count are accepted, as in multi-modal data where a
        modality was not measured for some. Always true for non-counts.

    Notes
    -----
    State: ``n_obs``, ``n_vars``, ``column_names``, ``is_count_data``. Summary statistics:
    ``n_vars`` and ``n_cells`` for the registry key ``"X"``, otherwise ``n_<registry key>``.
    """

    def __init__(
        self,
        registry_key: str,
        layer: str | None = None,
        is_count_data: bool = True,
        check_fragment_counts: bool = False,
        allow_empty_obs: bool = False,
    ) -> None:
        super().__init__(registry_key, "X" if layer is None else "layers", layer)
        self.layer = layer
        self.is_count_data = is_count_data
        self.check_fragment_counts = check_fragment_counts
        self.allow_empty_obs = allow_empty_obs

    def _matrix(self, adata: AnyData) -> AnyMatrix:
        if self.layer is not None:
            return as_matrix(self._lookup(adata, "layers", self.layer), self.where)
        if adata.X is None:
            raise MissingKeyError(
                f"{self.owner}.X is empty (None). Expected a matrix: name one of the layers with "
                f"`layer=`; there are {list(adata.layers) or 'none'}."
            )
        return as_matrix(adata.X, self.where)

    def _check(self, adata: AnyData, *, first_time: bool) -> AnyMatrix:
        matrix = self._matrix(adata)
        nonzero = check_values(
            matrix,
            self.where,
            counts=self.is_count_data,
            fix="name the layer that holds raw counts with `layer=`",
            row_names=adata.obs_names,
            column_names=adata.var_names,
            allow_empty_rows=self.allow_empty_obs,
        )
        if first_time and nonzero is not None:
            warn_empty_columns(nonzero, adata.var_names, self.where)
        if first_time and self.check_fragment_counts:
            warn_reads(matrix, self.where)
        return matrix

    def validate_field(self, adata: AnyData) -> None:
        self._check(adata, first_time=False)

    def register_field(self, adata: AnyData) -> JSON:
        self._check(adata, first_time=True)
        return self._state(adata)

    def _state(self, adata: AnyData) -> JSON:
        return {
            "n_obs": int(adata.n_obs),
            "n_vars": int(adata.n_vars),
            "column_names": [str(name) for name in adata.var_names],
            "is_count_data": self.is_count_data,
        }

    def transfer_field(
        self,
        state_registry: Mapping[str, Any],
        adata_target: AnyData,
        *,
        extend_categories: bool = False,
        allow_missing_labels: bool = False,
    ) -> JSON:
        self._matrix(adata_target)
        state = self._state(adata_target)
        check_same_names(
            list(state_registry["column_names"]),
            state["column_names"],
            f"{self.owner}.var_names",
            f"`{self.owner}[:, model.var_names]`",
        )
        self.validate_field(adata_target)
        return state

    def get_summary_stats(self, state_registry: Mapping[str, Any]) -> dict[str, int]:
        if self.registry_key == REGISTRY_KEYS.X_KEY:
            return {"n_vars": state_registry["n_vars"], "n_cells": state_registry["n_obs"]}
        return {f"n_{self.registry_key}": state_registry["n_vars"]}

    def get_field_data(self, adata: AnyData, state_registry: Mapping[str, Any]) -> AnyMatrix:
        return self._matrix(adata)

    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        return {
            "shape": [state_registry["n_vars"]],
            "dtype": "float32",
            "kind": "counts" if self.is_count_data else "continuous",
            "axis": "obs",
        }


def carried_total(layer: str | None) -> str:
    """Column of ``obs`` in which simulated data carry the row sums they were simulated with.

    Parameters
    ----------
    layer
        Key of ``layers``; ``None`` for ``X``.
    """
    return "pyrovi_total_X" if layer is None else f"pyrovi_total_layers_{layer}".replace("/", "%2F")


class TotalField(LayerField):
    """Row sums of a layer: total counts (library size) of each observation, shape (n_obs, 1).

    Parameters
    ----------
    registry_key
        Name of the tensor.
    layer
        Key of ``adata.layers``; ``None`` for ``adata.X``.
    is_count_data
        Whether the layer holds counts (checked as in :class:`LayerField`).

    Notes
    -----
    Data from ``model.simulate`` carry the sums that they were simulated with, the true covariate,
    in the column ``pyrovi_total_X`` (or ``pyrovi_total_layers_<layer>``) of ``obs``. They are read
    in place of the sums of the simulated values, which are another covariate, and one that knows of
    the noise. Remove the column to have sums again.
    """

    def __init__(
        self, registry_key: str, layer: str | None = None, is_count_data: bool = True
    ) -> None:
        super().__init__(registry_key, layer, is_count_data)

    def get_summary_stats(self, state_registry: Mapping[str, Any]) -> dict[str, int]:
        return {}

    def get_field_data(self, adata: AnyData, state_registry: Mapping[str, Any]) -> AnyMatrix:
        carried = carried_total(self.layer)
        if carried not in adata.obs:
            return row_sums(self._matrix(adata)).reshape(-1, 1)
        values = adata.obs[carried].to_numpy(dtype=np.float64)
        if not np.isfinite(values).all():
            raise DataError(
                f"{int((~np.isfinite(values)).sum())} values of obs[{carried!r}] are missing. "
                "Expected the sums that these data were simulated with, for every observation: "
                "simulated and other data seem to have been put together. Remove the column to "
                "have row sums."
            )
        return values.reshape(-1, 1)

    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        return {"shape": [1], "dtype": "float32", "kind": "continuous", "axis": "obs"}
