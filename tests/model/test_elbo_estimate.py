"""Tests of the ELBO with its Monte-Carlo error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.train.toys import QUIET, Local, Mean, toy

from pyrovi.errors import ModelError


@pytest.mark.parametrize("cls", [Mean, Local])
def test_value_and_error_are_those_of_many_repetitions(cls):
    model = toy(cls)
    model.train(1, batch_size=8, **QUIET)
    found = [model.estimate_elbo(num_samples=16, seed=seed) for seed in range(200)]
    values = np.array([one.value for one in found])
    errors = np.array([one.mcse for one in found])
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.2)
    one = found[3]
    assert one.value == pytest.approx(model.get_elbo(num_samples=16, seed=3), rel=1e-5)
    local = model.get_elbo(num_samples=16, seed=3, return_mean=False)
    assert one.se == pytest.approx(local.std(ddof=1) / np.sqrt(len(local)), rel=1e-4)


def test_common_random_numbers_tell_close_checkpoints_apart():
    model = toy(Mean)
    model.train(1, batch_size=8, **QUIET)
    before = model.estimate_elbo(num_samples=64)
    with torch.no_grad():
        model.module.loc += 0.001
    after = model.estimate_elbo(num_samples=64)
    difference, error = after.minus(before)
    assert difference == pytest.approx(after.value - before.value)
    assert error < 0.1 * np.hypot(after.mcse, before.mcse)
    with pytest.raises(ModelError, match="64 and 8 draws"):
        after.minus(model.estimate_elbo(num_samples=8))
    with pytest.raises(ModelError, match="at least 2 draws, got 1"):
        model.estimate_elbo(num_samples=1)
