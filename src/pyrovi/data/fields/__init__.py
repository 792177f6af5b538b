"""Fields: the declared pieces of the data, each with its place, its checks and its tensor."""

from __future__ import annotations

from pyrovi.data.fields.arraylike import ObsmField, VarmField
from pyrovi.data.fields.base import AnnDataField
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
from pyrovi.data.fields.mudata import (
    MuDataArrayField,
    MuDataCategoricalColumnField,
    MuDataCategoricalJointObsField,
    MuDataCategoricalJointVarField,
    MuDataCategoricalObsField,
    MuDataCategoricalVarField,
    MuDataColumnField,
    MuDataField,
    MuDataIntegerObsField,
    MuDataLabelsWithUnlabeledObsField,
    MuDataLayerField,
    MuDataNumericalJointObsField,
    MuDataNumericalJointVarField,
    MuDataNumericalObsField,
    MuDataNumericalVarField,
    MuDataObsmField,
    MuDataProteinLayerField,
    MuDataProteinObsmField,
    MuDataStringUnsField,
    MuDataTotalField,
    MuDataVarmField,
    MuDataWrapper,
)
from pyrovi.data.fields.protein import ProteinLayerField, ProteinObsmField
from pyrovi.data.fields.uns import StringUnsField

__all__ = [
    "AnnDataField",
    "ArrayField",
    "CategoricalColumnField",
    "CategoricalJointObsField",
    "CategoricalJointVarField",
    "CategoricalObsField",
    "CategoricalVarField",
    "ColumnField",
    "IntegerObsField",
    "LabelsWithUnlabeledObsField",
    "LayerField",
    "MuDataArrayField",
    "MuDataCategoricalColumnField",
    "MuDataCategoricalJointObsField",
    "MuDataCategoricalJointVarField",
    "MuDataCategoricalObsField",
    "MuDataCategoricalVarField",
    "MuDataColumnField",
    "MuDataField",
    "MuDataIntegerObsField",
    "MuDataLabelsWithUnlabeledObsField",
    "MuDataLayerField",
    "MuDataNumericalJointObsField",
    "MuDataNumericalJointVarField",
    "MuDataNumericalObsField",
    "MuDataNumericalVarField",
    "MuDataObsmField",
    "MuDataProteinLayerField",
    "MuDataProteinObsmField",
    "MuDataStringUnsField",
    "MuDataTotalField",
    "MuDataVarmField",
    "MuDataWrapper",
    "NumericalJointObsField",
    "NumericalJointVarField",
    "NumericalObsField",
    "NumericalVarField",
    "ObsmField",
    "ProteinLayerField",
    "ProteinObsmField",
    "StringUnsField",
    "TotalField",
    "VarmField",
]
