"""Categories of a column: which there are, and the integer code of each row.

A category is a string, a boolean or a number, and keeps that type in the registry (plain JSON), so
that mapping codes back gives the values of the user's own column. ``1`` and ``1.0`` are the same
category; ``1``, ``True`` and ``"1"`` are three different ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrovi.data.containers import preview
from pyrovi.errors import DataError, UnseenCategoryError

Category: TypeAlias = str | bool | int | float

_SUPPORTED = ("string", "boolean", "integer", "floating", "mixed-integer-float", "empty")


def _plain(value: Any, where: str) -> Category:
    """The category as plain Python: ``str``, ``bool``, ``int``, or ``float`` if not integral."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)) and np.isfinite(value):
        return int(value) if float(value).is_integer() else float(value)
    raise DataError(
        f"{where} holds the value {value!r} of type {type(value).__name__}. Expected categories "
        "that are strings, booleans or finite numbers: convert the column with `.astype(str)`."
    )


def _identity(category: Category) -> tuple[str, Category]:
    """Key under which categories are compared; Python alone takes True for 1."""
    if isinstance(category, str):
        return "string", category
    return ("boolean", category) if isinstance(category, bool) else ("number", category)


def _factorize(column: pd.Series, where: str) -> tuple[NDArray[np.int64], list[Category], bool]:
    """Codes of the rows, the categories they point to, and whether those are ordered by the user.

    Categories that do not occur are part of the answer for a column of pandas' category type.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = column.cat.codes.to_numpy()
        values = column.cat.categories
        ordered = bool(column.cat.ordered)
    else:
        codes, values = pd.factorize(column)
        ordered = False
    if (codes < 0).any():
        rows = np.flatnonzero(codes < 0)
        raise DataError(
            f"{where} has {len(rows)} missing values (NaN), the first for "
            f"{column.index[rows[0]]!r}. Expected a category for each row: drop these rows or "
            "give them a category of their own, e.g. with `.astype(object).fillna('unknown')`."
        )
    # In an object column True and 1 collapse into one unique value, so the rows are looked at.
    inferred = pd.api.types.infer_dtype(column if column.dtype == object else values, skipna=False)
    if inferred not in _SUPPORTED:
        raise DataError(
            f"{where} holds values of mixed or unsupported type ({inferred}). Expected categories "
            "that are all strings, all booleans or all numbers: convert the column with "
            "`.astype(str)`."
        )
    categories = [_plain(value, where) for value in values]
    if not isinstance(column.dtype, pd.CategoricalDtype):
        broken = [value for value in categories if isinstance(value, float)]
        if broken:
            raise DataError(
                f"{where} holds the number {broken[0]!r}, which is not an integer. Expected "
                "categories: if these numbers are categories, say so with "
                "`.astype('category')`; if not, register the column as a continuous covariate."
            )
    return codes.astype(np.int64, copy=False), categories, ordered


def find_categories(column: pd.Series, where: str) -> tuple[list[Category], NDArray[np.int64]]:
    """Categories that occur in a column, and how many rows each has.

    The order is ascending, or the user's own for an ordered categorical column. Categories that
    are declared but do not occur are left out.

    Parameters
    ----------
    column
        Column of ``obs`` or ``var``: strings, booleans, integers, floats with integer values, or
        pandas categories of these (where other finite floats are fine as well).
    where
        How to call the column in messages, e.g. ``adata.obs['batch']``.

    Returns
    -------
    categories
        Plain Python values.
    counts
        Rows of each category, same order.

    Raises
    ------
    DataError
        On missing values, mixed types, or values that cannot be categories.
    """
    codes, categories, ordered = _factorize(column, where)
    counts = np.bincount(codes, minlength=len(categories))
    present = [position for position in range(len(categories)) if counts[position]]
    if not ordered:
        present.sort(key=lambda position: categories[position])  # type: ignore[arg-type, return-value]
    return [categories[position] for position in present], counts[present].astype(np.int64)


def unseen_categories(column: pd.Series, known: Iterable[Category], where: str) -> list[Category]:
    """Categories that occur in a column but are not ``known``, ascending (or in the user's order).

    Raises
    ------
    DataError
        As :func:`find_categories`.
    """
    identities = {_identity(category) for category in known}
    found, _ = find_categories(column, where)
    return [category for category in found if _identity(category) not in identities]


def encode(column: pd.Series, mapping: Sequence[Category], where: str) -> NDArray[np.int64]:
    """Code of each row: the position of its category in ``mapping``, shape (rows,).

    Parameters
    ----------
    column
        Column of ``obs`` or ``var``.
    mapping
        Categories of the registry, in the order of their codes.
    where
        How to call the column in messages.

    Raises
    ------
    UnseenCategoryError
        If a category that occurs is not in ``mapping``.
    DataError
        As :func:`find_categories`.
    """
    codes, categories, _ = _factorize(column, where)
    position = {_identity(category): code for code, category in enumerate(mapping)}
    lookup = np.array([position.get(_identity(c), -1) for c in categories], dtype=np.int64)
    encoded = lookup[codes] if len(codes) else np.zeros(0, dtype=np.int64)
    if encoded.size and encoded.min() < 0:
        occurring = np.unique(codes[encoded < 0])
        raise_unseen([categories[code] for code in occurring], mapping, where)
    return encoded


def raise_unseen(
    unseen: Sequence[Category], mapping: Sequence[Category], where: str, fix: str | None = None
) -> None:
    """Raise the error for categories a registry does not know.

    Parameters
    ----------
    unseen
        Categories found.
    mapping
        Categories expected.
    where
        How to call the column in messages.
    fix
        What to do about it; by default to extend the categories.

    Raises
    ------
    UnseenCategoryError
        Always.
    """
    fix = fix or (
        "drop these rows or rename the category. A model made by from_pyro predicts new levels "
        "with posterior_predictive(adata=..., new_levels=True); a setup for further categories is "
        "manager.transfer_fields(adata, extend_categories=True), for a new model"
    )
    raise UnseenCategoryError(
        f"{where} holds {'the category' if len(unseen) == 1 else 'categories'} {preview(unseen)}, "
        f"unknown to the registry. Expected one of {preview(mapping, 10)}: {fix}."
    )


def mapping_array(mapping: Sequence[Category]) -> NDArray[Any]:
    """Categories as an array: of ``int64``, ``float64`` or ``bool``, otherwise of objects."""
    kinds = {_identity(category)[0] for category in mapping}
    if len(kinds) == 1 and kinds != {"string"}:
        return np.array(mapping)
    array = np.empty(len(mapping), dtype=object)
    array[:] = mapping
    return array
