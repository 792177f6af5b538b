"""Independent pieces of work (chains, restarts, refits, folds) in processes of their own."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from pyrovi.errors import TrainingError

Item = TypeVar("Item")

logger = logging.getLogger("pyrovi")

_RESULT, _MESSAGE, _ERROR = "result", "message", "error"

_told: set[str] = set()
"""Reasons for not forking that have been logged."""


def run_in_processes(
    function: Callable[..., Any],
    items: Sequence[Item],
    num_workers: int,
    on_result: Callable[[int, Any], None] | None = None,
    *,
    on_message: Callable[[int, Any], None] | None = None,
    fork_safe: bool = True,
) -> list[Any]:
    """Apply a function to every item, each in a forked process of its own.

    A process begins as a copy of this one, so function and items may be anything, closures and
    models included; what it changes stays with it. Only the results travel, so they have to be
    picklable. Each process uses one torch thread. Random state is copied too: the function has to
    use streams of its own (:func:`pyrovi._rng.stream`).

    Where forking is not safe (Windows, a GPU in use, data that a forked process cannot read), the
    items are worked on one after the other in this process, which is logged once.

    Parameters
    ----------
    function
        Function of an item; with ``on_message`` of an item and of a function that sends its
        argument to ``on_message`` here.
    items
        The items.
    num_workers
        Largest number of processes at a time; 1 works in this process.
    on_result
        Called here with the position of an item and its result, as they come.
    on_message
        Called here with the position of an item and what its process has sent.
    fork_safe
        Whether the function works in a forked process.

    Returns
    -------
    list
        The results, in the order of the items.

    Raises
    ------
    TrainingError
        If a process dies, or its result cannot be sent.
    Exception
        What the function raised, with the traceback of the process as its cause. The other
        processes are stopped, as they are by an interrupt.
    """
    if num_workers < 1:
        raise TrainingError(f"num_workers must be at least 1, got {num_workers}.")
    if num_workers == 1 or len(items) < 2 or not _can_fork(fork_safe):
        return _one_by_one(function, items, on_result, on_message)
    pool = _Pool(function, items, on_result, on_message)
    try:
        return pool.run(num_workers)
    finally:
        pool.stop()


class WorkerTraceback(Exception):
    """Traceback of an exception in a worker process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _one_by_one(
    function: Callable[..., Any],
    items: Sequence[Any],
    on_result: Callable[[int, Any], None] | None,
    on_message: Callable[[int, Any], None] | None,
) -> list[Any]:
    results = []
    for position, item in enumerate(items):
        if on_message is None:
            result = function(item)
        else:
            result = function(item, lambda message, at=position: on_message(at, message))
        results.append(result)
        if on_result is not None:
            on_result(position, result)
    return results


def _can_fork(fork_safe: bool) -> bool:
    reason = ""
    if "fork" not in multiprocessing.get_all_start_methods():
        reason = "this platform cannot fork processes"
    elif torch.cuda.is_initialized():
        reason = "a process with a GPU in use cannot be forked"
    elif multiprocessing.current_process().daemon:
        reason = "this process is a worker itself"
    elif not fork_safe:
        reason = "the store of the data runs threads, which do not survive a fork"
    if reason and reason not in _told:
        _told.add(reason)
        logger.info("Working on one item after the other: %s.", reason)
    return not reason


class _Pool:
    """Processes that run, one for each item under way."""

    def __init__(
        self,
        function: Callable[..., Any],
        items: Sequence[Any],
        on_result: Callable[[int, Any], None] | None,
        on_message: Callable[[int, Any], None] | None,
    ) -> None:
        self.function, self.items = function, items
        self.on_result, self.on_message = on_result, on_message
        self.context = multiprocessing.get_context("fork")
        self.running: dict[Connection, tuple[int, Any]] = {}

    def run(self, num_workers: int) -> list[Any]:
        results: dict[int, Any] = {}
        waiting = list(range(len(self.items)))[::-1]
        while waiting or self.running:
            while waiting and len(self.running) < num_workers:
                self._start(waiting.pop())
            for connection in wait(list(self.running)):
                assert isinstance(connection, Connection)
                position, process = self.running[connection]
                kind, content = self._receive(connection, process)
                if kind == _MESSAGE:
                    if self.on_message is not None:
                        self.on_message(position, content)
                    continue
                del self.running[connection]
                connection.close()
                process.join()
                if kind == _ERROR:
                    _raise(*content)
                results[position] = content
                if self.on_result is not None:
                    self.on_result(position, content)
        return [results[position] for position in range(len(self.items))]

    def _start(self, position: int) -> None:
        receiver, sender = self.context.Pipe(duplex=False)
        arguments = (self.function, self.items[position], sender, self.on_message is not None)
        process = self.context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        sender.close()  # the worker's end alone keeps the pipe open: its death closes it
        self.running[receiver] = (position, process)

    def _receive(self, connection: Connection, process: Any) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = pickle.loads(connection.recv_bytes())
        except EOFError:
            process.join()
            code = process.exitcode
            hint = " (killed: usually for want of memory; use fewer workers)" if code == -9 else ""
            raise TrainingError(
                f"A worker process ended without a result, with exit code {code}{hint}."
            ) from None
        return message

    def stop(self) -> None:
        """End what still runs."""
        for connection, (_, process) in self.running.items():
            process.terminate()
            process.join()
            connection.close()
        self.running.clear()


def _raise(error: Exception | None, kind: str, text: str) -> None:
    cause = WorkerTraceback(text)
    if error is None:
        raise TrainingError(f"A worker process failed: {kind}") from cause
    raise error from cause


def _work(function: Callable[..., Any], item: Any, sender: Connection, streams: bool) -> None:
    """What a worker process does."""
    # An interrupt reaches the whole process group; the parent stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)

    # pickled by hand: torch would send tensors as shared memory, which ends with this process
    def send(kind: str, content: Any) -> None:
        sender.send_bytes(pickle.dumps((kind, content)))

    try:
        if streams:
            result = function(item, lambda message: send(_MESSAGE, message))
        else:
            result = function(item)
        send(_RESULT, result)
    except Exception as error:  # noqa: BLE001 - whatever it is belongs to the parent
        text = traceback.format_exc()
        kind = f"{type(error).__name__}: {error}"
        send(_ERROR, (error if _travels(error) else None, kind, text))
    finally:
        sender.close()


def _travels(error: Exception) -> bool:
    """Whether an exception can be pickled and made again."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # noqa: BLE001 - pickling calls code of the exception
        return False
