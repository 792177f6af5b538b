"""Hamiltonian dynamics, adaptation and chains on targets that are known."""

from __future__ import annotations

import numpy as np
import pytest

from pyrovi.posterior.adaptation import DualAveraging, WarmUp, Welford, window_ends
from pyrovi.posterior.convergence import ess_bulk
from pyrovi.posterior.hamiltonian import Metric, NoUTurn, State

PRECISION = np.array([[2.0, -1.2, 0.3], [-1.2, 1.5, 0.1], [0.3, 0.1, 0.7]])


def gaussian(position: np.ndarray) -> tuple[float, np.ndarray]:
    gradient = PRECISION @ position
    return 0.5 * float(position @ gradient), gradient


def sampler(dense: bool = True) -> NoUTurn:
    made = NoUTurn(gaussian)
    made.metric = Metric(np.linalg.inv(PRECISION) if dense else np.array([0.5, 2.0, 1.0]))
    return made


@pytest.mark.parametrize("dense", [True, False])
def test_momenta_have_the_mass_matrix_as_covariance(dense: bool) -> None:
    metric = sampler(dense).metric
    random = np.random.default_rng(0)
    draws = np.stack([metric.draw(random) for _ in range(20_000)])
    mass = np.linalg.inv(metric.inverse if dense else np.diag(metric.inverse))
    np.testing.assert_allclose(np.cov(draws.T), mass, atol=0.06)
    # E of the kinetic energy is half the dimension
    kinetic = [0.5 * draw @ metric.velocity(draw) for draw in draws]
    assert np.mean(kinetic) == pytest.approx(1.5, abs=0.03)


def test_leapfrog_is_reversible_and_of_second_order() -> None:
    made = sampler(dense=False)
    state = made.start(np.array([0.3, -1.0, 0.5]), np.random.default_rng(1))
    forth = made.leapfrog(state, 0.2)
    back = made.leapfrog(forth, -0.2)
    np.testing.assert_allclose(back.position, state.position, atol=1e-14)
    np.testing.assert_allclose(back.momentum, state.momentum, atol=1e-14)
    errors = []
    for step in (0.02, 0.01):
        end: State = state
        for _ in range(round(1 / step)):
            end = made.leapfrog(end, step)
        errors.append(abs(end.energy - state.energy))
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)


def test_windows_are_those_of_stan() -> None:
    assert window_ends(1000) == (75, [100, 150, 250, 450, 950])
    assert window_ends(100) == (15, [90])
    assert window_ends(10) == (10, [])


@pytest.mark.parametrize("dense", [True, False])
def test_running_moments(dense: bool) -> None:
    draws = np.random.default_rng(0).normal(size=(40, 3)) @ PRECISION
    prior = np.diag([1.0, 2.0, 3.0]) if dense else np.array([1.0, 2.0, 3.0])
    running = Welford(prior)
    for draw in draws:
        running.update(draw)
    exact = np.cov(draws.T) if dense else draws.var(0, ddof=1)
    expected = 40 / 45 * exact + 5 / 45 * prior
    np.testing.assert_allclose(running.estimate(), expected, rtol=1e-12)


def test_dual_averaging_finds_the_target() -> None:
    random = np.random.default_rng(0)
    averaging = DualAveraging(1.0, 0.8)
    step = 1.0
    for _ in range(2000):  # an acceptance rate that falls with the step size
        step = averaging.update(float(np.clip(np.exp(-step) + 0.1 * random.normal(), 0, 1)))
    assert averaging.average == pytest.approx(-np.log(0.8), rel=0.1)


def test_transitions_leave_a_gaussian_invariant() -> None:
    random = np.random.default_rng(3)
    made = NoUTurn(gaussian)
    made.metric = Metric(np.ones(3))
    warm_up = WarmUp(made, 300, 0.8)
    state = made.start(np.array([5.0, 5.0, 5.0]), random)
    warm_up.start(state, random)
    draws = []
    for iteration in range(3300):
        transition = made.transition(state, random)
        state = transition.state
        if iteration < 300:
            warm_up.update(iteration, state, transition.acceptance_rate, random)
        else:
            draws.append(state.position)
            assert transition.n_steps >= 2**transition.tree_depth - 1
    found = np.stack(draws)
    covariance = np.linalg.inv(PRECISION)
    sd = np.sqrt(np.diagonal(covariance))
    error = sd / np.sqrt(ess_bulk(found[None]))
    assert np.all(np.abs(found.mean(0)) < 5 * error)
    np.testing.assert_allclose(np.cov(found.T), covariance, atol=0.15)


def test_a_step_too_large_diverges() -> None:
    made = sampler(dense=False)
    made.step_size = 50.0
    state = made.start(np.ones(3), np.random.default_rng(0))
    transition = made.transition(state, np.random.default_rng(0))
    assert transition.diverging
    np.testing.assert_array_equal(transition.state.position, np.ones(3))
