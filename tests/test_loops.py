"""Compiled loops, and how their rows are shared out to threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pyrovi import _loops
from pyrovi.distributions.compiled_counts import log_mass

LONG = 1e9
"""Nanoseconds of work, enough for any number of threads."""


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["team", "own", "elsewhere"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """``run`` in torch's threads, in those of the package, and called from another thread."""
    if request.param == "team" and _loops._team() is None:
        pytest.skip("this build of torch has no OpenMP with the entry points of GNU's")
    if request.param == "own":
        monkeypatch.setattr(_loops, "_team", lambda: None)
    real = _loops.run
    if request.param != "elsewhere":
        yield real
        return
    with ThreadPoolExecutor(1) as pool:
        yield lambda *arguments: pool.submit(real, *arguments).result()


def test_every_row_is_visited_once_by_several_threads(run) -> None:
    barrier = threading.Barrier(3)  # three threads have to be there at a time
    counts, threads = np.zeros(10, int), set()

    def loop(counts: np.ndarray, start: int, stop: int) -> None:
        barrier.wait(timeout=30)
        threads.add(threading.get_ident())
        counts[start:stop] += 1

    run(loop, 10, LONG, counts)
    assert counts.tolist() == [1] * 10
    assert len(threads) == 3


def test_an_error_of_any_part_reaches_the_caller(run) -> None:
    def loop(start: int, stop: int) -> None:
        if stop == 9:
            raise MemoryError("of the last part")

    with pytest.raises(MemoryError, match="of the last part"):
        run(loop, 9, LONG)


def test_little_work_stays_in_the_thread_of_the_caller() -> None:
    threads = []

    def loop(start: int, stop: int) -> None:
        threads.append((threading.get_ident(), start, stop))

    _loops.run(loop, 10, 1e4)
    assert threads == [(threading.get_ident(), 0, 10)]


def test_values_do_not_depend_on_the_threads(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loops, "run", run)
    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(torch.rand(300, 2000, generator=generator) * 3)
    mu = torch.rand(300, 2000, generator=generator) + 0.1
    together = log_mass(x, mu, mu[0])
    torch.set_num_threads(1)
    assert torch.equal(together, log_mass(x, mu, mu[0]))


def test_a_full_disk_does_not_stop_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(x: np.ndarray, start: int, stop: int) -> None:
        for i in range(start, stop):
            x[i] *= 2

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    loop, x = _loops.Loop(double), np.ones(4)
    monkeypatch.setattr(loop, "_compiled", full)
    loop(x, 0, 3)
    assert x.tolist() == [2, 2, 2, 1]
