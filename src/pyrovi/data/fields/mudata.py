"""MuData forms of the fields: a wrapper that hands one modality to the plain field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pyrovi.data.containers import preview
from pyrovi.data.fields.arraylike import ObsmField, VarmField
from pyrovi.data.fields.base import JSON, AnnDataField, AnyData
from pyrovi.data.fields.dataframe import (
    CategoricalObsField,
    CategoricalVarField,
    LabelsWithUnlabeledObsField,
    NumericalObsField,
    NumericalVarField,
)
from pyrovi.data.fields.flat import (
    ArrayField,
    CategoricalColumnField,
    ColumnField,
    IntegerObsField,
)
from pyrovi.data.fields.joint import (
    CategoricalJointObsField,
    CategoricalJointVarField,
    NumericalJointObsField,
    NumericalJointVarField,
)
from pyrovi.data.fields.layer import LayerField, TotalField
from pyrovi.data.fields.protein import ProteinLayerField, ProteinObsmField
from pyrovi.data.fields.uns import StringUnsField
from pyrovi.errors import DataError, MissingKeyError


def is_mudata(data: AnyData) -> bool:
    """Whether ``data`` is a MuData (told without importing the optional dependency)."""
    return any(
        cls.__name__ == "MuData" and cls.__module__.split(".")[0] == "mudata"
        for cls in type(data).__mro__
    )


class MuDataField(AnnDataField):
    """A field of one modality of a MuData, or of the MuData itself.

    Everything is done by the plain field of class ``field_class``, which is given the modality.

    Parameters
    ----------
    registry_key
        Name of the tensor.
    *args
        Further positional arguments of the plain field.
    mod_key
        Name of the modality; ``None`` for the attributes of the MuData itself (``mdata.obs``, ...).
    mod_required
        Whether ``mod_key=None`` is an error. Always so for matrices (``X`` and layers).
    **kwargs
        Further arguments of the plain field.
    """

    field_class: ClassVar[type[AnnDataField]]

    def __init__(
        self,
        registry_key: str,
        *args: Any,
        mod_key: str | None = None,
        mod_required: bool = False,
        **kwargs: Any,
    ) -> None:
        field = self.field_class(registry_key, *args, **kwargs)
        if mod_key is None and (mod_required or issubclass(self.field_class, LayerField)):
            raise DataError(
                f"The field {registry_key!r} got no modality (mod_key=None). Expected the name of "
                "a modality of the MuData: pass `mod_key=`."
            )
        super().__init__(registry_key, field.attr_name, field.attr_key)
        field.owner = self.owner = "mdata" if mod_key is None else f"mdata[{mod_key!r}]"
        self.field = field
        self.mod_key = mod_key

    def _part(self, mdata: AnyData) -> tuple[AnnDataField, AnyData]:
        """The plain field, bound to the MuData, and the data it reads."""
        if not is_mudata(mdata):
            raise DataError(
                f"The field {self.registry_key!r} got an object of type {type(mdata).__name__}. "
                f"Expected a MuData: use {self.field_class.__name__} for an AnnData."
            )
        field = self.field.bind(mdata)
        if self.mod_key is None:
            return field, mdata
        if self.mod_key not in mdata.mod:
            raise MissingKeyError(
                f"{self.mod_key!r} is no modality of the MuData. Found: {preview(mdata.mod)}. Set "
                f"the field {self.registry_key!r} up with one of these."
            )
        return field, mdata.mod[self.mod_key]

    @property
    def is_empty(self) -> bool:
        return self.field.is_empty

    def validate_field(self, adata: AnyData) -> None:
        field, part = self._part(adata)
        field.validate_field(part)

    def register_field(self, adata: AnyData) -> JSON:
        field, part = self._part(adata)
        return field.register_field(part)

    def transfer_field(
        self,
        state_registry: Mapping[str, Any],
        adata_target: AnyData,
        *,
        extend_categories: bool = False,
        allow_missing_labels: bool = False,
    ) -> JSON:
        field, part = self._part(adata_target)
        return field.transfer_field(
            state_registry,
            part,
            extend_categories=extend_categories,
            allow_missing_labels=allow_missing_labels,
        )

    def get_summary_stats(self, state_registry: Mapping[str, Any]) -> dict[str, int]:
        return self.field.get_summary_stats(state_registry)

    def get_field_data(self, adata: AnyData, state_registry: Mapping[str, Any]) -> Any:
        field, part = self._part(adata)
        return field.get_field_data(part, state_registry)

    def tensor_spec(self, state_registry: Mapping[str, Any]) -> JSON:
        return self.field.tensor_spec(state_registry)


def MuDataWrapper(field_class: type[AnnDataField]) -> type[MuDataField]:
    """Class of the MuData form of a field: ``MuData`` + the name of the plain class.

    Parameters
    ----------
    field_class
        The plain field. Its first argument is the registry key.
    """
    name = f"MuData{field_class.__name__}"
    doc = (
        f"MuData form of :class:`~pyrovi.data.fields.{field_class.__name__}`.\n\n"
        "Takes the same arguments, and ``mod_key`` and ``mod_required`` of :class:`MuDataField`."
    )
    namespace = {
        "field_class": field_class,
        "axis": field_class.axis,
        "__doc__": doc,
        "__module__": __name__,
    }
    return type(name, (MuDataField,), namespace)


MuDataLayerField = MuDataWrapper(LayerField)
MuDataTotalField = MuDataWrapper(TotalField)
MuDataProteinLayerField = MuDataWrapper(ProteinLayerField)
MuDataProteinObsmField = MuDataWrapper(ProteinObsmField)
MuDataNumericalObsField = MuDataWrapper(NumericalObsField)
MuDataNumericalVarField = MuDataWrapper(NumericalVarField)
MuDataCategoricalObsField = MuDataWrapper(CategoricalObsField)
MuDataCategoricalVarField = MuDataWrapper(CategoricalVarField)
MuDataObsmField = MuDataWrapper(ObsmField)
MuDataVarmField = MuDataWrapper(VarmField)
MuDataNumericalJointObsField = MuDataWrapper(NumericalJointObsField)
MuDataNumericalJointVarField = MuDataWrapper(NumericalJointVarField)
MuDataCategoricalJointObsField = MuDataWrapper(CategoricalJointObsField)
MuDataCategoricalJointVarField = MuDataWrapper(CategoricalJointVarField)
MuDataLabelsWithUnlabeledObsField = MuDataWrapper(LabelsWithUnlabeledObsField)
MuDataColumnField = MuDataWrapper(ColumnField)
MuDataIntegerObsField = MuDataWrapper(IntegerObsField)
MuDataCategoricalColumnField = MuDataWrapper(CategoricalColumnField)
MuDataArrayField = MuDataWrapper(ArrayField)
MuDataStringUnsField = MuDataWrapper(StringUnsField)
