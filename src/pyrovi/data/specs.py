"""Specifications of fields: what :mod:`pyrovi.fields` returns and a registry keeps as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import pandas as pd

from pyrovi.data import fields
from pyrovi.data.checks import holds_counts
from pyrovi.data.containers import as_matrix, preview
from pyrovi.data.fields import (
    ArrayField,
    CategoricalColumnField,
    CategoricalObsField,
    ColumnField,
    IntegerObsField,
    LayerField,
    NumericalObsField,
    ObsmField,
    TotalField,
    VarmField,
)
from pyrovi.data.fields.base import JSON, AnnDataField
from pyrovi.data.fields.mudata import is_mudata
from pyrovi.errors import DataError, MissingKeyError

Place = Literal["layer", "total", "obs", "obsm", "varm", "column", "array"]
Kind = Literal["numbers", "counts", "integers", "categories"]

_KINDS: dict[str, tuple[Kind, ...]] = {
    "layer": ("numbers", "counts"),
    "total": ("numbers", "counts"),
    "obsm": ("numbers", "counts"),
    "varm": ("numbers", "counts"),
    "obs": ("numbers", "integers", "categories"),
    "column": ("numbers", "integers", "categories"),
    "array": ("numbers", "integers", "categories"),
}


@dataclass(frozen=True)
class FieldSpec:
    """Where an argument of a story comes from, and what kind of values it has.

    Made by the functions of :mod:`pyrovi.fields`.

    Parameters
    ----------
    place
        ``"layer"``, ``"total"``, ``"obs"``, ``"obsm"``, ``"varm"``, ``"column"`` or ``"array"``.
    key
        Key within the place.
    kind
        ``"numbers"``, ``"counts"``, ``"integers"`` or ``"categories"``; ``None`` finds out.
    mod
        Modality of a MuData.

    Raises
    ------
    DataError
        If the place has no values of this kind.
    """

    place: Place
    key: str | None = None
    kind: Kind | None = None
    mod: str | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in _KINDS[self.place]:
            raise DataError(
                f"pv.fields.{self.place}({self.key!r}) cannot be of kind {self.kind!r}. Expected "
                f"one of {', '.join(_KINDS[self.place])}."
            )

    def to_json(self) -> JSON:
        """The specification as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, spec: JSON) -> Self:
        """The specification that :meth:`to_json` described."""
        return cls(**spec)

    def resolve(self, data: Any) -> FieldSpec:
        """The same with its kind found from the data."""
        if self.kind is not None:
            return self
        part = self._part(data)
        if self.place in ("layer", "total", "obsm", "varm"):
            kind: Kind = "counts" if holds_counts(self._matrix(part)) else "numbers"
            return replace(self, kind=kind)
        values = self._values(part)
        if isinstance(values, pd.Series) and not _is_number(values.dtype):
            return replace(self, kind="categories")
        integers = values.dtype.kind in "iu" and self.place != "obs"
        return replace(self, kind="integers" if integers else "numbers")

    def field(self, name: str, data: Any) -> AnnDataField:
        """The field of these data that the specification means.

        Parameters
        ----------
        name
            Registry key: name of the story's argument.
        data
            AnnData or MuData.
        """
        spec = self.resolve(data)
        kind = spec._class(data)
        arguments: dict[str, Any] = {}
        if spec.place in ("layer", "total", "obsm", "varm"):
            arguments["is_count_data"] = spec.kind == "counts"
            if spec.place == "layer":  # whether a row of zeros is a fault, the story's author knows
                arguments["allow_empty_obs"] = True
        elif kind in (ColumnField, ArrayField):
            arguments["integers"] = spec.kind == "integers"
        if not is_mudata(data):
            make: Any = kind
            return make(name, spec.key, **arguments)
        wrapped: Any = getattr(fields, f"MuData{kind.__name__}")
        return wrapped(name, spec.key, mod_key=spec.mod, **arguments)

    def _class(self, data: Any) -> type[AnnDataField]:
        match self.place, self.kind:
            case "layer", _:
                return LayerField
            case "total", _:
                return TotalField
            case "obsm", _:
                return ObsmField
            case "varm", _:
                return VarmField
            case "obs", "categories":
                return CategoricalObsField
            case "obs", "integers":
                return IntegerObsField
            case "obs", _:
                return NumericalObsField
            case _, "categories":
                return CategoricalColumnField
        part = self._part(data)
        if self.place == "array" and self.key not in part.obs:
            self._values(part)  # says what there is, if it is in neither place
        in_obs = self.place == "column" or self.key in part.obs
        return ColumnField if in_obs else ArrayField

    def _part(self, data: Any) -> Any:
        if not is_mudata(data):
            if self.mod is not None:
                raise DataError(
                    f"pv.fields.{self.place}({self.key!r}, mod={self.mod!r}) names a modality, but "
                    f"the data are a {type(data).__name__}. Expected a MuData: leave `mod` out."
                )
            return data
        if self.mod is None:
            return data
        if self.mod not in data.mod:
            raise MissingKeyError(
                f"{self.mod!r} is no modality of the MuData. Found: {preview(data.mod)}."
            )
        return data.mod[self.mod]

    def _matrix(self, part: Any) -> Any:
        if self.place in ("obsm", "varm"):
            container = _lookup(getattr(part, self.place), self.key, self.place)
        elif is_mudata(part):
            raise DataError(
                f"pv.fields.{self.place}({self.key!r}) of a MuData needs a modality: "
                f"pass mod=, one of {preview(part.mod)}."
            )
        elif self.key is not None:
            container = _lookup(part.layers, self.key, "layers")
        elif part.X is None:
            raise MissingKeyError(
                f"pv.fields.{self.place}() reads X, which is empty. Expected a matrix: name one of "
                f"the layers ({preview(part.layers) or 'there are none'})."
            )
        else:
            container = part.X
        return as_matrix(container, f"{self.place} {self.key!r}")

    def _values(self, part: Any) -> Any:
        if self.place == "array" and self.key not in part.obs:
            found = [*part.obs, *part.obsm]
            array = _lookup(part.obsm, self.key, "the data", found)
            return array if hasattr(array, "dtype") else np.asarray(array)
        return _lookup(part.obs, self.key, "obs" if self.place == "obs" else "the columns")


def _is_number(dtype: Any) -> bool:
    return bool(pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype))


def _lookup(mapping: Any, key: str | None, where: str, found: Any = None) -> Any:
    if key not in mapping:
        names = preview(mapping.keys() if found is None else found, 20)
        raise MissingKeyError(f"{key!r} not found in {where}. Found: {names or 'nothing'}.")
    return mapping[key]


def guess_spec(name: str, data: Any) -> FieldSpec | None:
    """Where an argument of this name is found in an AnnData; ``None`` if nowhere.

    Parameters
    ----------
    name
        ``"X"`` is the matrix; any other name is looked for among the columns of ``obs``, the layers
        and the entries of ``obsm``.
    data
        AnnData.

    Raises
    ------
    DataError
        If there are several.
    """
    if name == "X" and data.X is not None:
        return FieldSpec("layer")
    places: dict[Place, Any] = {"obs": data.obs, "layer": data.layers, "obsm": data.obsm}
    found: list[Place] = [place for place, mapping in places.items() if name in mapping]
    if data.n_vars == 0 and found:  # a table: what a DataFrame or a dict of arrays has become
        return FieldSpec("array", name)
    if len(found) > 1:
        raise DataError(
            f"{name!r} is in {' and in '.join(found)} of the data. Say which: "
            f"fields={{{name!r}: pv.fields.{found[0]}({name!r})}}."
        )
    return FieldSpec(found[0], name) if found else None
