"""Held-out densities and folds against exact predictive densities."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
from scipy import stats
from tests.criticism.exact import (
    ExactFit,
    SharedMean,
    exact_model,
    marginal_covariance,
    mean_posterior,
    simulated,
)

import pyrovi as pv
from pyrovi.criticism.held_out_density import cross_validate, held_out, make_folds
from pyrovi.errors import DataError, MissingKeyError, ModelError

X, W, SD = simulated(60)


def predictive(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Exact log p(x | train) of each row of the test data."""
    loc, covariance = mean_posterior(train, W, SD, SharedMean.tau)
    return stats.multivariate_normal(loc, covariance + marginal_covariance(W, SD)).logpdf(test)


@pytest.fixture
def split():
    model = exact_model(X, W, SD, fit_to=X[:40])
    model.is_trained = True
    model.train_indices = np.arange(40)
    model.validation_indices = np.arange(40, 55)
    model.test_indices = np.arange(55, 60)
    return model


@pytest.fixture(scope="module")
def refittable() -> ExactFit:
    adata = anndata.AnnData(X.astype(np.float32))
    adata.obs_names = [f"cell{i}" for i in range(60)]
    adata.obs["donor"] = [f"d{i % 7}" for i in range(60)]
    ExactFit.setup_anndata(adata)
    return ExactFit(adata, W, SD)


def test_held_out_is_the_predictive_density(split) -> None:
    result = held_out(split, num_samples=2000, num_inner=1)
    exact = predictive(X[:40], X[40:])
    np.testing.assert_allclose(result.pointwise["elpd"], exact, atol=0.06)
    assert result.elpd == pytest.approx(exact.sum(), abs=0.3)
    assert result.se == pytest.approx(np.sqrt(20) * exact.std(), rel=0.05)
    assert list(result.pointwise.index) == [f"cell{i}" for i in range(40, 60)]
    assert result.n_obs == 20


def test_held_out_of_some_and_of_other_data(split) -> None:
    options = {"num_samples": 2000, "num_inner": 1}
    some = held_out(split, indices=[58, 41], **options)
    np.testing.assert_allclose(some.pointwise["elpd"], predictive(X[:40], X[[58, 41]]), atol=0.06)
    other = split.adata[50:].copy()
    found = held_out(split, other, indices=[3, 1], **options)
    assert list(found.pointwise.index) == ["cell53", "cell51"]
    np.testing.assert_allclose(found.pointwise["elpd"], predictive(X[:40], X[[53, 51]]), atol=0.06)


def test_held_out_refuses_what_is_not_held_out(split) -> None:
    with pytest.raises(DataError, match="1 of the 2 observations were trained on"):
        held_out(split, indices=[3, 41])
    split.validation_indices = split.test_indices = np.array([], dtype=int)
    with pytest.raises(ModelError, match="Training has seen all observations"):
        held_out(split)
    split.is_trained = False
    with pytest.raises(ModelError, match="not trained, so nothing is held out"):
        held_out(split)


def test_training_observations_in_copies_are_refused(split) -> None:
    with pytest.raises(DataError, match="40 of the 60 observations were trained on"):
        held_out(split, split.adata.copy())
    with pytest.raises(DataError, match="2 of the 3 observations were trained on"):
        held_out(split, split.adata[[50, 7, 3]].copy())
    with pytest.raises(DataError, match="1 of the 1 observations were trained on"):
        held_out(split, split.adata.copy(), indices=[5])
    options = {"num_samples": 20, "num_inner": 1}
    apart = held_out(split, split.adata.copy(), indices=[58, 41], **options)
    assert list(apart.pointwise.index) == ["cell58", "cell41"]
    other = split.adata[:20].copy()  # the same names, other values
    other.X = other.X + 1
    assert held_out(split, other, **options).n_obs == 20


def line(x, y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(a + x, 1.0), obs=y)


NUTS = {"method": "nuts", "num_chains": 1, "num_samples": 400, "num_warmup": 150}


@pytest.mark.parametrize(
    ("guide", "training"),
    [("laplace", {}), ("normal", NUTS), ("normal", {"method": "pathfinder"})],
    ids=["laplace", "nuts", "pathfinder"],
)
def test_folds_of_other_methods_are_exact(guide: str, training: dict) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 16))
    frame = pd.DataFrame({"x": x, "y": x + y + 0.5}).astype(np.float32)
    model = pv.from_pyro(line, frame, guide=guide)
    result = cross_validate(
        model, num_folds=2, train_kwargs=training, num_samples=400, num_inner=1, seed=1
    )
    folds, residual = result.pointwise["fold"].to_numpy(), frame["y"] - frame["x"]
    exact = []
    for i in range(16):
        kept = residual[folds != folds[i]]
        variance = 1 / (1 + len(kept))
        spread = np.sqrt(1 + variance)
        exact.append(stats.norm(variance * kept.sum(), spread).logpdf(residual[i]))
    np.testing.assert_allclose(result.pointwise["elpd"], exact, atol=0.12)
    assert "cross_validation" in repr(result)
    assert len(repr(result)) < 400
    assert "<table" in result._repr_html_()


