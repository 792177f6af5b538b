"""Epoch and position of loaders: what makes an interrupted epoch continue where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pyrovi.errors import DataError

T = TypeVar("T")


class EpochCursor:
    """Where the next iteration of a loader begins.

    Lightning calls :meth:`set_epoch` of ``loader.sampler`` before each epoch.

    Parameters
    ----------
    n_batches
        Number of minibatches in a whole epoch.

    Attributes
    ----------
    epoch
        Epoch whose order the next iteration gives.
    start
        Number of minibatches of that epoch that the next iteration skips.
    """

    def __init__(self, n_batches: int) -> None:
        self.n_batches = n_batches
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        """Number of minibatches in a whole epoch."""
        return self.n_batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; naming the current one keeps a resumed position."""
        if epoch != self.epoch:
            self.seek(epoch, 0)

    def seek(self, epoch: int, start: int) -> None:
        """Let the next iteration begin at minibatch ``start`` of ``epoch``.

        Raises
        ------
        DataError
            If there is no such epoch or minibatch.
        """
        if epoch < 0 or not 0 <= start <= self.n_batches:
            raise DataError(
                f"There is no minibatch {start} in epoch {epoch}: epochs count from 0 and have "
                f"{self.n_batches} minibatches"
            )
        self.epoch, self.start = int(epoch), int(start)


class ResumableLoader:
    """State of a loader whose order is a pure function of (seed, epoch).

    Each complete pass moves on to the next epoch, so that plain loops are reshuffled; a pass
    that is left early is begun again by the next iteration unless its state is loaded.
    """

    _progress: tuple[int, int] | None = None  # epoch and number of minibatches already given

    @property
    def cursor(self) -> EpochCursor | None:
        """Position of the loader; ``None`` if a caller's own sampler decides the order."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """What must agree for a position to mean the same remaining minibatches."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, and with it the order, of the next iteration."""
        if self.cursor is not None:
            self.cursor.set_epoch(epoch)

    def give(self, cursor: EpochCursor, batches: Callable[[], Iterable[T]]) -> Iterator[T]:
        """Count minibatches as they are given; the last of an epoch moves the cursor on.

        Parameters
        ----------
        cursor
            Position of the loader.
        batches
            Starts the minibatches at the cursor. It is called with the first request for one, not
            before: trainers make the iterator before they name the epoch.
        """
        if cursor.start == len(cursor):
            cursor.seek(cursor.epoch + 1, 0)
        epoch, seen = cursor.epoch, cursor.start
        self._progress = (epoch, seen)
        started = batches()
        cursor.start = 0  # an iteration after this one begins at the beginning
        for batch in started:
            seen += 1
            self._progress = (epoch, seen)
            if seen == len(cursor) and cursor.epoch == epoch:
                cursor.seek(epoch + 1, 0)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of minibatches given in it, as plain numbers.

        Empty if a caller's own sampler decides the order.
        """
        cursor = self.cursor
        if cursor is None:
            return {}
        seen = cursor.start
        if self._progress is not None and self._progress[0] == cursor.epoch:
            seen = self._progress[1]
        return {"epoch": cursor.epoch, "batches_seen": seen, **self.fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration give exactly the minibatches that were still to come.

        Raises
        ------
        DataError
            If the state lies within an epoch of a loader with another seed, batch size, number of
            observations or number of ranks.
        """
        cursor = self.cursor
        if cursor is None or not state:
            return
        if state["batches_seen"] > 0:
            for name, value in self.fingerprint().items():
                if state.get(name) != value:
                    raise DataError(
                        f"Cannot continue an epoch: the saved loader has {name}="
                        f"{state.get(name)!r}, this one {value!r}; make them equal or resume at "
                        "the start of an epoch"
                    )
        cursor.seek(state["epoch"], state["batches_seen"])
        self._progress = None
