"""Hamiltonian dynamics: the metric of momenta and the No-U-Turn transition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import linalg

Vector = np.ndarray
ValueAndGradientFunction = Callable[[Vector], tuple[float, Vector]]

DIVERGENCE = 1000.0
"""Error of the energy along a trajectory from which on it counts as divergent, as in Stan."""


class Metric:
    """Gaussian momenta whose inverse mass matrix is an estimate of the posterior's covariance.

    Parameters
    ----------
    inverse
        Inverse mass matrix: variances ``(dim,)``, or a covariance matrix ``(dim, dim)``.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a matrix is not positive definite.
    """

    def __init__(self, inverse: np.ndarray) -> None:
        self.inverse = inverse
        self.is_dense = inverse.ndim == 2
        self._factor = np.linalg.cholesky(inverse) if self.is_dense else np.sqrt(inverse)

    def velocity(self, momentum: Vector) -> Vector:
        """Derivative of the kinetic energy."""
        return self.inverse @ momentum if self.is_dense else self.inverse * momentum

    def draw(self, random: np.random.Generator) -> Vector:
        """A momentum."""
        noise = random.standard_normal(len(self.inverse))
        if self.is_dense:
            drawn: Vector = linalg.solve_triangular(self._factor.T, noise, check_finite=False)
            return drawn
        return noise / self._factor


@dataclass
class State:
    """A point of phase space."""

    position: Vector
    potential: float
    gradient: Vector
    momentum: Vector
    velocity: Vector

    @property
    def energy(self) -> float:
        """Potential plus kinetic energy; infinite where it is not defined."""
        energy = self.potential + 0.5 * float(self.momentum @ self.velocity)
        return np.inf if np.isnan(energy) else energy


@dataclass
class Transition:
    """What one transition has come to, and how."""

    state: State
    acceptance_rate: float
    tree_depth: int
    n_steps: int
    diverging: bool


@dataclass
class _Tree:
    """A stretch of trajectory: its two ends, the sum of its momenta, and a draw from it."""

    first: State
    last: State
    rho: Vector
    log_weight: float
    proposal: State
    valid: bool


class NoUTurn:
    """Transitions of the No-U-Turn sampler with multinomial sampling of the trajectory.

    The algorithm of Stan: Hoffman & Gelman (2014) with the multinomial scheme and generalised
    criterion of Betancourt (2017), and the criterion checked across the subtrees too, without which
    trajectories of nearly independent normals run around in a circle.

    Parameters
    ----------
    function
        Potential and gradient at a position.
    max_tree_depth
        Largest number of doublings.
    """

    def __init__(self, function: ValueAndGradientFunction, max_tree_depth: int = 10) -> None:
        self.function, self.max_tree_depth = function, max_tree_depth
        self.metric: Metric
        self.step_size = 1.0
        self._start_energy = self._acceptance = 0.0
        self._n_steps = 0
        self._diverging = False

    def start(self, position: Vector, random: np.random.Generator) -> State:
        """A state with a new momentum."""
        potential, gradient = self.function(position)
        return self.refresh(State(position, potential, gradient, position, position), random)

    def refresh(self, state: State, random: np.random.Generator) -> State:
        """The same position with a new momentum."""
        momentum = self.metric.draw(random)
        velocity = self.metric.velocity(momentum)
        return State(state.position, state.potential, state.gradient, momentum, velocity)

    def leapfrog(self, state: State, step: float) -> State:
        """One step of the symplectic integrator."""
        half = state.momentum - 0.5 * step * state.gradient
        position = state.position + step * self.metric.velocity(half)
        potential, gradient = self.function(position)
        momentum = half - 0.5 * step * gradient
        return State(position, potential, gradient, momentum, self.metric.velocity(momentum))

    def transition(self, start: State, random: np.random.Generator) -> Transition:
        """From a state, whose momentum is drawn anew, to the next."""
        start = self.refresh(start, random)
        self._start_energy, self._acceptance = start.energy, 0.0
        self._n_steps, self._diverging = 0, False
        tree = _Tree(start, start, start.momentum, 0.0, start, True)
        depth = 0
        while depth < self.max_tree_depth:
            forward = random.random() > 0.5
            grown = self._build(depth, tree.last if forward else tree.first, forward, random)
            if not grown.valid:
                break
            depth += 1
            # biased towards the new half, which moves further
            if np.log(random.random()) < grown.log_weight - tree.log_weight:
                tree.proposal = grown.proposal
            tree = (
                _join(tree, grown, tree.proposal) if forward else _join(grown, tree, tree.proposal)
            )
            if not tree.valid:
                break
        rate = self._acceptance / max(self._n_steps, 1)
        return Transition(tree.proposal, rate, depth, self._n_steps, self._diverging)

    def _build(self, depth: int, edge: State, forward: bool, random: np.random.Generator) -> _Tree:
        """A tree of ``2 ** depth`` states beyond an edge."""
        if depth == 0:
            return self._leaf(edge, forward)
        inner = self._build(depth - 1, edge, forward, random)
        if not inner.valid:
            return inner
        outer = self._build(depth - 1, inner.last if forward else inner.first, forward, random)
        if not outer.valid:
            return outer
        total = np.logaddexp(inner.log_weight, outer.log_weight)
        chosen = outer if np.log(random.random()) < outer.log_weight - total else inner
        if forward:
            return _join(inner, outer, chosen.proposal)
        return _join(outer, inner, chosen.proposal)

    def _leaf(self, edge: State, forward: bool) -> _Tree:
        state = self.leapfrog(edge, self.step_size if forward else -self.step_size)
        change = state.energy - self._start_energy
        self._n_steps += 1
        self._acceptance += min(1.0, float(np.exp(-max(change, 0.0))))
        diverging = bool(change > DIVERGENCE)
        self._diverging |= diverging
        return _Tree(state, state, state.momentum, -change, state, not diverging)


def _join(left: _Tree, right: _Tree, proposal: State) -> _Tree:
    """Two stretches that follow one another; invalid if the whole makes a U-turn."""
    rho = left.rho + right.rho
    valid = (
        _goes_on(left.first, right.last, rho)
        and _goes_on(left.first, right.first, left.rho + right.first.momentum)
        and _goes_on(left.last, right.last, right.rho + left.last.momentum)
    )
    log_weight = float(np.logaddexp(left.log_weight, right.log_weight))
    return _Tree(left.first, right.last, rho, log_weight, proposal, valid)


def _goes_on(first: State, last: State, rho: Vector) -> bool:
    return bool(first.velocity @ rho > 0) and bool(last.velocity @ rho > 0)
