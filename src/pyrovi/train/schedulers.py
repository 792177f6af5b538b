"""Learning-rate schedulers, stepped by the training plan itself.

Lightning steps schedulers that watch a metric after the checkpoint of the epoch is written, and
none in manual optimisation; a plan that steps its own resumes exactly, and both plans do it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from pyrovi.errors import TrainingError

Interval = Literal["epoch", "step"]


class Schedule:
    """A torch scheduler, when it steps, and the metric that it watches.

    Parameters
    ----------
    scheduler
        The scheduler.
    interval
        ``"epoch"``, or ``"step"``: after every step of the optimiser. Schedulers that watch a
        metric always step by epoch.
    monitor
        Metric for ``ReduceLROnPlateau``.
    """

    def __init__(self, scheduler: LRScheduler, interval: Interval, monitor: str) -> None:
        self.scheduler = scheduler
        self.monitor = monitor
        self.interval = "epoch" if isinstance(scheduler, ReduceLROnPlateau) else interval

    def step(self, interval: Interval, metrics: Mapping[str, Any], *, validated: bool) -> None:
        """Step if it is time.

        Parameters
        ----------
        interval
            What has ended.
        metrics
            The latest metrics.
        validated
            Whether the epoch had a validation: without one, the metrics of the held-out
            observations are old ones or not there yet.

        Raises
        ------
        TrainingError
            If the watched metric has not been logged.
        """
        if interval != self.interval:
            return
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
            return
        if self.monitor.endswith("_validation") and not validated:
            return
        if self.monitor not in metrics:
            raise missing_metric(self.monitor, metrics)
        self.scheduler.step(float(metrics[self.monitor]))

    def state_dict(self) -> dict[str, Any]:
        """State of the scheduler."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self.scheduler.load_state_dict(state)


def plateau_scheduler(**options: Any) -> Callable[[Optimizer], LRScheduler]:
    """Maker of a scheduler that reduces the learning rate when a metric has stopped improving."""
    return lambda optimizer: ReduceLROnPlateau(optimizer, threshold_mode="abs", **options)


class GeometricDecay:
    """Factor of the learning rate that falls geometrically over the planned steps, then stays.

    Parameters
    ----------
    last
        The factor after the last step, in (0, 1].
    steps
        Number of steps; training that goes on beyond them keeps the last rate.
    """

    def __init__(self, last: float, steps: int) -> None:
        self.last, self.steps = last, max(1, steps)

    def __call__(self, step: int) -> float:
        return float(self.last ** min(1.0, step / self.steps))


def decaying_scheduler(last: float, steps: int) -> Callable[[Optimizer], LRScheduler]:
    """Maker of a scheduler that lets the learning rates fall to ``last`` times what they were."""
    return lambda optimizer: LambdaLR(optimizer, GeometricDecay(last, steps))


def missing_metric(monitor: str, metrics: Mapping[str, Any]) -> TrainingError:
    """Error for a watched metric that nobody logs."""
    found, held_out = sorted(metrics), "_validation"
    lacks = monitor.endswith(held_out) and not any(name.endswith(held_out) for name in found)
    return TrainingError(
        f"The monitored metric {monitor!r} has not been logged; metrics are: "
        f"{', '.join(found) or 'none'}.{' There are no validation observations.' if lacks else ''}"
    )
