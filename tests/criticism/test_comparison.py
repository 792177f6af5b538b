"""Comparison tables: order, paired errors, weights, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from tests.criticism.exact import exact_model, simulated
from tests.module.stories import Pair, given

from pyrovi.criticism.comparison import compare
from pyrovi.criticism.elpd import Elpd
from pyrovi.criticism.leave_one_out import loo
from pyrovi.criticism.stacking import stacking_weights
from pyrovi.errors import DataError, ModelError

X, W, SD = simulated(120)
OPTIONS = {"num_samples": 300, "num_inner": 20}


def result(values: np.ndarray, kind: str = "loo", **changes: object) -> Elpd:
    names = pd.Index([f"c{i}" for i in range(len(values))], name="obs")
    table = pd.DataFrame({"elpd": values, "good": True}, index=names)
    made = Elpd(
        kind, float(values.sum()), float(np.sqrt(len(values) * values.var())), table,
        {"X": (3,)}, 0, n_obs=len(values),
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture(scope="module")
def models():
    """The true loadings, and the model that lacks one of the three factors."""
    return {"two": exact_model(X, W[:2], 1.4), "three": exact_model(X, W, SD)}


@pytest.fixture(scope="module")
def table(models):
    return compare(models, **OPTIONS)


def test_the_better_model_is_first(models, table) -> None:
    assert list(table.index) == ["three", "two"]
    assert list(table["rank"]) == [0, 1]
    one, two = loo(models["three"], **OPTIONS), loo(models["two"], **OPTIONS)
    assert table["elpd"].tolist() == [one.elpd, two.elpd]
    assert table.loc["three", ["elpd_diff", "dse"]].tolist() == [0, 0]
    difference = two.pointwise["elpd"] - one.pointwise["elpd"]
    assert table.loc["two", "elpd_diff"] == pytest.approx(difference.sum())
    assert table.loc["two", "dse"] == pytest.approx(np.sqrt(120) * difference.std())
    assert table.loc["two", "dse"] < table.loc["two", "se"]
    assert table.loc["three", "weight"] > 0.9
    assert table["weight"].sum() == pytest.approx(1)


def test_results_can_be_compared_whatever_the_order_of_their_rows() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(-3, 1, 200), rng.normal(-3.2, 1, 200)
    shuffled = result(two)
    shuffled = replace(shuffled, pointwise=shuffled.pointwise.sample(frac=1, random_state=1))
    table = compare({"a": result(one), "b": shuffled})
    expected = compare({"a": result(one), "b": result(two)})
    pd.testing.assert_frame_equal(table, expected)
    np.testing.assert_allclose(
        table["weight"], stacking_weights(np.column_stack([one, two])), atol=1e-6
    )


def test_arviz_compares_what_we_return(models, table) -> None:
    az = pytest.importorskip("arviz")
    found = az.compare({name: loo(m, **OPTIONS).to_arviz() for name, m in models.items()})
    assert list(found.index) == list(table.index)
    elpd = found["elpd_loo"] if "elpd_loo" in found else found["elpd"]
    np.testing.assert_allclose(elpd.astype(float), table["elpd"], rtol=2e-3)
    np.testing.assert_allclose(found["weight"].astype(float), table["weight"], atol=0.05)


def test_subsampled_results(models, table) -> None:
    found = compare(models, subsample=60, **OPTIONS)
    for column in ("elpd", "elpd_diff"):
        np.testing.assert_allclose(found[column], table[column], atol=12)
    assert found.loc["two", "dse"] == pytest.approx(table.loc["two", "dse"], rel=0.3)
    with pytest.raises(DataError, match="One of 'a' and 'b' is subsampled"):
        compare(
            {
                "b": loo(models["two"], **OPTIONS),
                "a": loo(models["three"], subsample=60, **OPTIONS),
            }
        )
    with pytest.raises(DataError, match="do not predict the same observations"):
        compare(
            {
                "b": loo(models["two"], subsample=60, seed=1, **OPTIONS),
                "a": loo(models["three"], subsample=60, seed=2, **OPTIONS),
            }
        )


def test_notes_say_what_to_mind() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(-3, 1, 200)
    near = values + rng.normal(0, 1e-3, 200)
    noisy = values - 0.3 + rng.normal(0, 5, 200)
    table = compare({"best": result(values + 2e-3), "near": result(near), "noisy": result(noisy)})
    assert "below 4 nats" in table.loc["near", "note"]
    assert "within two standard errors" in table.loc["noisy", "note"]
    bad = compare({"a": result(values[:50], n_bad=3), "b": result(values[:50] - 1)})
    assert "unreliable for 3 of 50" in bad.loc["a", "note"]
    assert "fewer than 100 observations" in bad.loc["b", "note"]


def test_what_cannot_be_compared() -> None:
    values = np.linspace(-4, -2, 20)
    with pytest.raises(ModelError, match="by='waic' is unknown; expected one of loo, held_out"):
        compare({"a": result(values), "b": result(values)}, by="waic")
    with pytest.raises(DataError, match="At least two models"):
        compare({"a": result(values)})
    with pytest.raises(ModelError, match="'b' is of kind 'thinning'"):
        compare({"a": result(values), "b": result(values, "thinning")})
    with pytest.raises(ModelError, match=r"'b' predicts 'X' of shape \(4,\), but 'a' predicts"):
        compare({"a": result(values), "b": result(values, sites={"X": (4,)})})
    with pytest.raises(ModelError, match="'b' predicts 'Y'"):
        compare({"a": result(values), "b": result(values, sites={"Y": (3,)})})
    with pytest.raises(DataError, match=r"0 are only in the first.*1 only in the second"):
        compare({"a": result(values), "b": result(values[:-1])})


def test_models_of_other_observations_are_refused() -> None:
    other = exact_model(X[:100], W, SD)
    with pytest.raises(DataError, match=r"same observations: 0 are only.*20 only in the second"):
        compare({"a": exact_model(X, W, SD), "b": other}, num_samples=50, num_inner=1)


def test_point_estimates_are_refused_by_loo_and_compared_by_held_out() -> None:
    def make(scale: float) -> object:
        def story(X: torch.Tensor) -> None:
            with pair.obs_plate():
                pyro.sample("X", dist.Normal(pair.loc, scale).to_event(1), obs=X)

        pair = Pair(story)
        pair.loc = torch.nn.Parameter(torch.zeros(2))
        model = given(np.random.default_rng(0).normal(size=(30, 2)), pair)
        model.is_trained = True
        model.train_indices, model.validation_indices = np.arange(10), np.arange(10, 30)
        return model

    models = {"wide": make(3.0), "right": make(1.0)}
    with pytest.raises(ModelError, match=r"'loc'.*held_out"):
        compare(models)
    table = compare(models, by="held_out")
    assert list(table.index) == ["right", "wide"]
