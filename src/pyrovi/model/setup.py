"""Setup: from an AnnData and a model class to a registered manager, and back from a registry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyrovi._constants import UUID_KEY
from pyrovi.data import AnnDataManager
from pyrovi.errors import NotSetUpError

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
_RECORDS: dict[tuple[type, str], _Record] = {}


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
    manager = AnnDataManager(fields, setup)
    replay = _REPLAY.get()
    if replay is None:
        manager.register_fields(adata)
        _RECORDS[model_class, adata.uns[UUID_KEY]] = _Record(list(fields), setup)
    else:
        manager.register_fields(adata, replay.source_registry, **replay.transfer_kwargs)
        replay.manager = manager


def registered_manager(model_class: type[BaseModelClass], adata: AnyData) -> AnnDataManager:
    """Manager of an object that was set up for a model class, or of a copy or subset of it.

    Raises
    ------
    NotSetUpError
        If it was not set up, or for other classes only.
    """
    uuid = adata.uns.get(UUID_KEY) if hasattr(adata, "uns") else None
    record = _RECORDS.get((model_class, uuid)) if isinstance(uuid, str) else None
    if record is None:
        others = sorted({c.__name__ for c, known in _RECORDS if known == uuid})
        name = model_class.__name__
        found = f"it was set up for {', '.join(others)}" if others else "it was not set up"
        raise NotSetUpError(
            f"This {type(adata).__name__} cannot be used with {name}: {found}. Run "
            f"`{name}.setup_anndata(adata, ...)` first."
        )
    manager = AnnDataManager(record.fields, record.setup)
    manager.register_fields(adata)
    return manager


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
        If the data do not match.
    """
    with _replay(_Replay(registry, transfer_kwargs)) as replay:
        getattr(model_class, registry["setup_method_name"])(adata, **registry["setup_args"])
    assert replay.manager is not None
    return replay.manager


@contextmanager
def _replay(replay: _Replay) -> Iterator[_Replay]:
    token = _REPLAY.set(replay)
    try:
        yield replay
    finally:
        _REPLAY.reset(token)
