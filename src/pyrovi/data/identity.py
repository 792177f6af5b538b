"""Ids by which a later model finds the setup of an AnnData or MuData."""

from __future__ import annotations

import uuid
import warnings

from anndata import ImplicitModificationWarning

from pyrovi._constants import UUID_KEY
from pyrovi.data.fields.base import AnyData
from pyrovi.errors import DataError


def new_id(adata: AnyData, *, write: bool) -> str:
    """New id for a registration of an object.

    Each setup has an id of its own, which copies and subsets carry along: they share the setup they
    were made under, whatever is done to the original afterwards.

    Parameters
    ----------
    adata
        AnnData or MuData.
    write
        Write the id to ``uns``. A view becomes an actual copy then, as always when one writes into
        it.

    Raises
    ------
    DataError
        If a view of data on disk would have to be written to.
    """
    fresh = str(uuid.uuid4())
    if write:
        if adata.is_view and getattr(adata, "isbacked", False):
            raise DataError(
                "The data are a view of an AnnData on disk, into which no id can be written. "
                "Expected data in memory, the whole file, or a view of what pyrovi.data.open_store "
                "opens, which stays on disk: open the file so, or take `adata.to_memory()`."
            )
        with warnings.catch_warnings():
            # That a view becomes a copy is documented; the user need not be told of an accident.
            warnings.simplefilter("ignore", ImplicitModificationWarning)
            adata.uns[UUID_KEY] = fresh
    return fresh
