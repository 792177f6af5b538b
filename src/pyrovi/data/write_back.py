"""From tensors back to the data: other values in the place that a field reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyrovi._constants import UUID_KEY
from pyrovi._lazy import require
from pyrovi.data.containers import as_matrix, is_backed, is_sparse, is_stored_sparse
from pyrovi.data.fields import (
    ArrayField,
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    MuDataField,
    NumericalJointObsField,
    NumericalObsField,
    ObsmField,
    TotalField,
)
from pyrovi.data.fields.base import AnnDataField, AnyData
from pyrovi.data.fields.mudata import is_mudata
from pyrovi.data.synthetic import no_pull_on_update
from pyrovi.errors import DataError

_WRITABLE = (
    LayerField,
    ObsmField,
    ArrayField,
    NumericalObsField,
    NumericalJointObsField,
    CategoricalObsField,
    CategoricalJointObsField,
)


def is_writable(field: AnnDataField) -> bool:
    """Whether other values can be put where a field reads: it holds data as they are."""
    plain = field.field if isinstance(field, MuDataField) else field
    return isinstance(plain, _WRITABLE) and not isinstance(plain, TotalField)


def blank_copy(
    data: AnyData, fields: Sequence[AnnDataField], replaced: Sequence[AnnDataField] = ()
) -> AnyData:
    """New data with the names, the columns of ``obs`` and ``var``, and what the fields read.

    Matrices that no field reads are left out: what had been computed from the old values would not
    belong to the new ones. Where a field reads some of the variables only, the copy has these
    alone. The id of the setup is kept.

    Parameters
    ----------
    data
        AnnData or MuData; nothing of it is changed or shared.
    fields
        All fields of the registered data.
    replaced
        Fields whose values will be written: their matrices are not copied.
    """
    places = {_place(field) for field in replaced}
    kept = [field for field in fields if not field.is_empty and _place(field) not in places]
    if not is_mudata(data):
        return _blank_part(data, fields, kept)
    mudata = require("mudata", "mudata")
    with no_pull_on_update(mudata):
        parts = {
            name: _blank_part(
                part,
                [f for f in fields if f.mod_key == name],
                [f for f in kept if f.mod_key == name],
            )
            for name, part in data.mod.items()
        }
        made = mudata.MuData(parts)
        if not made.obs_names.equals(data.obs_names):
            made = made[data.obs_names].copy()
        made.obs = data.obs.copy()
    _copy_entries(data, made, fields, [f for f in kept if f.mod_key is None])
    return made


def _blank_part(part: Any, fields: Sequence[AnnDataField], kept: Sequence[AnnDataField]) -> AnnData:
    plain = [f.field if isinstance(f, MuDataField) else f for f in fields]
    for field in plain:
        if isinstance(field, LayerField) and field.var_names is not None:
            part = part[:, field.var_names]
    made = AnnData(obs=part.obs.copy(), var=part.var.copy())
    if any(field.attr_name == "X" for field in kept):
        made.X = _copied(part.X)
    _copy_entries(part, made, fields, kept)
    return made


def _copy_entries(
    part: Any, made: Any, fields: Sequence[AnnDataField], kept: Sequence[AnnDataField]
) -> None:
    for field in kept:
        if field.attr_name in ("layers", "obsm", "varm", "uns"):
            source, target = getattr(part, field.attr_name), getattr(made, field.attr_name)
            target[field.attr_key] = _copied(source[field.attr_key])
    plain = [f.field if isinstance(f, MuDataField) else f for f in fields]
    names = {UUID_KEY, *(getattr(field, "colnames_uns_key", None) for field in plain)}
    for name in names & set(part.uns):
        made.uns[name] = _copied(part.uns[name])


def _place(field: AnnDataField) -> tuple[Any, ...]:
    return field.mod_key, field.attr_name, str(field.attr_key)


def _copied(container: Any) -> Any:
    if isinstance(container, str):
        return container
    if is_backed(container):
        return container.to_memory() if hasattr(container, "to_memory") else container[...]
    return container.copy()


def write_field(
    target: AnyData,
    field: AnnDataField,
    state: Mapping[str, Any],
    values: Any,
    source: AnyData,
) -> None:
    """Put values where a field reads, in the form that the source has there.

    Parameters
    ----------
    target
        AnnData or MuData from :func:`blank_copy`.
    field
        The field.
    state
        Its state registry: the categories of codes.
    values
        What the field's tensor would be, shape ``(n, ...)``: an array, or CSR for a matrix.
    source
        Data whose containers say in which form to write: sparse or dense, data frame, dtype.

    Raises
    ------
    DataError
        If the field does not hold data as they are, or codes are out of range.
    """
    if not is_writable(field):
        raise DataError(
            f"The field {field.registry_key!r} ({type(field).__name__}) is computed from "
            f"{field.where}: no values can be put there. Observe the data that it is computed from."
        )
    if isinstance(field, MuDataField):
        if field.mod_key is not None:
            target, source = target.mod[field.mod_key], source.mod[field.mod_key]
        field = field.field
    if isinstance(field, LayerField):
        _write_layer(target, field, values, source)
    elif isinstance(field, ObsmField):
        container = getattr(source, field.attr_name)[field.key]
        made = _like(values, container, field.where)
        if isinstance(container, pd.DataFrame):
            made = pd.DataFrame(made, index=container.index, columns=container.columns)
        getattr(target, field.attr_name)[field.key] = made
    elif isinstance(field, ArrayField):
        container = source.obsm[field.key]
        if is_sparse(container) or is_stored_sparse(container):
            target.obsm[field.key] = _like(values, container, field.where)
        else:
            like = container if is_backed(container) else np.asarray(container)
            made = _as_dtype(_dense(values), like.dtype)
            target.obsm[field.key] = made.reshape(like.shape)
    else:
        _write_columns(getattr(target, field.axis), field, state, _dense(values), source)


def _write_layer(target: Any, field: LayerField, values: Any, source: Any) -> None:
    if field.layer is None:
        target.X = _like(values, source.X, field.where)
    else:
        target.layers[field.layer] = _like(values, source.layers[field.layer], field.where)


def _write_columns(
    frame: pd.DataFrame, field: Any, state: Mapping[str, Any], values: Any, source: Any
) -> None:
    columns = values.reshape(len(frame), -1)
    keys = field.keys if hasattr(field, "keys") else [field.key]
    for key, column in zip(keys, columns.T, strict=True):
        old = getattr(source, field.axis)[key]
        if isinstance(field, CategoricalObsField | CategoricalJointObsField):
            mapping = (
                state["mappings"][key] if "mappings" in state else state["categorical_mapping"]
            )
            frame[key] = _categories(column, mapping, old, field.where)
        else:
            is_plain = isinstance(old.dtype, np.dtype) and old.dtype.kind in "iuf"
            frame[key] = _as_dtype(column, old.dtype if is_plain else np.dtype(np.float64))


def _categories(codes: Any, mapping: Sequence[Any], old: pd.Series, where: str) -> Any:
    codes = np.rint(codes).astype(np.int64)
    if len(codes) and not 0 <= codes.min() <= codes.max() < len(mapping):
        raise DataError(
            f"{where} would get the code {codes.max() if codes.min() >= 0 else codes.min()}. "
            f"Expected 0 to {len(mapping) - 1}, one for each category: check the number of "
            "categories in the story."
        )
    named = np.asarray(list(mapping), dtype=object)[codes]
    if isinstance(old.dtype, pd.CategoricalDtype):
        return pd.Categorical(named, categories=old.cat.categories, ordered=old.cat.ordered)
    return pd.array(named, dtype=old.dtype)


def _like(values: Any, container: Any, where: str) -> Any:
    """Matrix of the same kind and dtype as a container."""
    like = container if isinstance(container, pd.DataFrame) else as_matrix(container, where)
    dtype = like.to_numpy().dtype if isinstance(like, pd.DataFrame) else np.dtype(like.dtype)
    if not (is_sparse(like) or is_stored_sparse(like)):
        return _as_dtype(_dense(values), dtype)
    is_csc = like.format == "csc"
    if isinstance(like, sparse.sparray):
        made = sparse.csc_array(values) if is_csc else sparse.csr_array(values)
    else:
        made = sparse.csc_matrix(values) if is_csc else sparse.csr_matrix(values)
    made.data = _as_dtype(made.data, dtype)
    return made


def _dense(values: Any) -> np.ndarray:
    return np.asarray(values.toarray() if is_sparse(values) else values)


def _as_dtype(values: Any, dtype: np.dtype[Any]) -> Any:
    """Values of a dtype, unless it would change them: then single or double precision."""
    values = np.asarray(values)
    if dtype.kind in "iub":
        whole = bool((values == np.rint(values)).all())
        limits = np.iinfo(dtype) if dtype.kind in "iu" else None
        fits = limits is not None and (
            not values.size or (values.min() >= limits.min and values.max() <= limits.max)
        )
        if not (whole and fits):
            return values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64)
    return values.astype(dtype)
