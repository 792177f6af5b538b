"""The registry as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyrovi.data.containers import preview


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(*tables: Any) -> None:
    from rich.console import Console

    console = Console()
    for table in tables:
        console.print(table)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return preview(value, 8)
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_text(item)}" for key, item in value.items())
    return str(value)


def print_setup(setup: Mapping[str, Any]) -> None:
    """Print what the setup was called with.

    Parameters
    ----------
    setup
        ``model_name``, ``setup_method_name`` and ``setup_args``.
    """
    name = f"{setup['model_name'] or 'model'}.{setup['setup_method_name'] or 'setup'}"
    table = _table(f"Arguments of {name}", "argument", "value")
    for argument, value in setup["setup_args"].items():
        table.add_row(argument, repr(value))
    _print(table)


def print_registry(registry: Mapping[str, Any], *, hide_state_registries: bool = False) -> None:
    """Print a registry: setup, sizes, where the data live, and the states of the fields.

    Parameters
    ----------
    registry
        See :mod:`pyrovi.data.registry`.
    hide_state_registries
        Leave the states out.
    """
    print_setup(registry)
    entries = registry["field_registries"]
    sizes = _table("Summary statistics", "name", "value")
    sizes.add_row("n_obs", str(registry["n_obs"]))
    places = _table("Data", "field", "place", "tensor")
    for key, entry in entries.items():
        for name, value in entry["summary_stats"].items():
            sizes.add_row(name, str(value))
        place, tensor = entry["data_registry"], entry["tensor"]
        if place:
            owner = "adata" if place["mod_key"] is None else f"mdata[{place['mod_key']!r}]"
            at = "" if place["attr_key"] is None else f"[{place['attr_key']!r}]"
            shape = " x ".join(map(str, tensor["shape"]))
            places.add_row(key, f"{owner}.{place['attr_name']}{at}", f"{tensor['kind']} {shape}")
    tables = [sizes, places]
    if not hide_state_registries:
        for key, entry in entries.items():
            if entry["state_registry"]:
                table = _table(f"State of {key}", "name", "value")
                for name, value in entry["state_registry"].items():
                    table.add_row(name, _text(value))
                tables.append(table)
    _print(*tables)
