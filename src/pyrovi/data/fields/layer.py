"""Fields of ``X`` and the layers: the observations-by-variables matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data.checks import check_values, warn_empty_columns, warn_reads
from pyrovi.data.containers import AnyMatrix, as_matrix, preview, row_sums, select_columns
from pyrovi.data.fields.base import JSON, AnnDataField, AnyData, check_same_names
from pyrovi.errors import DataError, MissingKeyError, RegistryError


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
    var_names
        The variables to read, by name, in the order of the tensor's columns; ``None`` for all. Data
        to be transferred to need to have these, in any order, and may have others. Observations
        without a single count among them are accepted.

    Raises
    ------
    DataError
        If a name is given twice, or there is none.

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
        var_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(registry_key, "X" if layer is None else "layers", layer)
        names = None if var_names is None else [str(name) for name in var_names]
        if names is not None and (not names or len(set(names)) < len(names)):
            raise DataError(
                f"The field {registry_key!r} is to read the variables {preview(names)}. Expected "
                "at least one name, and each once."
            )
        self.layer = layer
        self.is_count_data = is_count_data
        self.check_fragment_counts = check_fragment_counts
        self.allow_empty_obs = allow_empty_obs or names is not None
        self.var_names = names

    def _matrix(self, adata: AnyData) -> AnyMatrix:
        if self.layer is not None:
            return as_matrix(self._lookup(adata, "layers", self.layer), self.where)
        if adata.X is None:
            raise MissingKeyError(
                f"{self.owner}.X is empty (None). Expected a matrix: name one of the layers with "
                f"`layer=`; there are {list(adata.layers) or 'none'}."
            )
        return as_matrix(adata.X, self.where)

    def _selected(self, adata: AnyData) -> AnyMatrix:
        """The matrix, or the columns of it that are read."""
        matrix = self._matrix(adata)
        if self.var_names is None:
            return matrix
        positions = adata.var_names.astype(str).get_indexer(self.var_names)
        missing = [n for n, at in zip(self.var_names, positions, strict=True) if at < 0]
        if missing:
            raise RegistryError(
                f"{self.owner}.var_names lack {len(missing)} of the {len(self.var_names)} "
                f"variables that are read from {self.where}: {preview(missing)}. Expected all of "
                "them: use data that hold them, or leave them out where they are named."
            )
        return select_columns(matrix, positions)

    def _check(self, adata: AnyData, *, first_time: bool) -> AnyMatrix:
        matrix = self._selected(adata)
        names = self._names(adata)
        nonzero = check_values(
            matrix,
            self.where,
            counts=self.is_count_data,
            fix="name the layer that holds raw counts with `layer=`",
            row_names=adata.obs_names,
            column_names=names,
            allow_empty_rows=self._allows_empty_obs(adata),
        )
        if first_time and nonzero is not None:
            warn_empty_columns(nonzero, names, self.where)
        if first_time and self.check_fragment_counts:
            warn_reads(matrix, self.where)
        return matrix

    def _allows_empty_obs(self, adata: AnyData) -> bool:
        return self.allow_empty_obs

    def validate_field(self, adata: AnyData) -> None:
        self._check(adata, first_time=False)

    def register_field(self, adata: AnyData) -> JSON:
        self._check(adata, first_time=True)
        return self._state(adata)

    def _names(self, adata: AnyData) -> pd.Index:
        return adata.var_names if self.var_names is None else pd.Index(self.var_names)

    def _state(self, adata: AnyData) -> JSON:
        names = self._names(adata)
        return {
            "n_obs": int(adata.n_obs),
            "n_vars": len(names),
            "column_names": [str(name) for name in names],
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
        return self._selected(adata)

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

    Data to be transferred to need the variables of the source, in any order, unless they carry
    sums: those of more or fewer variables would be other covariates.
    """

    def __init__(
        self, registry_key: str, layer: str | None = None, is_count_data: bool = True
    ) -> None:
        super().__init__(registry_key, layer, is_count_data)

    def _allows_empty_obs(self, adata: AnyData) -> bool:
        return self.allow_empty_obs or carried_total(self.layer) in adata.obs

    def transfer_field(
        self,
        state_registry: Mapping[str, Any],
        adata_target: AnyData,
        *,
        extend_categories: bool = False,
        allow_missing_labels: bool = False,
    ) -> JSON:
        state = self._state(adata_target)
        # sums know no order, and those that are carried along are no sums of what is there now
        if carried_total(self.layer) not in adata_target.obs:
            check_same_names(
                sorted(state_registry["column_names"]),
                sorted(state["column_names"]),
                f"{self.owner}.var_names",
                f"the sums of {self.where} are of all variables of the source",
            )
        self.validate_field(adata_target)
        return state

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
