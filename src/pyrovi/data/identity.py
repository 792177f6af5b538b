"""Which object is which: ids of AnnData and MuData objects."""

from __future__ import annotations

import uuid
import warnings
import weakref
from typing import Any

from anndata import ImplicitModificationWarning

from pyrovi._constants import UUID_KEY
from pyrovi.data.fields.base import AnyData
from pyrovi.errors import DataError

# Which live object an id belongs to: copies and subsets carry the id of their original in `uns`.
_owners: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def identify(adata: AnyData, *, keep_view: bool) -> str:
    """Id of an object: the one it has, or a new one that is written to its ``uns``.

    A copy or subset carries the id of its original; it is told apart and gets an id of its own.

    Parameters
    ----------
    adata
        AnnData or MuData.
    keep_view
        Give a view an id without writing it, so that it stays a view. Otherwise a view becomes an
        actual copy, as always when one writes into it.

    Raises
    ------
    DataError
        If a view of data on disk would have to be written to.
    """
    known = adata.uns.get(UUID_KEY)
    if isinstance(known, str) and _owners.setdefault(known, adata) is adata:
        return known
    fresh = str(uuid.uuid4())
    is_view = bool(adata.is_view)
    if not (is_view and keep_view):
        if is_view and getattr(adata, "isbacked", False):
            raise DataError(
                "The data are a view of an AnnData on disk, into which no id can be written. "
                "Expected data in memory or the whole file: take `adata.to_memory()`."
            )
        with warnings.catch_warnings():
            # That a view becomes a copy is documented; the user need not be told of an accident.
            warnings.simplefilter("ignore", ImplicitModificationWarning)
            adata.uns[UUID_KEY] = fresh
    _owners[fresh] = adata
    return fresh
