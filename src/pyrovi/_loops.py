"""Loops compiled by numba. Importing numba takes a second: modules of loops are imported on use."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numba
import torch

_IN_TEAM, _ON_OUR_OWN = 2e5, 2e6
"""Nanoseconds of work for which it pays to use another thread: one of torch's, or one of ours."""

_Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

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


def run(loop: Any, rows: int, nanoseconds: float, *arguments: Any) -> None:
    """Run a loop over all rows, on as many threads as torch has.

    Parameters
    ----------
    loop
        A compiled function, the last two of whose arguments are the first row and the end.
    rows
        Number of rows.
    nanoseconds
        About how long one thread takes.
    arguments
        Its other arguments.
    """
    team = _team() if threading.current_thread() is threading.main_thread() else None
    worth = _ON_OUR_OWN if team is None else _IN_TEAM
    threads = max(1, min(torch.get_num_threads(), int(nanoseconds / worth), rows))
    bounds = [rows * k // threads for k in range(threads + 1)]
    parts = [partial(loop, *arguments, *ends) for ends in pairwise(bounds)]
    if threads == 1:
        parts[0]()
    elif team is None:
        _share(parts)
    else:
        _share_in_team(team, parts)


def _share(parts: Sequence[Callable[[], None]]) -> None:
    """Run them in threads of our own."""
    threads = len(parts)
    if threads not in _workers:
        _workers[threads] = ThreadPoolExecutor(threads - 1, "pyrovi-loop")
    others = [_workers[threads].submit(part) for part in parts[1:]]
    parts[0]()
    for other in others:
        other.result()


@functools.cache
def _team() -> Any:
    """The OpenMP that torch uses, if it has the entry point of GNU's.

    After a product of matrices its threads wait for more work with all their might: they are there
    at once, and others would have to take the cores from them.
    """
    library = ctypes.CDLL(torch._C.__file__)  # finds what the library itself is linked to
    return library if hasattr(library, "GOMP_parallel") else None


def _share_in_team(team: Any, parts: Sequence[Callable[[], None]]) -> None:
    """Run them in the threads that torch's operations called from here use."""
    left = iter(parts)  # however many threads come
    failures: list[BaseException] = []

    def work(_: Any) -> None:
        try:
            for part in left:
                part()
        except BaseException as failure:  # noqa: BLE001 - C cannot pass it on
            failures.append(failure)

    team.GOMP_parallel(_Work(work), None, len(parts), 0)
    if failures:
        raise failures[0]
