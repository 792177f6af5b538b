"""Statistics that are added up agree with those of the whole table."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from pyrovi.criticism.quantiles import Quantiles, bin_of, value_of
from pyrovi.criticism.statistics import (
    VARIABLE,
    Additive,
    CheckedData,
    Dropout,
    Extremes,
    Frequencies,
    Moments,
    ObservationZeros,
    Statistic,
)
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError


@pytest.mark.parametrize("cuts", [[50], [1, 50], [7, 8, 30, 50]])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_batches_equal_numpy(cuts: list[int], offset: float) -> None:
    values = np.random.default_rng(0).poisson(1.5, (4, 50, 3)).astype(np.float64) + offset
    moments = Moments()
    for start, end in zip([0, *cuts], cuts, strict=False):
        moments.update(torch.as_tensor(values[:, start:end]))
    found = {name: value.values.numpy() for name, value in moments.result().items()}
    np.testing.assert_allclose(found["mean"], values.mean(1), rtol=1e-13)
    np.testing.assert_allclose(found["variance"], values.var(1, ddof=1), rtol=1e-9)
    np.testing.assert_array_equal(found["zero_fraction"], (values == 0).mean(1))
    np.testing.assert_array_equal(found["total"], values.sum(2))


def test_one_observation_has_no_variance() -> None:
    moments = Moments()
    moments.update(torch.ones(2, 1, 3))
    assert (moments.result()["variance"].values == 0).all()


def batches(values: np.ndarray, cuts: list[int]):
    for start, end in zip([0, *cuts], [*cuts, values.shape[1]], strict=True):
        yield torch.as_tensor(values[:, start:end]), Minibatch({}, torch.arange(start, end), 1)


def evaluate(statistic: Statistic, values: np.ndarray, cuts: list[int], obs=None):
    adata = anndata.AnnData(np.zeros((values.shape[1], 1)), obs=obs)
    statistic.prepare(CheckedData(adata, "X", values.shape[-1]))
    for part, minibatch in batches(values, cuts):
        statistic.update(part, minibatch)
    return statistic.result()


@pytest.mark.parametrize("cuts", [[], [1], [10, 11, 40]])
def test_statistics_of_batches_equal_numpy(cuts: list[int]) -> None:
    rng = np.random.default_rng(1)
    values = rng.negative_binomial(1, 0.05, (3, 50, 4)).astype(np.float32)
    extremes = evaluate(Extremes(), values, cuts)
    np.testing.assert_array_equal(extremes["maximum"].values, values.max(1))
    np.testing.assert_array_equal(extremes["largest"].values, values.max((1, 2)))
    zeros = evaluate(ObservationZeros(), values, cuts)["zeros_per_observation"]
    np.testing.assert_allclose(zeros.values, (values == 0).mean(2))
    frequency = evaluate(Frequencies(largest=9), values, cuts)["frequency"].values
    np.testing.assert_array_equal(
        frequency, [[(draw == count).sum() for count in range(10)] for draw in values]
    )
    chosen = evaluate(Frequencies(9, variables=[2]), values, cuts)["frequency"].values
    np.testing.assert_array_equal(
        chosen, [[(draw[:, 2] == count).sum() for count in range(10)] for draw in values]
    )


def test_dropout_by_group_equals_numpy() -> None:
    rng = np.random.default_rng(2)
    values = rng.poisson(1.0, (3, 50, 4)).astype(np.float32)
    groups = rng.choice(["b", "a"], 50)
    obs = pd.DataFrame({"group": pd.Categorical(groups, categories=["a", "b", "unused"])})
    obs.index = obs.index.astype(str)
    found = evaluate(Dropout("group"), values, [7, 30], obs)["dropout"]
    assert found.coords == {"group": ["a", "b"]}
    expected = np.stack([(values[:, groups == g] == 0).mean(1) for g in "ab"], 1)
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    with pytest.raises(ModelError, match="needs this column of obs; there are: group"):
        evaluate(Dropout("donor"), values, [], obs)
    obs["missing"] = ["x"] * 49 + [None]
    with pytest.raises(ModelError, match=r"missing values \(1 observations\)"):
        evaluate(Dropout("missing"), values, [], obs)


@pytest.mark.parametrize("cuts", [[], [1], [10, 11, 40]])
def test_quantiles_of_small_counts_are_exact(cuts: list[int]) -> None:
    values = np.random.default_rng(3).poisson(4.0, (20, 50, 3)).astype(np.float32)
    values[:, 45:] *= 3  # later values need more bins
    levels = [0.02, 0.5, 0.9, 0.98]
    found = evaluate(Quantiles(levels), values, cuts)["quantile"]
    assert found.dims == ("probability", VARIABLE)
    expected = np.quantile(values, levels, axis=1, method="inverted_cdf")
    np.testing.assert_array_equal(found.values, np.moveaxis(expected, 0, 1))


def test_quantiles_of_large_counts_have_the_stated_error() -> None:
    values = np.random.default_rng(4).geometric(1e-4, (2, 400, 3)).astype(np.float32)
    levels = [0.001, 0.1, 0.5, 0.9, 0.999]
    found = evaluate(Quantiles(levels), values, [100])["quantile"].values.numpy()
    expected = np.moveaxis(np.quantile(values, levels, axis=1, method="inverted_cdf"), 0, 1)
    assert (found <= expected).all()
    assert (found >= expected / (1 + 1 / 32) - 1e-9).all()


def test_many_observations_do_not_overflow_the_histograms() -> None:
    values = np.zeros((1, 70_000, 1), dtype=np.float32)
    values[:, 40_000:] = 500.0
    found = evaluate(Quantiles([0.5, 0.6]), values, [30_000])["quantile"].values.ravel()
    assert found[0] == 0
    assert 500 / (1 + 1 / 32) <= found[1] <= 500


def test_bins_of_counts_are_their_own_inverse() -> None:
    counts = torch.cat([torch.arange(5000), torch.tensor([2**20 - 1, 2**20, 2**24])])
    bins = bin_of(counts)
    assert (bins[1:] >= bins[:-1]).all()
    low, high = value_of(bins), value_of(bins + 1)
    assert ((low <= counts) & (counts < high)).all()
    assert (bin_of(low) == bins).all()


def test_counts_are_needed_where_said() -> None:
    values = np.array([[[0.5], [1.0]]])
    for statistic in (Quantiles(), Frequencies()):
        with pytest.raises(ModelError, match=r"is for counts; 'X' has the value 0.5"):
            evaluate(statistic, values, [])
    with pytest.raises(ModelError, match="between 0 and 1, got 50"):
        Quantiles([50])


def test_functions_are_summed_and_checked() -> None:
    values = np.random.default_rng(5).normal(size=(3, 20, 4))
    found = evaluate(Additive("square", lambda v, _: v.square().sum(1)), values, [3, 9])["square"]
    assert found.dims == ("square_dim_0",)
    np.testing.assert_allclose(found.values, (values**2).sum(1))
    with pytest.raises(ModelError, match=r"'mean' returned shape \(\) for 3 draws"):
        evaluate(Additive("mean", lambda v, _: v.mean()), values, [])
