"""Work in processes of their own: order, results, errors."""

from __future__ import annotations

import logging
import os

import pytest
import torch

from pyrovi import _parallel
from pyrovi._parallel import WorkerTraceback, run_in_processes
from pyrovi.errors import TrainingError


def test_results_come_in_the_order_of_the_items() -> None:
    seen: dict[int, torch.Tensor] = {}
    scale = torch.tensor(3.0)
    results = run_in_processes(lambda i: scale * i, [4, 5, 6], 2, seen.__setitem__)
    assert [float(r) for r in results] == [12.0, 15.0, 18.0]
    assert sorted(seen) == [0, 1, 2]
    assert seen[2] == 18.0


def test_each_item_has_its_process_and_changes_stay_there() -> None:
    changed: list[int] = []

    def work(i: int) -> int:
        changed.append(i)
        return os.getpid()

    pids = run_in_processes(work, [0, 1, 2], 3)
    assert len({*pids, os.getpid()}) == 4
    assert changed == []


def test_work_that_no_fork_can_do_is_done_here_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_parallel, "_told", set())
    with caplog.at_level(logging.INFO, "pyrovi"):
        pids = run_in_processes(lambda _: os.getpid(), [0, 1], 2, fork_safe=False)
    assert pids == [os.getpid()] * 2
    assert "one item after the other: the store of the data runs threads" in caplog.text


@pytest.mark.parametrize("workers", [1, 2])
def test_messages_arrive_before_the_result(workers: int) -> None:
    messages: dict[int, list[int]] = {0: [], 1: []}

    def work(i: int, send: object) -> int:
        for k in range(3):
            send(10 * i + k)  # type: ignore[operator]
        return i

    run_in_processes(work, [0, 1], workers, on_message=lambda at, m: messages[at].append(m))
    assert messages == {0: [0, 1, 2], 1: [10, 11, 12]}


def test_errors_come_with_the_traceback_of_the_worker() -> None:
    def fails_in_here(i: int) -> int:
        if i:
            raise KeyError("this one")
        return i

    with pytest.raises(KeyError, match="this one") as raised:
        run_in_processes(fails_in_here, [0, 1, 2], 2)
    assert isinstance(raised.value.__cause__, WorkerTraceback)
    assert "fails_in_here" in str(raised.value.__cause__)


def test_errors_that_cannot_be_sent_are_told() -> None:
    class Odd(Exception):
        pass

    def fails(_: int) -> None:
        raise Odd("of a local class")

    with pytest.raises(TrainingError, match="Odd: of a local class"):
        run_in_processes(fails, [0, 1], 2)


def test_a_worker_that_dies_is_told() -> None:
    with pytest.raises(TrainingError, match="exit code 3"):
        run_in_processes(lambda _: os._exit(3), [0, 1], 2)
