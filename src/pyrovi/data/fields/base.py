"""The contract of a field: one declared piece of the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import pandas as pd

from pyrovi.data.containers import preview
from pyrovi.errors import DataError, MissingKeyError, RegistryError

AnyData: TypeAlias = Any
"""An ``AnnData`` or, for the MuData forms, a ``MuData`` (an optional dependency)."""

JSON: TypeAlias = dict[str, Any]
Axis: TypeAlias = Literal["obs", "var", "uns"]


class AnnDataField(ABC):
    """One declared piece of the data: where it lives and how it becomes a tensor.

    Fields are pure. They read an AnnData and return plain JSON (the *state registry*) or arrays;
    they write nothing into it and keep nothing of it.

    Parameters
    ----------
    registry_key
        Name of the tensor, e.g. ``"X"`` or ``"batch"``.
    attr_name
        Attribute of the AnnData: ``"X"``, ``"layers"``, ``"obs"``, ``"obsm"``, ``"uns"``, ...
    attr_key
        Key, or keys, within the attribute; ``None`` where there is none.
    """

    axis: ClassVar[Axis] = "obs"

    def __init__(
        self, registry_key: str, attr_name: str, attr_key: str | list[str] | None = None
    ) -> None:
        self.registry_key = registry_key
        self.attr_name = attr_name
        self.attr_key = attr_key
        self.mod_key: str | None = None
        self.owner = "adata"

    @property
    def is_empty(self) -> bool:
        """Whether the field was left out by the user and holds no data."""
        return False

    @property
    def data_registry(self) -> JSON:
        """Where the data live; empty for an empty field."""
        if self.is_empty:
            return {}
        return {"attr_name": self.attr_name, "attr_key": self.attr_key, "mod_key": self.mod_key}

    @property
    def where(self) -> str:
        """How messages call the data, e.g. ``adata.obs['batch']``."""
        return self._where(self.attr_key)

    @abstractmethod
    def validate_field(self, adata: AnyData) -> None:
        """Check the data.

        Raises
        ------
        MissingKeyError
            If the key does not exist.
        DataError
            If the values cannot be used.
        """

    @abstractmethod
    def register_field(self, adata: AnyData) -> JSON:
        """Validate the data and describe them: the state registry, as plain JSON."""

    @abstractmethod
    def transfer_field(
        self,
        state_registry: Mapping[str, Any],
        adata_target: AnyData,
        *,
        extend_categories: bool = False,
        allow_missing_labels: bool = False,
    ) -> JSON:
        """Validate other data against the state of the source.

        Parameters
        ----------
        state_registry
            State of the source, from :meth:`register_field`.
        adata_target
            The other data.
        extend_categories
            Append unseen categories instead of raising.
        allow_missing_labels
            Take all observations as unlabelled if the label column does not exist.

        Returns
        -------
        dict
            State of the target.

        Raises
        ------
        RegistryError
            If the data do not match; :class:`~pyrovi.errors.UnseenCategoryError` for a category.
        """

    @abstractmethod
    def get_summary_stats(self, state_registry: Mapping[str, Any]) -> dict[str, int]:
        """Sizes a model needs, by name, e.g. ``{"n_vars": 2000}``."""

    @abstractmethod
    def get_field_data(self, adata: AnyData, state_registry: Mapping[str, Any]) -> Any:
        """The data, two-dimensional, a row per observation (or variable), uncopied if possible."""

    @abstractmethod
    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        """What becomes of the data: ``shape`` (without observations), dtype, kind and axis.

        ``kind`` is ``"counts"``, ``"categorical"``, ``"continuous"`` or ``"string"``.
        """

    def bind(self, parent: AnyData) -> AnnDataField:
        """The field as used in one modality of ``parent``; itself unless it reads others too."""
        return self

    def _where(self, key: str | list[str] | None) -> str:
        return f"{self.owner}.{self.attr_name}" + ("" if key is None else f"[{key!r}]")

    def _lookup(self, adata: AnyData, attribute: str, key: str) -> Any:
        """``adata.<attribute>[key]``, or an error that lists the keys there are."""
        mapping = getattr(adata, attribute)
        if key not in mapping:
            raise MissingKeyError(
                f"{key!r} not found in {self.owner}.{attribute}. Found: "
                f"{preview(mapping.keys(), 20) or 'nothing'}. Add it, or set the field "
                f"{self.registry_key!r} up with one of these keys."
            )
        return mapping[key]

    def _column(self, adata: AnyData, key: str) -> pd.Series:
        """Column of ``obs`` or ``var``."""
        column = self._lookup(adata, self.axis, key)
        if isinstance(column, pd.DataFrame):
            raise DataError(
                f"{self._where(key)} names {column.shape[1]} columns. Expected one: rename the "
                "others."
            )
        return column  # type: ignore[no-any-return]

    def _length(self, adata: AnyData) -> int:
        """Rows of the field's data."""
        return int(adata.n_vars if self.axis == "var" else adata.n_obs)

    def _shape(self, state_registry: Mapping[str, Any], n_columns: int) -> list[int]:
        return [state_registry["n_vars"], n_columns] if self.axis == "var" else [n_columns]

    def _size_state(self, adata: AnyData) -> JSON:
        """Part of the state that fixes the tensor's shape: fields of ``var`` keep ``n_vars``."""
        return {"n_vars": int(adata.n_vars)} if self.axis == "var" else {}

    def _check_size(self, state_registry: Mapping[str, Any], adata: AnyData) -> None:
        if self.axis == "var" and adata.n_vars != state_registry["n_vars"]:
            raise RegistryError(
                f"{self.where} has {adata.n_vars} variables. Expected the "
                f"{state_registry['n_vars']} of the source: take them with "
                "`adata[:, model.var_names]`."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.registry_key!r}, {self.where})"


def check_same_names(source: list[str], target: list[str], where: str, fix: str) -> None:
    """Names of columns must be those of the source, in the same order.

    Parameters
    ----------
    source, target
        Names expected and names found.
    where
        How to call what has the names, e.g. ``adata.var_names``.
    fix
        How to put present names into order.

    Raises
    ------
    RegistryError
        Telling which names are missing or extra, or where the order differs.
    """
    if source == target:
        return
    expected, found = set(source), set(target)
    missing = [name for name in source if name not in found]
    extra = [name for name in target if name not in expected]
    if missing:
        problem = f"missing {len(missing)}: {preview(missing)}"
        problem += f"; extra {len(extra)}: {preview(extra)}" if extra else ""
        remedy = (
            "use data that hold all of them (a model's `prepare_query_anndata` adds absent ones as "
            "columns of zeros)"
        )
    elif extra:
        problem, remedy = f"extra {len(extra)}: {preview(extra)}", f"keep the known ones: {fix}"
    else:
        at = int(np.argmax([a != b for a, b in zip(source, target, strict=False)]))
        problem = (
            f"same names in another order: position {at} is {target[at]!r}, not {source[at]!r}"
        )
        remedy = f"reorder them: {fix}"
    raise RegistryError(
        f"{where} ({len(target)} names) differ from the source ({len(source)} names), {problem}. "
        f"Expected the names of the source in the same order: {remedy}."
    )
