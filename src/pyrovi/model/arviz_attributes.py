"""Attributes of an export to ArviZ: which model, which fit, which data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from pyrovi._settings import settings
from pyrovi.data.containers import is_backed
from pyrovi.model.chains import num_chains
from pyrovi.module.stored import NormalPosterior, StoredDraws

if TYPE_CHECKING:
    from pyrovi.data import AnnDataManager
    from pyrovi.model.base import BaseModelClass

_NOTES = {
    "svi": "independent draws of a fitted guide: ess and mcse do not measure its error",
    "laplace": "independent draws of a normal approximation: ess and mcse do not measure its error",
    "pathfinder": "resampled draws of normal approximations: ess and mcse do not measure its error",
    "map": "a point estimate: the draw is the mode and has no spread",
}


def attributes(
    model: BaseModelClass, manager: AnnDataManager, seed: int | None = None
) -> dict[str, Any]:
    """Text and numbers that say what draws are of; all can be written to netCDF.

    Parameters
    ----------
    model
        The model.
    manager
        Manager of the queried data.
    seed
        Root seed of the draws; ``None`` for ``settings.seed``.

    Returns
    -------
    dict
        ``model`` (and ``story``, of a model of a function), ``inference``, ``guide`` (where one
        drew), ``num_chains``, ``num_restarts`` of SVI, ``seed``, ``data_id`` (of the registration),
        ``data_hash`` (of names and values of all registered fields; not of data on disk), and
        ``note``.
    """
    posterior = model.module.posterior
    method = "svi" if model._training is None else model._training.method
    found: dict[str, Any] = {"model": type(model).__name__}
    if (story := model._init_arguments.get("story")) is not None:
        found["story"] = getattr(story, "__qualname__", None) or type(story).__name__
    found["inference"] = method
    if not isinstance(posterior, (StoredDraws, NormalPosterior)):
        found["guide"] = _guide_name(model)
        found["num_restarts"] = num_chains(model)
    found |= {
        "num_chains": num_chains(model),
        "seed": settings.seed if seed is None else int(seed),
        "data_id": manager.adata_uuid,
    }
    if (content := data_hash(manager)) is not None:
        found["data_hash"] = content
    if method in _NOTES:
        found["note"] = _NOTES[method]
    return found


def _guide_name(model: BaseModelClass) -> str:
    asked = model._init_arguments.get("guide")
    if isinstance(asked, str):
        return asked
    guide = model.module.guide
    return type(getattr(guide, "__self__", guide)).__name__


def data_hash(manager: AnnDataManager) -> str | None:
    """Hash of the registered data (names of the observations, and every field's values).

    Data that are equal have the same, whatever the setup or the object; a sparse matrix and the
    same matrix as a dense array have different ones.

    Parameters
    ----------
    manager
        Manager of the data.

    Returns
    -------
    str or None
        32 hexadecimal digits; ``None`` if a field is on disk, which would have to be read whole.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add_text(digest, manager.obs_names)
    for key in manager.data_registry:
        values = manager.get_from_registry(key)
        if is_backed(values):
            return None
        _add_text(digest, [key])
        if sparse.issparse(values):
            table: Any = values.tocsr()
            if not table.has_canonical_format:
                table = table.copy()
                table.sum_duplicates()
            for part in (table.data, table.indices, table.indptr):
                _add(digest, part)
        else:
            _add(digest, np.asarray(values))
    return digest.hexdigest()


def _add(digest: Any, values: np.ndarray) -> None:
    if values.dtype.kind in "OUS":
        _add_text(digest, values.ravel())
        return
    _add_text(digest, [values.dtype.str, values.shape])
    digest.update(np.ascontiguousarray(values).data)


def _add_text(digest: Any, values: Iterable[Any]) -> None:
    digest.update("\x1f".join(map(str, values)).encode() + b"\x1e")
