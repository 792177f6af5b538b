"""JSON with arrays and tables: what the arguments of a model class are written as."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pyrovi.errors import SaveLoadError
from pyrovi.model.callables import is_function, qualified_name, recall, remember

_KIND = "__pyrovi__"


def encode(value: Any, where: str) -> Any:
    """Turn a value into plain JSON that :func:`decode` turns back.

    Raises
    ------
    SaveLoadError
        If a part has no JSON form; ``where`` says which.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_KIND: "float", "value": repr(value)}
    if isinstance(value, np.generic):
        return encode(value.item(), where)
    if isinstance(value, np.ndarray):
        items = encode(value.tolist(), where)
        return {
            _KIND: "array",
            "dtype": value.dtype.str,
            "shape": list(value.shape),
            "items": items,
        }
    if isinstance(value, pd.DataFrame):
        return {
            _KIND: "frame",
            "index": encode(value.index.to_numpy(), where),
            "columns": [str(c) for c in value.columns],
            "data": [encode(value[c].to_numpy(), where) for c in value.columns],
        }
    if isinstance(value, tuple):
        return {_KIND: "tuple", "items": [encode(v, where) for v in value]}
    if isinstance(value, list):
        return [encode(v, where) for v in value]
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value) and _KIND not in value:
        return {k: encode(v, f"{where}[{k!r}]") for k, v in value.items()}
    if is_function(value):
        remember(value)
        return {_KIND: "function", "name": qualified_name(value)}
    raise SaveLoadError(
        f"{where} is a {type(value).__module__}.{type(value).__name__}, which cannot be written as "
        "JSON. Models are saved without pickle: pass numbers, strings, lists, dicts, arrays or "
        "DataFrames to the model class, and build other objects in its __init__."
    )


def decode(value: Any) -> Any:
    """Turn the JSON of :func:`encode` back into values.

    Raises
    ------
    SaveLoadError
        If the JSON is damaged.
    """
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind is None:
        return {k: decode(v) for k, v in value.items()}
    decoder = _DECODERS.get(kind) if isinstance(kind, str) else None
    if decoder is None:
        raise SaveLoadError(
            f"The file holds a value of unknown kind {kind!r}. Expected one of "
            f"{', '.join(_DECODERS)}: update pyrovi, or take another copy."
        )
    try:
        return decoder(value)
    except SaveLoadError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise SaveLoadError(
            f"The file holds a damaged {kind}: {type(error).__name__} {error}. Take another copy."
        ) from error


def _array(value: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(value["dtype"])
    items = decode(value["items"])
    if dtype.hasobject:  # element by element: rows of objects are no rows of an array
        array = np.empty(value["shape"], dtype=dtype)
        array.ravel()[:] = _flat(items, len(value["shape"]))
        return array
    return np.array(items, dtype=dtype).reshape(value["shape"])


def _flat(items: list[Any], depth: int) -> list[Any]:
    return items if depth <= 1 else [v for row in items for v in _flat(row, depth - 1)]


def _frame(value: dict[str, Any]) -> pd.DataFrame:
    columns = {c: decode(v) for c, v in zip(value["columns"], value["data"], strict=True)}
    return pd.DataFrame(columns, index=decode(value["index"]))


_DECODERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "float": lambda value: float(value["value"]),
    "tuple": lambda value: tuple(decode(v) for v in value["items"]),
    "array": _array,
    "frame": _frame,
    "function": lambda value: recall(value["name"]),
}
