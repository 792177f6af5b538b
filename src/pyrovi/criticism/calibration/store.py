"""Results of simulations in a file, one line each, so that a run can be gone on with."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch

from pyrovi.errors import SaveLoadError

FORMAT = "pyrovi sbc"
VERSION = 1


class SimulationStore:
    """A file of simulations: a header that names the configuration, then one JSON text per line.

    Lines are only ever appended, and each is on disk before the next simulation is counted: a run
    that was killed loses the simulations that were under way, and nothing else. The file is begun
    with the first record; one that holds nothing but failed fits of another configuration is begun
    anew.

    Parameters
    ----------
    path
        The file; ``None`` keeps everything in memory.
    configuration
        What has to agree for simulations to belong together, as plain JSON.

    Attributes
    ----------
    records
        Simulation -> what is known of it.

    Raises
    ------
    SaveLoadError
        If the file holds something else, or simulations of another model or configuration.
    """

    def __init__(self, path: str | Path | None, configuration: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.configuration = dict(configuration)
        self.records: dict[int, dict[str, Any]] = {}
        self._begun = False
        if self.path is not None and self.path.exists() and self.path.stat().st_size:
            self._read()

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep the record of a simulation, which ``record["simulation"]`` numbers."""
        self.records[int(record["simulation"])] = dict(record)
        if self.path is None:
            return
        if not self._begun:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
            self._append({"format": FORMAT, "version": VERSION, **self.configuration})
            self._begun = True
        self._append(record)

    def _append(self, record: Mapping[str, Any]) -> None:
        assert self.path is not None
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        assert self.path is not None
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        try:
            lines = [json.loads(line) for line in content[:whole].decode().splitlines()]
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise SaveLoadError(
                f"{self.path} is no file of simulations (line that is no JSON: {error}). Name "
                "another path, or remove the file."
            ) from error
        header = lines[0] if lines and isinstance(lines[0], dict) else {}
        if header.get("format") != FORMAT:
            raise SaveLoadError(
                f"{self.path} holds something else than simulations of sbc(). Name another path."
            )
        if header.get("version") != VERSION:
            raise SaveLoadError(
                f"{self.path} has version {header.get('version')!r} of the format; this pyrovi "
                f"reads version {VERSION}. Name another path."
            )
        different = [k for k, v in self.configuration.items() if header.get(k) != v]
        records = {int(record["simulation"]): record for record in lines[1:]}
        if different and not any("ranks" in record for record in records.values()):
            return  # nothing but failed fits: the first record begins the file anew
        if different:
            was = {name: header.get(name) for name in different}
            now = {name: self.configuration[name] for name in different}
            raise SaveLoadError(
                f"{self.path} holds simulations of another configuration: {', '.join(different)} "
                f"differ ({was} there, {now} here). They cannot be put together; name another "
                "path, or go on with the arguments of before."
            )
        self.records, self._begun = records, True
        if whole < len(content):  # the last line was cut off
            with self.path.open("r+b") as file:
                file.truncate(whole)


def fingerprint(value: Any) -> str:
    """Short hash of a configuration, the same in every process.

    Parameters
    ----------
    value
        Plain values, arrays, modules, functions (by their code and what they close over), and
        mappings or sequences of these.
    """
    return hashlib.blake2b(repr(_plain(value)).encode(), digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, Mapping):
        return [(str(k), _plain(v)) for k, v in sorted(value.items(), key=lambda kv: str(kv[0]))]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if isinstance(value, torch.Tensor):
        return _plain(value.detach().cpu().numpy())
    if isinstance(value, np.ndarray):
        return (value.shape, str(value.dtype), value.tolist())
    if isinstance(value, functools.partial):
        return (_plain(value.func), _plain(value.args), _plain(value.keywords))
    if isinstance(value, FunctionType):
        return _function(value)
    if isinstance(value, torch.nn.Module):
        return (_methods(type(value)), _plain(dict(value.state_dict())))
    if isinstance(value, type):
        return _methods(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if hasattr(value, "__dict__") and not callable(value):
        return (kind, _plain(vars(value)))
    return kind


def _methods(cls: type) -> Any:
    functions = {k: v for k, v in vars(cls).items() if isinstance(v, FunctionType)}
    code = [(name, _code(f.__code__)) for name, f in sorted(functions.items())]
    return (cls.__module__, cls.__qualname__, code)


def _function(function: FunctionType) -> Any:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    closed = [_plain(c) for c in cells if not isinstance(c, FunctionType) or c is not function]
    return (
        function.__qualname__,
        _code(function.__code__),
        _plain(function.__defaults__),
        _plain(function.__kwdefaults__),
        closed,
    )


def _code(code: CodeType) -> Any:
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return (code.co_code.hex(), constants, code.co_names)