def test_proposals_replace_a_poor_encoder(split) -> None:
    exact = held_out(split, num_samples=50, num_inner=1)
    split.module.widen, split.module.shift = 0.2, 1.0
    result = held_out(split, num_samples=50, num_inner=500)
    assert result.n_bad == 0
    np.testing.assert_allclose(result.pointwise["elpd"], exact.pointwise["elpd"], atol=0.02)


def test_a_poor_encoder_that_cannot_be_replaced_is_flagged(split, monkeypatch) -> None:
    monkeypatch.setattr("pyrovi.posterior.fitted_proposal.MAX_COORDINATES", 2)
    split.module.widen = 0.2
    result = held_out(split, num_samples=20, num_inner=500)
    assert result.n_bad > 10
    assert result.elpd < predictive(X[:40], X[40:]).sum()


# ---------------------------------------------------------------------- folds


@pytest.mark.parametrize("groups", [None, "donor"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_cross_validation_is_the_exact_one(refittable, groups, num_workers) -> None:
    result = cross_validate(
        refittable, num_folds=4, groups=groups, num_samples=1000, num_inner=1,
        num_workers=num_workers, seed=1,
    )  # fmt: skip
    folds = result.pointwise["fold"].to_numpy()
    assert list(result.pointwise.index) == list(refittable.adata.obs_names)
    exact = np.empty(60)
    for k in range(4):
        exact[folds == k] = predictive(X[folds != k], X[folds == k])
    np.testing.assert_allclose(result.pointwise["elpd"], exact, atol=0.12)
    assert result.elpd == pytest.approx(exact.sum(), abs=0.5)
    assert not refittable.is_trained
    if groups is not None:
        donors = refittable.adata.obs["donor"]
        assert result.pointwise.groupby(donors)["fold"].nunique().eq(1).all()


def test_training_arguments_arrive(refittable, monkeypatch) -> None:
    seen = []
    train = ExactFit.train
    monkeypatch.setattr(ExactFit, "train", lambda self, **k: (seen.append(k), train(self, **k)))
    cross_validate(
        refittable, num_folds=2, train_kwargs={"max_epochs": 7}, num_samples=2, num_inner=1
    )
    assert seen == [{"train_size": 1.0, "max_epochs": 7}] * 2


def test_groups_are_never_split_and_folds_are_balanced() -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        groups = rng.integers(0, 12, 300)
        folds = make_folds(300, 4, groups, seed=seed)
        assert all(len(np.unique(folds[groups == g])) == 1 for g in np.unique(groups))
        sizes = np.bincount(folds, minlength=4)
        assert sizes.min() > 40
    single = make_folds(103, 4, seed=1)
    assert sorted(np.bincount(single)) == [25, 26, 26, 26]
    np.testing.assert_array_equal(single, make_folds(103, 4, seed=1))
    assert (single != make_folds(103, 4, seed=2)).any()


def test_bad_folds_and_groups(refittable) -> None:
    for folds in (1, 8):
        with pytest.raises(DataError, match=rf"number of groups \(7\), got {folds}"):
            cross_validate(refittable, num_folds=folds, groups="donor")
    with pytest.raises(DataError, match=r"number of observations \(60\), got 61"):
        cross_validate(refittable, num_folds=61)
    with pytest.raises(MissingKeyError, match=r"no column 'patient'.*donor"):
        cross_validate(refittable, groups="patient")
    with pytest.raises(DataError, match="groups has 3 labels, expected one for each of 60"):
        cross_validate(refittable, groups=["a", "b", "c"])
    with pytest.raises(DataError, match="1 observations have no group label"):
        cross_validate(refittable, groups=[None] + ["a", "b"] * 29 + ["c"])


def test_scvi_is_held_out(trained) -> None:
    result = held_out(trained, num_samples=1, num_inner=200)
    assert result.n_obs == len(trained.validation_indices)
    assert np.isfinite(result.elpd)
    expected = trained.get_marginal_ll(
        indices=np.sort(trained.validation_indices), n_mc_samples=2000, return_mean=False
    )
    np.testing.assert_allclose(result.pointwise["elpd"], expected, atol=0.5)
