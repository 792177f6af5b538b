"""Statistics of draws are NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.module.stories import Factors, given

from pyrovi.errors import ModelError
from pyrovi.posterior.reduce import Reduction

DRAWS = torch.randn(31, 4, 3, generator=torch.Generator().manual_seed(0))
EXPECTED = {
    "mean": lambda d: d.mean(0),
    "sd": lambda d: d.std(0, ddof=1),
    "median": lambda d: np.median(d, 0),
    "q05": lambda d: np.quantile(d, 0.05, axis=0),
    "q97.5": lambda d: np.quantile(d, 0.975, axis=0),
    "q00": lambda d: d.min(0),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_statistics(name: str) -> None:
    found = Reduction(name)(DRAWS)
    np.testing.assert_allclose(found, EXPECTED[name](DRAWS.double().numpy()), rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32


def test_a_list_a_function_and_no_reduction() -> None:
    several = Reduction(["mean", "q05", "median"])
    assert several.leading == ("statistic", ["mean", "q05", "median"])
    expected = np.stack([EXPECTED[n](DRAWS.numpy()) for n in ("mean", "q05", "median")])
    np.testing.assert_allclose(several(DRAWS), expected, rtol=1e-4, atol=1e-5)
    largest = Reduction(lambda draws: draws.max(0))
    np.testing.assert_array_equal(largest(DRAWS), DRAWS.numpy().max(0))
    assert largest.leading is None
    np.testing.assert_array_equal(Reduction(None)(DRAWS), DRAWS.numpy())


def test_draws_are_left_as_they_are() -> None:
    draws = DRAWS.clone()
    Reduction(["q05", "mean"])(draws)
    assert torch.equal(draws, DRAWS)


def test_integers_and_one_draw() -> None:
    counts = torch.tensor([[1, 2], [2, 2], [6, 2]])
    np.testing.assert_allclose(Reduction("mean")(counts), [3, 2])
    np.testing.assert_allclose(Reduction("median")(counts), [2, 2])
    np.testing.assert_allclose(Reduction("q05")(DRAWS[:1]), DRAWS[0])


@pytest.mark.parametrize("name", ["average", "q", "q101", "Q05", ""])
def test_unknown_statistics(name: str) -> None:
    with pytest.raises(ModelError, match="Unknown statistic"):
        Reduction(name)
    with pytest.raises(ModelError, match="Unknown statistic"):
        Reduction(["mean", name])


def test_streamed_reductions_are_those_of_the_draws() -> None:
    module = Factors()
    model = given(module.simulate(11), module)
    draws = model.sample_posterior("z", num_samples=50, batch_size=4)["z"].values
    for name, expected in EXPECTED.items():
        found = model.sample_posterior("z", num_samples=50, batch_size=4, reduce=name)["z"]
        np.testing.assert_allclose(found, expected(draws), rtol=1e-4, atol=1e-5)


def test_nothing_to_reduce_to_and_one_draw_without_spread() -> None:
    with pytest.raises(ModelError, match="empty list"):
        Reduction([])
    with pytest.raises(ModelError, match="at least 2 draws"):
        Reduction("sd")(DRAWS[:1])
    running = Reduction(["mean", "sd"]).running()
    running.update(DRAWS[:1])
    with pytest.raises(ModelError, match="at least 2 draws"):
        running.result(DRAWS.dtype)
