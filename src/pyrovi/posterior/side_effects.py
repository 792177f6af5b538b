"""What a story leaves behind: state of its module, and random states that torch does not keep."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class ModuleState:
    """The attributes and buffers of a module and its parts, as they are now.

    A story that stores a value on its module (``self.last = z``) stores, under ``vmap``, a wrapper
    of all draws, which is dead once ``vmap`` has ended: it can neither be read nor saved.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self._spaces: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._containers: list[tuple[list[Any] | dict[Any, Any], Any]] = []
        for part in () if module is None else module.modules():
            for space in (part.__dict__, part._buffers):
                self._spaces.append((space, dict(space)))
            for value in part.__dict__.values():
                if isinstance(value, (list, dict)) and value is not part._buffers:
                    self._containers.append((value, value.copy()))

    def has_wrappers(self) -> bool:
        """Whether a wrapper has been left in the module since."""
        new = (
            value
            for space, before in self._spaces
            for name, value in space.items()
            if name not in before or value is not before[name]
        )
        kept = (
            value
            for container, before in self._containers
            for value in (container.values() if isinstance(container, dict) else container)
        )
        return any(_wraps(value) for values in (new, kept) for value in values)

    def restore(self) -> None:
        """Put everything back."""
        for space, before in self._spaces:
            for name in space.keys() - before.keys():
                del space[name]
            for name, value in before.items():
                if space.get(name) is not value:
                    space[name] = value
        for container, before in self._containers:
            if isinstance(container, dict):
                if container.keys() != before.keys() or any(
                    container[name] is not before[name] for name in before
                ):
                    container.clear()
                    container.update(before)
            else:
                container[:] = before


class ForeignRandomness:
    """States of NumPy's and Python's global generators, which ``vmap`` cannot vectorise."""

    def __init__(self) -> None:
        self._numpy: Any = np.random.get_state()  # noqa: NPY002 (only looked at)
        self._python = random.getstate()

    def advanced(self) -> bool:
        """Whether one of them has been drawn from since."""
        now: Any = np.random.get_state()  # noqa: NPY002
        same = now[2:] == self._numpy[2:] and np.array_equal(now[1], self._numpy[1])
        return not same or random.getstate() != self._python

    def restore(self) -> None:
        """Take the draws back."""
        np.random.set_state(self._numpy)  # noqa: NPY002
        random.setstate(self._python)


def _wraps(value: Any) -> bool:
    if isinstance(value, Tensor):
        wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(value)
        return wrapped
    if isinstance(value, dict):
        return any(_wraps(v) for v in value.values())
    return isinstance(value, (list, tuple)) and any(_wraps(v) for v in value)
