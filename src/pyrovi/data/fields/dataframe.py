"""Fields of single columns of ``obs`` and ``var``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pyrovi.data.categories import encode, find_categories, raise_unseen, unseen_categories
from pyrovi.data.checks import numeric_column, warn_rare_categories
from pyrovi.data.containers import preview
from pyrovi.data.fields.base import JSON, AnnDataField, AnyData, Axis
from pyrovi.errors import DataError, MissingKeyError


class NumericalObsField(AnnDataField):
    """A numeric column of ``adata.obs``, as an array of shape (n_obs, 1).

    Parameters
    ----------
    registry_key
        Name of the tensor.
    attr_key
        Name of the column. ``None`` makes the field empty, if it is not required.
    required
        Whether ``attr_key=None`` is an error.

    Notes
    -----
    State: ``original_key``. No summary statistics.
    """

    def __init__(self, registry_key: str, attr_key: str | None, required: bool = True) -> None:
        super().__init__(registry_key, self.axis, attr_key)
        if required and attr_key is None:
            raise DataError(
                f"The field {registry_key!r} got no column (None). Expected the name of a column "
                f"of adata.{self.axis}: pass one, or make the field optional with "
                "`required=False`."
            )
        self.key = attr_key

    @property
    def is_empty(self) -> bool:
        return self.key is None

    def _values(self, adata: AnyData) -> NDArray[Any]:
        assert self.key is not None
        return numeric_column(self._column(adata, self.key), self.where)

    def validate_field(self, adata: AnyData) -> None:
        if not self.is_empty:
            self._values(adata)

    def register_field(self, adata: AnyData) -> JSON:
        if self.is_empty:
            return {}
        self.validate_field(adata)
        return {"original_key": self.key, **self._size_state(adata)}

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

    def get_summary_stats(self, state_registry: Mapping[str, Any]) -> dict[str, int]:
        return {}

    def get_field_data(self, adata: AnyData, state_registry: Mapping[str, Any]) -> NDArray[Any]:
        return self._values(adata).reshape(-1, 1)

    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        return {
            "shape": self._shape(state_registry, 1),
            "dtype": "float32",
            "kind": "continuous",
            "axis": self.axis,
        }


class NumericalVarField(NumericalObsField):
    """A numeric column of ``adata.var``, as an array of shape (n_vars, 1).

    Parameters are those of :class:`NumericalObsField`; the state keeps ``n_vars`` as well.
    """

    axis: ClassVar[Axis] = "var"


class CategoricalObsField(AnnDataField):
    """A categorical column of ``adata.obs``, as integer codes of shape (n_obs, 1).

    Parameters
    ----------
    registry_key
        Name of the tensor.
    attr_key
        Name of the column. ``None`` puts all rows into one category, 0.

    Notes
    -----
    State: ``categorical_mapping`` (category of each code) and ``original_key``. Summary statistic:
    ``n_<registry key>``, the number of categories. See :mod:`pyrovi.data.categories` for what a
    category may be.
    """

    def __init__(self, registry_key: str, attr_key: str | None = None) -> None:
        super().__init__(registry_key, self.axis, attr_key)
        self.key = attr_key

    @property
    def count_stat_key(self) -> str:
        """Name of the summary statistic."""
        return f"n_{self.registry_key}"

    def validate_field(self, adata: AnyData) -> None:
        if self.key is not None:
            find_categories(self._column(adata, self.key), self.where)

    def register_field(self, adata: AnyData) -> JSON:
        categories, counts = [0], None
        if self.key is not None:
            categories, counts = find_categories(self._column(adata, self.key), self.where)  # type: ignore[assignment]
            warn_rare_categories(categories, counts, self.where)
        return {
            "categorical_mapping": categories,
            "original_key": self.key,
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
        mapping = list(state_registry["categorical_mapping"])
        if self.key is not None:
            unseen = unseen_categories(self._column(adata_target, self.key), mapping, self.where)
            if unseen and not extend_categories:
                raise_unseen(unseen, mapping, self.where)
            mapping += unseen
        return {
            "categorical_mapping": mapping,
            "original_key": self.key,
            **self._size_state(adata_target),
        }

    def get_summary_stats(self, state_registry: Mapping[str, Any]) -> dict[str, int]:
        return {self.count_stat_key: len(state_registry["categorical_mapping"])}

    def get_field_data(
        self, adata: AnyData, state_registry: Mapping[str, Any]
    ) -> NDArray[np.int64]:
        if self.key is None:
            return np.zeros((self._length(adata), 1), dtype=np.int64)
        mapping = state_registry["categorical_mapping"]
        return encode(self._column(adata, self.key), mapping, self.where).reshape(-1, 1)

    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        return {
            "shape": self._shape(state_registry, 1),
            "dtype": "int64",
            "kind": "categorical",
            "axis": self.axis,
        }


class CategoricalVarField(CategoricalObsField):
    """A categorical column of ``adata.var``, as integer codes of shape (n_vars, 1).

    Parameters are those of :class:`CategoricalObsField`; the state keeps ``n_vars`` as well.
    """

    axis: ClassVar[Axis] = "var"


class LabelsWithUnlabeledObsField(CategoricalObsField):
    """Labels of which one category means "not labelled"; its code is the last.

    Parameters
    ----------
    registry_key
        Name of the tensor.
    obs_key
        Name of the column of ``adata.obs``. ``None`` leaves all observations unlabelled.
    unlabeled_category
        The category that means "not labelled". It has a code even if it does not occur.

    Notes
    -----
    State: as :class:`CategoricalObsField`, and ``unlabeled_category``. The summary statistic counts
    the unlabelled category. A transfer never extends the categories, and may miss the labels
    altogether with ``allow_missing_labels=True``: then all observations are unlabelled.
    """

    def __init__(
        self, registry_key: str, obs_key: str | None, unlabeled_category: str | int | bool
    ) -> None:
        super().__init__(registry_key, obs_key)
        self.unlabeled_category = unlabeled_category

    def register_field(self, adata: AnyData) -> JSON:
        mapping: list[Any] = [self.unlabeled_category]
        if self.key is not None:
            categories, counts = find_categories(self._column(adata, self.key), self.where)
            is_label = [
                type(c) is not type(self.unlabeled_category) or c != self.unlabeled_category
                for c in categories
            ]
            labels = [c for c, keep in zip(categories, is_label, strict=True) if keep]
            if all(is_label):
                warnings.warn(
                    f"{self.unlabeled_category!r} does not occur in {self.where} "
                    f"({preview(categories)}): all observations count as labelled. Look at the "
                    "spelling and the type if some are not.",
                    UserWarning,
                    stacklevel=2,
                )
            warn_rare_categories(labels, counts[is_label], self.where)
            mapping = labels + mapping
        return self._labels_state(mapping, self.key)

    def _labels_state(self, mapping: list[Any], key: str | None) -> JSON:
        return {
            "categorical_mapping": mapping,
            "original_key": key,
            "unlabeled_category": mapping[-1],
        }

    def transfer_field(
        self,
        state_registry: Mapping[str, Any],
        adata_target: AnyData,
        *,
        extend_categories: bool = False,
        allow_missing_labels: bool = False,
    ) -> JSON:
        mapping = list(state_registry["categorical_mapping"])
        if self.key is None:
            return self._labels_state(mapping, None)
        if self.key not in adata_target.obs:
            if allow_missing_labels:
                return self._labels_state(mapping, None)
            raise MissingKeyError(
                f"{self.key!r} not found in {self.owner}.obs. Expected the column of labels: add "
                "it, or take all observations as unlabelled with `allow_missing_labels=True`."
            )
        column = self._column(adata_target, self.key)
        unseen = unseen_categories(column, mapping, self.where)
        if unseen:
            raise_unseen(
                unseen,
                mapping,
                self.where,
                fix="labels cannot be extended; rename the category, or set it to "
                f"{mapping[-1]!r} for unlabelled",
            )
        return self._labels_state(mapping, self.key)

    def get_field_data(
        self, adata: AnyData, state_registry: Mapping[str, Any]
    ) -> NDArray[np.int64]:
        if state_registry["original_key"] is None:
            unlabeled = len(state_registry["categorical_mapping"]) - 1
            return np.full((self._length(adata), 1), unlabeled, dtype=np.int64)
        return super().get_field_data(adata, state_registry)
