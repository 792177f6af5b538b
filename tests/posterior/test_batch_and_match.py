"""Score matching finds a normal posterior exactly, and comes near others from far away."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from tests.module.guides.fitting import minibatch, pair_of
from torch import Tensor

from pyrovi.posterior.batch_and_match import batch_and_match
from pyrovi.posterior.compiled import ValueAndGradient
from pyrovi.posterior.potential import Potential

SIZE = 12


def function_of(story: object) -> ValueAndGradient:
    X = torch.zeros(3, 1)
    return ValueAndGradient(Potential(pair_of(story, X, "normal").eval(), minibatch(X)))


@pytest.mark.parametrize("dim", [2, SIZE])
def test_a_normal_posterior_is_found_exactly(dim: int) -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(dim, dim)) * np.logspace(-1, 1, dim)
    covariance = root @ root.T + 0.01 * np.eye(dim)
    mean = 5 * rng.normal(size=dim)

    def story(X: Tensor) -> None:
        target = dist.MultivariateNormal(torch.as_tensor(mean), torch.as_tensor(covariance))
        pyro.sample("u", target)

    found = batch_and_match(function_of(story), np.zeros(dim), np.eye(dim))
    sd = np.sqrt(np.diagonal(covariance))
    scale = np.outer(sd, sd)
    np.testing.assert_allclose((found[0] - mean) / sd, 0, atol=1e-3)
    np.testing.assert_allclose(found[1] / scale, covariance / scale, atol=1e-3)


def test_a_far_and_narrow_start_comes_back() -> None:
    def story(X: Tensor) -> None:
        pyro.sample("u", dist.StudentT(5.0, torch.full((3,), 50.0), 2.0).to_event(1))

    found = batch_and_match(function_of(story), np.full(3, -20.0), 1e-4 * np.eye(3))
    np.testing.assert_allclose(found[0], 50, atol=1.5)
    assert (np.abs(np.log(np.diagonal(found[1]) / 4)) < 1).all()


def test_without_finite_scores_the_start_remains() -> None:
    def story(X: Tensor) -> None:
        pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    function = function_of(story)
    nowhere = lambda position: (torch.tensor(0.0), position * torch.nan)  # noqa: E731
    nowhere.potential = function.potential  # type: ignore[attr-defined]
    found = batch_and_match(nowhere, np.ones(2), np.eye(2))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found[0], np.ones(2))
    np.testing.assert_array_equal(found[1], np.eye(2))
