"""Warm-up: step size by dual averaging, metric by windows of growing length, as in Stan."""

from __future__ import annotations

import math

import numpy as np

from pyrovi.posterior.hamiltonian import Metric, NoUTurn, State

_FIRST, _LAST, _BASE = 75, 50, 25
"""Lengths of the first and last stretch, which adapt the step size alone, and of the first
window, for a warm-up of at least their sum."""


class DualAveraging:
    """Stochastic optimisation of the log step size (Nesterov 2009; Hoffman & Gelman 2014).

    Parameters
    ----------
    step_size
        Where to start.
    target
        Acceptance rate to reach.
    """

    gamma, t0, kappa = 0.05, 10.0, 0.75

    def __init__(self, step_size: float, target: float) -> None:
        self.target = target
        self.restart(step_size)

    def restart(self, step_size: float) -> None:
        """Forget all but the step size."""
        self._mu = math.log(10 * step_size)
        self._count, self._error, self._average = 0, 0.0, 0.0

    def update(self, acceptance_rate: float) -> float:
        """Learn from a transition; returns the step size of the next."""
        self._count += 1
        eta = 1 / (self._count + self.t0)
        self._error = (1 - eta) * self._error + eta * (self.target - acceptance_rate)
        current = self._mu - self._error * math.sqrt(self._count) / self.gamma
        weight = self._count**-self.kappa
        self._average = weight * current + (1 - weight) * self._average
        return math.exp(current)

    @property
    def average(self) -> float:
        """The step size to go on with."""
        return math.exp(self._average)


class Welford:
    """Running variances or covariances.

    Parameters
    ----------
    prior
        What the estimate is shrunk towards, by the weight of five positions: a vector of variances
        or a covariance matrix.
    """

    def __init__(self, prior: np.ndarray) -> None:
        self.count, self._prior = 0, prior
        self._mean = np.zeros(len(prior))
        self._sum = np.zeros_like(prior)

    def update(self, position: np.ndarray) -> None:
        """Take in one position."""
        self.count += 1
        before = position - self._mean
        self._mean = self._mean + before / self.count
        after = position - self._mean
        self._sum += np.outer(after, before) if self._sum.ndim == 2 else before * after

    def estimate(self) -> np.ndarray:
        """The estimate, shrunk a little."""
        weight = self.count / (self.count + 5.0)
        return weight * self._sum / (self.count - 1) + (1 - weight) * self._prior


def window_ends(num_warmup: int) -> tuple[int, list[int]]:
    """Where the windows that estimate the metric begin, and the iterations they end after."""
    if num_warmup < 20:
        return num_warmup, []
    first, last, base = _FIRST, _LAST, _BASE
    if first + base + last > num_warmup:
        first, last = int(0.15 * num_warmup), int(0.1 * num_warmup)
        base = num_warmup - first - last
    ends, start, size = [], first, base
    while start < num_warmup - last:
        end = start + size
        if end + 2 * size > num_warmup - last:  # the next would not fit
            end = num_warmup - last
        ends.append(end)
        start, size = end, 2 * size
    return first, ends


class WarmUp:
    """Adapts a sampler while it runs.

    Parameters
    ----------
    sampler
        The sampler; its metric is the one to start with.
    num_warmup
        Number of iterations.
    target
        Acceptance rate to reach.
    """

    def __init__(self, sampler: NoUTurn, num_warmup: int, target: float) -> None:
        self.sampler, self.num_warmup = sampler, num_warmup
        self.begin, self.ends = window_ends(num_warmup)
        self._steps = DualAveraging(1.0, target)
        first = sampler.metric.inverse
        unit = np.eye(len(first)) if first.ndim == 2 else np.ones(len(first))
        # a metric that knows the posterior is kept in mind; the unit matrix counts little, as in
        # Stan: it is no guess of anything
        self._prior = 1e-3 * unit if np.array_equal(first, unit) else first
        self._window = Welford(self._prior)

    def start(self, state: State, random: np.random.Generator) -> None:
        """Find a step size to begin with."""
        self.sampler.step_size = reasonable_step_size(self.sampler, state, random)
        self._steps.restart(self.sampler.step_size)

    def update(
        self, iteration: int, state: State, acceptance_rate: float, random: np.random.Generator
    ) -> None:
        """Learn from the transition of an iteration, counted from 0."""
        self.sampler.step_size = self._steps.update(acceptance_rate)
        if self.begin <= iteration < (self.ends[-1] if self.ends else 0):
            self._window.update(state.position)
            if iteration + 1 in self.ends:
                self.sampler.metric = Metric(self._window.estimate())
                self._window = Welford(self._prior)
                self.start(state, random)
        if iteration + 1 == self.num_warmup:
            self.sampler.step_size = self._steps.average


def reasonable_step_size(sampler: NoUTurn, state: State, random: np.random.Generator) -> float:
    """Double or halve the step size until the acceptance of one step crosses 0.8."""
    step, direction = sampler.step_size, 0
    while 1e-10 < step < 1e7:
        begin = sampler.refresh(state, random)
        change = begin.energy - sampler.leapfrog(begin, step).energy
        wanted = 1 if change > math.log(0.8) else -1
        if direction == 0:
            direction = wanted
        elif wanted != direction:
            break
        step *= 2.0**direction
    return step
