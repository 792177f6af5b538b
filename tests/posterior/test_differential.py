from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import sparse

from pyrovi.errors import ModelError
from pyrovi.posterior import differential
from pyrovi.posterior.differential import (
    change_statistics,
    estimate_pseudocount,
    expected_fdr_calls,
    raw_moments,
    vanilla_statistics,
)


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    return tuple(rng.gamma(2.0, size=(101, 7)).astype(np.float32) for _ in range(2))


def test_change_statistics_are_those_of_the_fold_changes(draws):
    x, y = (d.astype(np.float64) for d in draws)
    got = change_statistics(x, y, delta=0.3, pseudocounts=0.01)
    lfc = np.log2((x + 0.01) / (y + 0.01))
    up, down = (lfc >= 0.3).mean(0), (lfc <= -0.3).mean(0)
    np.testing.assert_allclose(got["proba_de"], np.maximum(up, down))
    np.testing.assert_allclose(got["proba_not_de"], 1 - np.maximum(up, down))
    for name in ("mean", "median", "std", "min", "max"):
        np.testing.assert_allclose(got[f"lfc_{name}"], getattr(np, name)(lfc, axis=0), atol=1e-12)
    odds = np.log(got["proba_de"]) - np.log(got["proba_not_de"])
    np.testing.assert_allclose(got["bayes_factor"], odds, atol=1e-5)
    two = change_statistics(x, y, delta=0.3, pseudocounts=0.01, test_mode="two")
    np.testing.assert_allclose(two["proba_de"], up + down)


def test_any_fold_change_is_a_difference_if_delta_is_zero():
    same = np.ones((5, 3), dtype=np.float32)
    got = change_statistics(same, same, delta=0.0, pseudocounts=0.0, test_mode="two")
    np.testing.assert_array_equal(got["proba_de"], 1.0)


@pytest.mark.parametrize("statistics", [vanilla_statistics, change_statistics])
def test_blocks_of_genes_do_not_matter(draws, statistics, monkeypatch):
    options = {"delta": 0.25, "pseudocounts": 0.1} if statistics is change_statistics else {}
    whole = statistics(*draws, **options)
    monkeypatch.setattr(differential, "BLOCK", 2 * len(draws[0]))
    for name, value in statistics(*draws, **options).items():
        np.testing.assert_array_equal(value, whole[name])


def test_vanilla_is_antisymmetric_even_with_ties(draws):
    x, y = draws
    y = np.where(np.arange(7) < 2, x, y)
    there, back = vanilla_statistics(x, y), vanilla_statistics(y, x)
    np.testing.assert_array_equal(there["bayes_factor"], -back["bayes_factor"])
    np.testing.assert_array_equal(there["proba_m1"], back["proba_m2"])
    np.testing.assert_allclose(there["proba_m1"] + there["proba_m2"], 1.0)
    np.testing.assert_allclose(there["bayes_factor"][:2], 0.0)
    np.testing.assert_allclose(there["proba_m1"][2:], (x > y).mean(0)[2:])


def test_draws_of_different_number_are_refused(draws):
    x, y = draws
    for call in (vanilla_statistics, lambda a, b: change_statistics(a, b, delta=1, pseudocounts=0)):
        with pytest.raises(ModelError, match=r"same shape.*\(101, 7\) and \(100, 7\)"):
            call(x, y[:-1])


@pytest.mark.parametrize("target", [0.0, 0.05, 0.2, 0.5, 1.0])
def test_fdr_calls_are_the_largest_set_on_target(target):
    probabilities = np.array([0.99, 0.5, 0.93, 0.2, 0.999, 0.8, 1.0])
    largest = max(
        (
            subset
            for k in range(len(probabilities) + 1)
            for subset in itertools.combinations(range(len(probabilities)), k)
            if not k or np.mean(1 - probabilities[list(subset)]) <= target + 1e-12
        ),
        key=lambda subset: (len(subset), sum(probabilities[list(subset)])),
    )
    assert set(np.flatnonzero(expected_fdr_calls(probabilities, target))) == set(largest)


def test_fdr_target_has_to_be_a_rate():
    with pytest.raises(ModelError, match="between 0 and 1, got 5"):
        expected_fdr_calls(np.ones(3), 5)


def test_pseudocount_is_a_quantile_of_silent_genes(draws):
    x, y = draws
    silent1, silent2 = np.arange(7) < 3, np.arange(7) > 5
    largest = [*x[:, :3].max(0), y[:, 6].max()]
    assert estimate_pseudocount(x, y, silent1, silent2) == pytest.approx(np.quantile(largest, 0.9))
    assert estimate_pseudocount(x, y, ~np.ones(7, bool), ~np.ones(7, bool)) == 1e-10


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_array])
@pytest.mark.parametrize("block", [2**21, 30])
def test_raw_moments_are_group_means(form, block, monkeypatch):
    monkeypatch.setattr(differential, "BLOCK", block)
    rng = np.random.default_rng(1)
    counts = rng.poisson(0.8, size=(20, 6)).astype(np.float32)
    counts[3] = 0
    groups = np.stack([np.arange(20) < 8, np.arange(20) % 2 == 0])
    got = raw_moments(form(counts), groups)
    per_cell = 1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for g, group in enumerate(groups):
        np.testing.assert_allclose(got["mean"][g], counts[group].mean(0))
        np.testing.assert_allclose(got["non_zeros_proportion"][g], (counts[group] > 0).mean(0))
        np.testing.assert_allclose(got["normalized_mean"][g], per_cell[group].mean(0), rtol=1e-6)
