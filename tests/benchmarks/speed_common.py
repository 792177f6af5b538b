"""Jobs of the speed benchmark and its timer; shared by all sides, imports nothing of theirs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    task: str
    """``"epoch"``, ``"log_prob"``, ``"loading"`` or ``"step"``."""
    data: str
    """File of counts (h5ad)."""
    likelihood: str = "zinb"
    batch_size: int = 128
    repeats: int = 3

    @classmethod
    def given(cls) -> Job:
        """The job on the command line."""
        return cls(**json.loads(sys.argv[1]))

    @property
    def text(self) -> str:
        """The job, for the command line."""
        return json.dumps(asdict(self))


def measure(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of several calls, after one that is not counted."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def answer(seconds: list[float], **more: object) -> None:
    """Print the result as the last line."""
    print(json.dumps({"seconds": sorted(seconds)[len(seconds) // 2], **more}))
