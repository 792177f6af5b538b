"""Checks of the options that modules take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyrovi.errors import ModelError


def check_choices(choices: Mapping[str, Sequence[str]], arguments: Mapping[str, Any]) -> None:
    """Refuse options whose value is none of the known ones.

    Raises
    ------
    ModelError
        Naming the first one.
    """
    for name, known in choices.items():
        if arguments[name] not in known:
            raise ModelError(
                f"{name} must be one of {', '.join(map(repr, known))}, got {arguments[name]!r}."
            )


def check_sizes(least: int = 1, **sizes: Any) -> None:
    """Refuse numbers of dimensions, layers or categories that are not whole, or too small.

    Raises
    ------
    ModelError
        Naming the first one.
    """
    for name, size in sizes.items():
        whole = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
        if not whole or size < least:
            raise ModelError(f"{name} must be a whole number, at least {least}, got {size!r}.")
