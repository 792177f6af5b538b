"""The registry: a plain JSON description of all fields, enough to rebuild a model without data.

It is a dictionary of strings, numbers, booleans, ``None``, lists and dictionaries, so that
``json.loads(json.dumps(registry)) == registry``::

    {
        "format": 1,
        "model_name": ...,
        "setup_method_name": ...,
        "setup_args": {...},
        "uuid": ...,
        "n_obs": ...,
        "field_registries": {
            key: {
                "data_registry": {"attr_name", "attr_key", "mod_key"},
                "state_registry": {...},
                "summary_stats": {...},
                "tensor": {...},
            }
        },
    }
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data.categories import mapping_array
from pyrovi.data.containers import preview
from pyrovi.data.fields.base import JSON, AnnDataField, AnyData
from pyrovi.errors import MissingKeyError, RegistryError

FORMAT: Final = 1
"""Version of the registry's layout; a registry with a higher one is refused."""


class AttrDict(dict[str, Any]):
    """Dictionary whose items are attributes as well: ``stats.n_vars`` is ``stats["n_vars"]``."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask for these
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"No entry {name!r}. Entries: {', '.join(self)}.") from None


def to_json(value: Any, where: str) -> Any:
    """The value as plain JSON; NumPy and pandas containers become lists.

    Parameters
    ----------
    value
        Anything made of plain values, mappings, sequences, arrays.
    where
        How to call the value in messages.

    Raises
    ------
    RegistryError
        If some part has no JSON form that reads back equal.
    """
    if value is None or isinstance(value, (bool, np.bool_)):
        return None if value is None else bool(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)) and np.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        keys = [key for key in value if not isinstance(key, str)]
        if keys:
            raise RegistryError(
                f"{where} has the key {keys[0]!r} ({type(keys[0]).__name__}). Expected string "
                "keys only, since the registry is saved as JSON: convert it with `str`."
            )
        return {str(key): to_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (np.ndarray, pd.Index, pd.Series)):
        return to_json(value.tolist(), where)
    if isinstance(value, (list, tuple)):
        return [to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise RegistryError(
        f"{where} is {value!r} ({type(value).__name__}). Expected strings, finite numbers, "
        "booleans, None, lists or dictionaries, since the registry is saved as JSON: pass one of "
        "these."
    )


def check_registry(registry: Mapping[str, Any]) -> None:
    """Refuse what is not a registry, is damaged, or has a newer format.

    Raises
    ------
    RegistryError
        Naming the part that is missing or of another kind, or the format.
    """
    if "format" in registry and registry["format"] != FORMAT:
        raise RegistryError(
            f"The source registry has format {registry['format']!r}. Expected {FORMAT}: update "
            "pyrovi, or set the data up again with this version."
        )
    _check_parts(registry, {"format": int, "field_registries": dict, "n_obs": int}, "registry")
    for key, entry in registry["field_registries"].items():
        where = f"registry's field {key!r}"
        _check_parts(entry, dict.fromkeys(_ENTRY, dict), where, optional=("tensor",))
        if entry["tensor"] is not None:
            kinds = {"shape": list, "dtype": str, "kind": str, "axis": str}
            _check_parts(entry["tensor"], kinds, f"{where}, entry 'tensor',")


_ENTRY = ("data_registry", "state_registry", "summary_stats", "tensor")


def _check_parts(
    part: Any, kinds: Mapping[str, type], where: str, optional: tuple[str, ...] = ()
) -> None:
    found = part if isinstance(part, Mapping) else {}
    missing = [name for name in kinds if name not in found]
    if missing:
        has = preview(found, 12) if found else repr(part)
        raise RegistryError(
            f"The source {where} lacks {preview(missing)}; it has {has}. Expected the registry of "
            "a pyrovi model: pass `manager.registry`."
        )
    for name, kind in kinds.items():
        if not isinstance(found[name], kind) and not (name in optional and found[name] is None):
            raise RegistryError(
                f"The source {where} has {found[name]!r} as {name!r}. Expected a {kind.__name__}: "
                "pass `manager.registry`, unchanged."
            )


def field_registry(registry: Mapping[str, Any], key: str) -> JSON:
    """Entry of one field.

    Raises
    ------
    MissingKeyError
        If the registry has no field of that name; the message lists those it has.
    """
    fields: JSON = registry["field_registries"]
    if key not in fields:
        raise MissingKeyError(
            f"No field {key!r} is registered. Registered: {preview(fields, 20)}. Add the field in "
            "`setup_anndata`."
        )
    entry: JSON = fields[key]
    return entry


def register_field(
    field: AnnDataField,
    adata: AnyData,
    source_registry: Mapping[str, Any] | None = None,
    transfer_kwargs: Mapping[str, bool] | None = None,
) -> JSON:
    """Entry of one field for an object, alone or as a transfer from the registry of another.

    Parameters
    ----------
    field
        The field.
    adata
        AnnData or MuData.
    source_registry
        Registry to transfer from.
    transfer_kwargs
        Options of :meth:`~pyrovi.data.fields.AnnDataField.transfer_field`.
    """
    if source_registry is None:
        state = field.register_field(adata)
    else:
        source = field_registry(source_registry, field.registry_key)["state_registry"]
        state = field.transfer_field(source, adata, **(transfer_kwargs or {}))
    where = f"The state of field {field.registry_key!r}"
    return {
        "data_registry": to_json(field.data_registry, where),
        "state_registry": to_json(state, where),
        "summary_stats": to_json(field.get_summary_stats(state), where),
        "tensor": None if field.is_empty else to_json(field.tensor_spec(state), where),
    }


def registry_var_names(registry: Mapping[str, Any]) -> pd.Index:
    """Names of the variables of ``X``, or else of the first field that is a whole layer.

    Raises
    ------
    MissingKeyError
        If no field is a layer.
    """
    entries = registry["field_registries"]
    layers = [
        key
        for key, entry in entries.items()
        if entry["data_registry"].get("attr_name") in ("X", "layers")
    ]
    if not layers:
        raise MissingKeyError(
            f"No registered field is a layer; registered: {preview(entries)}. Expected one: "
            "register a LayerField."
        )
    key = REGISTRY_KEYS.X_KEY if REGISTRY_KEYS.X_KEY in layers else layers[0]
    return pd.Index(entries[key]["state_registry"]["column_names"])


def registry_summary_stats(registry: Mapping[str, Any]) -> AttrDict:
    """Summary statistics of all fields (``n_vars``, ``n_batch``, ...) and ``n_obs``.

    Raises
    ------
    RegistryError
        If two fields give different values under one name.
    """
    stats = AttrDict(n_obs=registry["n_obs"])
    for key, entry in registry["field_registries"].items():
        for name, value in entry["summary_stats"].items():
            if stats.setdefault(name, value) != value:
                raise RegistryError(
                    f"Field {key!r} gives the summary statistic {name!r} as {value}, another "
                    f"field as {stats[name]}. Expected one value: rename one of the fields."
                )
    return stats


def registry_data_registry(registry: Mapping[str, Any]) -> AttrDict:
    """Where each field that holds data is found: ``attr_name``, ``attr_key``, ``mod_key``."""
    return AttrDict(
        (key, AttrDict(entry["data_registry"]))
        for key, entry in registry["field_registries"].items()
        if entry["data_registry"]
    )


def registry_state(registry: Mapping[str, Any], key: str) -> AttrDict:
    """State of one field, with lists of categories and column names as arrays.

    Raises
    ------
    MissingKeyError
        If no such field is registered.
    """
    state = AttrDict(field_registry(registry, key)["state_registry"])
    for name in ("categorical_mapping", "column_names"):
        if name in state:
            state[name] = mapping_array(state[name])
    for name in ("mappings", "protein_batch_mask"):
        if state.get(name) is not None:
            state[name] = AttrDict((k, mapping_array(v)) for k, v in state[name].items())
    return state
