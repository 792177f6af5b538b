"""Statistics that are added up agree with those of the whole table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyrovi.criticism.statistics import Moments


@pytest.mark.parametrize("cuts", [[50], [1, 50], [7, 8, 30, 50]])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_batches_equal_numpy(cuts: list[int], offset: float) -> None:
    values = np.random.default_rng(0).poisson(1.5, (4, 50, 3)).astype(np.float64) + offset
    moments = Moments()
    for start, end in zip([0, *cuts], cuts, strict=False):
        moments.update(torch.as_tensor(values[:, start:end]))
    found = {name: value.numpy() for name, value in moments.result().items()}
    np.testing.assert_allclose(found["mean"], values.mean(1), rtol=1e-13)
    np.testing.assert_allclose(found["variance"], values.var(1, ddof=1), rtol=1e-9)
    np.testing.assert_array_equal(found["zero_fraction"], (values == 0).mean(1))
    np.testing.assert_array_equal(found["total"], values.sum(2))


def test_one_observation_has_no_variance() -> None:
    moments = Moments()
    moments.update(torch.ones(2, 1, 3))
    assert (moments.result()["variance"] == 0).all()
