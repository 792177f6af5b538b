"""Field of a string in ``uns``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pyrovi.data.fields.base import JSON, AnnDataField, AnyData, Axis
from pyrovi.errors import DataError


class StringUnsField(AnnDataField):
    """A string in ``adata.uns``, e.g. how data were minified.

    Parameters
    ----------
    registry_key
        Name of the field.
    uns_key
        Key of ``adata.uns``. ``None`` makes the field empty, if it is not required.
    required
        Whether ``uns_key=None`` is an error.

    Notes
    -----
    State: ``value``. No summary statistics, and no tensor is made of it.
    """

    axis: ClassVar[Axis] = "uns"

    def __init__(self, registry_key: str, uns_key: str | None, required: bool = True) -> None:
        super().__init__(registry_key, "uns", uns_key)
        if required and uns_key is None:
            raise DataError(
                f"The field {registry_key!r} got no key (None). Expected a key of adata.uns: pass "
                "one, or make the field optional with `required=False`."
            )
        self.key = uns_key

    @property
    def is_empty(self) -> bool:
        return self.key is None

    def _value(self, adata: AnyData) -> str:
        assert self.key is not None
        value = self._lookup(adata, "uns", self.key)
        if not isinstance(value, str):
            raise DataError(
                f"{self.where} is {value!r} ({type(value).__name__}). Expected a string: store "
                "one, e.g. with `str(value)`."
            )
        return str(value)

    def validate_field(self, adata: AnyData) -> None:
        if not self.is_empty:
            self._value(adata)

    def register_field(self, adata: AnyData) -> JSON:
        return {} if self.is_empty else {"value": self._value(adata)}

    def transfer_field(
        self,
        state_registry: Mapping[str, Any],
        adata_target: AnyData,
        *,
        extend_categories: bool = False,
        allow_missing_labels: bool = False,
    ) -> JSON:
        return self.register_field(adata_target)

    def get_summary_stats(self, state_registry: Mapping[str, Any]) -> dict[str, int]:
        return {}

    def get_field_data(self, adata: AnyData, state_registry: Mapping[str, Any]) -> str:
        return self._value(adata)

    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        return {"shape": [], "dtype": "str", "kind": "string", "axis": "uns"}
