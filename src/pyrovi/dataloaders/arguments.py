"""Arguments that all loaders take, checked in one place."""

from __future__ import annotations

import operator
from typing import Any

from pyrovi.errors import DataError

_MEMBERS = ("n_obs", "registry", "get_from_registry")


def checked_batch_size(batch_size: Any) -> int:
    """Observations per minibatch.

    Parameters
    ----------
    batch_size
        What the caller has given.

    Raises
    ------
    DataError
        If it is no whole number, or not positive.
    """
    try:
        size = None if isinstance(batch_size, bool) else operator.index(batch_size)
    except TypeError:
        size = None
    if size is None:
        raise DataError(
            f"batch_size must be a whole number of observations, got {batch_size!r}; leave it out "
            "for settings.batch_size (train(batch_size=None) takes all of them at once)"
        )
    if size < 1:
        raise DataError(f"batch_size must be at least 1, got {size}")
    return size


def check_manager(manager: Any) -> None:
    """Refuse what is not the manager of registered data.

    Parameters
    ----------
    manager
        What the caller has given.

    Raises
    ------
    DataError
        If it is something else, such as an AnnData or a model.
    """
    if all(hasattr(manager, member) for member in _MEMBERS):
        return
    if hasattr(manager, "adata_manager"):
        fix = "give its adata_manager"
    else:
        fix = (
            "register the data first: give model.adata_manager of a model of them, or "
            "manager = AnnDataManager(fields); manager.register_fields(adata)"
        )
    kind = f"{type(manager).__module__.partition('.')[0]}.{type(manager).__name__}"
    raise DataError(f"Data are loaded through an AnnDataManager, got {kind}; {fix}")
