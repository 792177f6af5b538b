"""Loops compiled by numba. Importing numba takes a second: modules of loops are imported on use."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numba
import torch

_WORTH_A_THREAD = 2**19
"""Values for which it pays to wake another thread."""

_workers: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.clear)  # threads do not survive a fork


def compiled(loop: Callable[..., None]) -> Loop:
    """Compile a function when it is first called; its machine code is kept for other processes."""
    return Loop(loop)


class Loop:
    """A function that numba compiles.

    Where machine code cannot be kept (no folder, or a full disk) every process compiles its own.
    """

    def __init__(self, loop: Callable[..., None]) -> None:
        self.loop = loop
        try:
            self._compiled = self._compile(cache=True)
        except RuntimeError:  # numba found no folder
            self._compiled = self._compile(cache=False)

    def _compile(self, cache: bool) -> Any:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
        return numba.njit(self.loop, cache=cache, **options)

    def __call__(self, *arguments: Any) -> None:
        """Run it."""
        try:
            self._compiled(*arguments)
        except OSError:  # of numba's files: the loop itself touches none
            self._compiled = self._compile(cache=False)
            self._compiled(*arguments)


def run(loop: Any, rows: int, columns: int, *arguments: Any) -> None:
    """Run a loop over all rows, on as many threads as torch has.

    Parameters
    ----------
    loop
        A compiled function, the last two of whose arguments are the first row and the end.
    rows, columns
        Number of rows, and of the values in each.
    arguments
        Its other arguments.
    """
    threads = max(1, min(torch.get_num_threads(), rows * columns // _WORTH_A_THREAD, rows))
    if threads == 1:
        loop(*arguments, 0, rows)
        return
    if threads not in _workers:
        _workers[threads] = ThreadPoolExecutor(threads - 1, "pyrovi-loop")
    bounds = [rows * k // threads for k in range(threads + 1)]
    parts = [partial(loop, *arguments, *ends) for ends in pairwise(bounds)]
    others = [_workers[threads].submit(part) for part in parts[1:]]
    parts[0]()
    for other in others:
        other.result()
