"""Progress of chains: a line for each, with its divergences and step size."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class ChainProgress:
    """Context manager that shows how far chains have come.

    Parameters
    ----------
    num_chains, num_warmup, num_samples
        What is to be done.
    enabled
        Whether to show anything. It is shown on terminals and in notebooks only.
    """

    def __init__(self, num_chains: int, num_warmup: int, num_samples: int, enabled: bool) -> None:
        self.num_warmup, self.total = num_warmup, num_warmup + num_samples
        self.num_chains = num_chains
        shown = enabled and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        self._progress: Any = self._make() if shown else None

    def _make(self) -> Any:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        return Progress(
            TextColumn("Chain {task.fields[chain]}"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def __enter__(self) -> ChainProgress:
        if self._progress is not None:
            self._progress.start()
            self._tasks = [
                self._progress.add_task("", total=self.total, chain=chain + 1, state="waiting")
                for chain in range(self.num_chains)
            ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, chain: int, message: tuple[int, int, float]) -> None:
        """Take in a report of a chain: iterations done, divergences, step size."""
        if self._progress is None:
            return
        done, divergences, step_size = message
        state = "warm-up" if done < self.num_warmup else f"{divergences} divergences"
        state = f"{state}, step size {step_size:.2g}"
        self._progress.update(self._tasks[chain], completed=done, state=state)
