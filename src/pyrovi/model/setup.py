"""Setup: from an AnnData and a model class to a registered manager, and back from a registry."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._constants import UUID_KEY
from pyrovi.data import AnnDataManager
from pyrovi.data.registry import check_registry
from pyrovi.errors import DataError, NotSetUpError, RegistryError
from pyrovi.model.minified_fields import minified_fields
from pyrovi.module.minified import no_counts

if TYPE_CHECKING:
    from pyrovi.data.fields.base import AnnDataField
    from pyrovi.model.base import BaseModelClass

AnyData = Any
"""AnnData or MuData."""


@dataclass
class _Replay:
    """A setup being repeated on other data, to match a registry."""

    source_registry: Mapping[str, Any]
    transfer_kwargs: Mapping[str, bool]
    manager: AnnDataManager | None = None


@dataclass(frozen=True)
class _Record:
    fields: Sequence[AnnDataField]
    setup: Mapping[str, Any]


_REPLAY: ContextVar[_Replay | None] = ContextVar("pyrovi_setup_replay", default=None)
_RECORDS: dict[str, dict[type, _Record]] = {}
"""Setups by the id that is in ``uns``, and by model class."""


def register(
    model_class: type[BaseModelClass],
    adata: AnyData,
    fields: Sequence[AnnDataField],
    arguments: Mapping[str, Any],
    method_name: str = "setup_anndata",
) -> None:
    """Register the fields of a model class on an object; the end of every ``setup_anndata``.

    Parameters
    ----------
    model_class
        The class.
    adata
        AnnData or MuData. Nothing but one id in ``uns`` is written into it.
    fields
        The fields.
    arguments
        Arguments of the setup method, by name (``locals()`` will do): what is needed to repeat it.
    method_name
        Name of the setup method.
    """
    drop = {"cls", "adata", "mdata", "__class__"}
    setup = {
        "model_name": model_class.__name__,
        "setup_method_name": method_name,
        "setup_args": {k: v for k, v in arguments.items() if k not in drop},
    }
    fields = list(fields)
    of_moments = minified_fields(adata, fields)
    manager = AnnDataManager(fields, setup)
    replay = _REPLAY.get()
    if replay is None:
        if of_moments:
            raise no_counts("A new setup")
        before = _known_setups(adata)
        manager.register_fields(adata)
        _RECORDS[manager.adata_uuid] = {**before, model_class: _Record(fields, setup)}
    else:
        manager.register_fields(adata, replay.source_registry, **replay.transfer_kwargs)
        if of_moments:
            manager.register_new_fields(of_moments)
        replay.manager = manager


def registered_manager(model_class: type[BaseModelClass], adata: AnyData) -> AnnDataManager:
    """Manager of an object that was set up for a model class, or of a copy or subset of it.

    Raises
    ------
    NotSetUpError
        If it was not set up, or for other classes only.
    """
    known = _known_setups(adata)
    record = known.get(model_class)
    if record is None:
        others = sorted(other.__name__ for other in known)
        name = model_class.__name__
        found = f"it was set up for {', '.join(others)}" if others else "it was not set up"
        raise NotSetUpError(
            f"This {type(adata).__name__} cannot be used with {name}: {found}. Run "
            f"`{name}.setup_anndata(adata, ...)` first."
        )
    manager = AnnDataManager(record.fields, record.setup)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the setup has said it already
        manager.register_fields(adata, write_id=False)
    return manager


def _known_setups(adata: AnyData) -> dict[type, _Record]:
    uuid = adata.uns.get(UUID_KEY) if hasattr(adata, "uns") else None
    return _RECORDS.get(uuid, {}) if isinstance(uuid, str) else {}


def transferred_manager(
    model_class: type[BaseModelClass],
    adata: AnyData,
    registry: Mapping[str, Any],
    **transfer_kwargs: bool,
) -> AnnDataManager:
    """Manager of other data that match a registry: the setup is repeated on them.

    Raises
    ------
    RegistryError
        If the data do not match, or the registry names no setup method of the class.
    """
    check_registry(registry)
    setup = _setup_method(model_class, registry)
    with _replay(_Replay(registry, transfer_kwargs)) as replay:
        setup(adata)
    if replay.manager is None:
        raise RegistryError(
            f"{model_class.__name__}.{registry['setup_method_name']} did not register its fields. "
            "It must end with `cls.register(adata, fields, locals())`."
        )
    return replay.manager


def _setup_method(
    model_class: type[BaseModelClass], registry: Mapping[str, Any]
) -> Callable[[AnyData], None]:
    """The setup method that a registry names; nothing else of the class, for it may be a file's."""
    name, arguments = registry.get("setup_method_name"), registry.get("setup_args")
    is_setup = isinstance(name, str) and name.startswith("setup_")
    if not is_setup or not isinstance(
        inspect.getattr_static(model_class, str(name), None), classmethod
    ):
        raise RegistryError(
            f"The registry names the setup method {name!r}, which {model_class.__name__} does not "
            "have. Expected the registry of a model of this class: set the data up again."
        )
    method = getattr(model_class, str(name))
    try:
        inspect.signature(method).bind(None, **arguments)  # type: ignore[arg-type]
    except TypeError as error:
        raise RegistryError(
            f"The registry's setup arguments {arguments!r} do not fit "
            f"{model_class.__name__}.{name}: {error}."
        ) from error
    return lambda adata: method(adata, **arguments)  # type: ignore[arg-type]


@contextmanager
def _replay(replay: _Replay) -> Iterator[_Replay]:
    token = _REPLAY.set(replay)
    try:
        yield replay
    finally:
        _REPLAY.reset(token)


def check_size_factor(adata: AnyData, key: str | None) -> None:
    """Refuse size factors that are not positive: they multiply the mean.

    Parameters
    ----------
    adata
        The data.
    key
        Column of ``obs``; ``None`` for none. Other faults are found by its field.

    Raises
    ------
    DataError
        Naming the first that is not positive.
    """
    if key is None or key not in adata.obs or adata.obs[key].dtype.kind not in "iuf":
        return
    values = adata.obs[key]
    bad = np.flatnonzero(values <= 0)
    if len(bad):
        raise DataError(
            f"adata.obs[{key!r}] holds {len(bad)} size factors that are not positive, the first "
            f"for {values.index[bad[0]]!r} ({values.iloc[bad[0]]!s}). Expected positive numbers: "
            "recompute them, or drop these rows."
        )
