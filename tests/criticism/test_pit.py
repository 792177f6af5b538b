"""Transforms are uniform under the right model, and say what is wrong with another."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyrovi.criticism.pit import predictive_pit, randomised_ranks
from pyrovi.criticism.predictive import posterior_predictive_checks
from pyrovi.criticism.statistic_plots import plot_dropout, plot_rootogram, plot_statistic
from pyrovi.criticism.statistics import Dropout
from pyrovi.data.fields import LayerField
from pyrovi.errors import ModelError
from pyrovi.model import BaseModelClass
from pyrovi.module import PyroBaseModule
from pyrovi.posterior.ecdf import uniformity

N, G = 300, 25


class Counts(PyroBaseModule):
    """Known rates; the number of times the story ran is counted."""

    def __init__(self, rate: np.ndarray, kind: str) -> None:
        super().__init__()
        self.site_dims = {"X": ("var",)}
        self.register_buffer("rate", torch.as_tensor(rate))
        self.kind = kind

    def model(self, X):
        level = pyro.sample("level", dist.Normal(X.new_tensor(0.0), 0.001))
        rate = self.rate * level.exp()
        with self.obs_plate():
            if self.kind == "poisson":
                likelihood = dist.Poisson(rate.expand(len(X), -1))
            elif self.kind == "normal":
                likelihood = dist.Normal(rate.expand(len(X), -1), 1.0)
            else:
                size = {"right": 2.0, "wide": 0.5}[self.kind]
                likelihood = dist.GammaPoisson(X.new_tensor(size), size / rate.expand(len(X), -1))
            pyro.sample("X", likelihood.to_event(1), obs=X)

    def guide(self, X):
        pyro.sample("level", dist.Normal(X.new_tensor(0.0), 0.001))


class CountsModel(BaseModelClass):
    def __init__(self, adata, rate, kind) -> None:
        super().__init__(adata)
        self.module = Counts(rate, kind)

    @classmethod
    def setup_anndata(cls, adata) -> None:
        cls.register(adata, [LayerField("X", None, is_count_data=False)], {})


def make(kind: str, continuous: bool = False) -> CountsModel:
    rng = np.random.default_rng(7)
    rate = (rng.gamma(1.0, 2.0, G) + 0.3).astype(np.float32)
    if continuous:
        X = rng.normal(rate, 1.0, (N, G))
    else:
        X = rng.poisson(rng.gamma(2.0, rate / 2, (N, G)))
    obs = pd.DataFrame({"batch": rng.choice(["a", "b"], N)}, index=[f"c{i}" for i in range(N)])
    adata = anndata.AnnData(X.astype(np.float32), obs=obs)
    CountsModel.setup_anndata(adata)
    model = CountsModel(adata, rate, kind)
    model.is_trained = True
    return model


@pytest.mark.parametrize(("kind", "continuous"), [("right", False), ("normal", True)])
def test_uniform_under_the_right_model(kind: str, continuous: bool) -> None:
    pit = predictive_pit(make(kind, continuous), num_samples=60, batch_size=70)
    counts = pit.by_variable["histogram"].to_numpy()
    assert counts.shape == (G, 100)
    assert (counts.sum(1) == N).all()
    # the rates are known, so that all values are independent: one test of all of them
    pooled = np.repeat((np.arange(100) + 0.5) / 100, counts.sum(0))
    assert uniformity(pooled, points=np.arange(1, 100) / 100).p_value > 0.01
    table = pit.table(0.95)
    assert table["inside"].sum() >= stats.binom.ppf(0.001, G, 0.95)
    assert abs(table["bias"].mean()) < 4 * np.sqrt(1 / 12 / N / G)
    assert abs(table["dispersion"].mean()) < 0.05
    assert (pit.by_observation["histogram"].sum("bin") == G).all()
    assert list(pit.by_observation["obs"].values[:2]) == ["c0", "c1"]


def test_shapes_of_wrong_dispersion() -> None:
    narrow = predictive_pit(make("poisson"), num_samples=60)
    heights = narrow.by_variable["histogram"].to_numpy().sum(0)
    assert heights[:10].mean() > 1.3 * heights[40:60].mean()
    assert heights[-10:].mean() > 1.3 * heights[40:60].mean()
    assert narrow.summary()["dispersion"] > 0.15
    assert narrow.summary()["inside"] < 0.5
    wide = predictive_pit(make("wide"), num_samples=60).summary()
    assert wide["dispersion"] < -0.1


def test_ranks_are_exactly_uniform_for_few_draws_of_counts() -> None:
    rng = np.random.default_rng(0)
    draws = rng.poisson(1.0, (5, 4000, 1))  # the first one plays the data
    found = randomised_ranks(
        torch.as_tensor(draws[1:]), torch.as_tensor(draws[0]), rng.random((4000, 1))
    )
    assert stats.kstest(found.ravel(), "uniform").pvalue > 0.01
    assert found.min() >= 0
    assert found.max() < 1


def test_ranks_by_hand() -> None:
    draws = torch.tensor([[[0.0]], [[1.0]], [[1.0]], [[3.0]]])
    found = randomised_ranks(draws, torch.tensor([[1.0]]), np.array([[0.25]]))
    assert found.item() == pytest.approx((1 + 0.25 * 3) / 5)


def test_transforms_repeat_and_leave_the_random_state_alone() -> None:
    model, before = make("right"), torch.get_rng_state()
    one, two = (predictive_pit(model, num_samples=10, indices=np.arange(50)) for _ in range(2))
    assert one.by_variable.identical(two.by_variable)
    assert one.num_observations == 50
    assert torch.equal(before, torch.get_rng_state())
    other = predictive_pit(model, num_samples=10, indices=np.arange(50), seed=1)
    assert not other.by_variable.equals(one.by_variable)


def test_figures_say_what_is_outside() -> None:
    model = make("poisson")
    pit = predictive_pit(model, num_samples=40)
    left, right = pit.plot().axes
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    outside = 1 - pit.summary()["inside"]
    assert f"outside ({outside:.0%})" in labels
    assert left.get_ylabel() == "Density"
    checks = posterior_predictive_checks(
        model, num_samples=40, statistics=["frequencies", "extremes", Dropout("batch")]
    )
    axes = plot_rootogram(checks)
    tops = {round(bar.get_y() + bar.get_height(), 4) for bar in axes.patches}
    median = np.sqrt(checks.replicated["frequency"].to_numpy())
    assert {round(float(top), 4) for top in np.median(median, axis=0)} == tops
    axes = plot_dropout(checks)
    low, high = checks.interval("dropout")
    observed = checks.observed["dropout"]
    covered = ((observed >= low) & (observed <= high)).mean("var")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"{g} ({float(covered.sel(batch=g)):.0%} covered)" for g in ("a", "b")]
    assert plot_statistic(checks, "largest", ax=axes) is axes
    assert plot_statistic(checks, "maximum").get_ylabel() == "Maximum"
    with pytest.raises(ModelError, match="no statistic 'mean'; they have frequency"):
        plot_statistic(checks, "mean")
