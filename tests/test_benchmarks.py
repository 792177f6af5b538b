"""Helpers of the benchmarks (the benchmarks themselves are run by ``make bench``)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import parity_scvi
import quality_common
import quality_data
import quality_report


def result(seed: int, elbo: float, knn: float) -> dict[str, Any]:
    job = quality_common.Job("d", "s", "labels", None, "nb", 3, 1, seed)
    return {
        "job": vars(job),
        "elbo": elbo,
        "marginal_ll": elbo + 5,
        "knn_accuracy": knn,
        "seconds_per_epoch": 0.5,
        "versions": {"package": "1"},
    }


def compare(
    ours: list[tuple[float, float]], theirs: list[tuple[float, float]]
) -> quality_report.Comparison:
    sides = [[result(seed, *r) for seed, r in enumerate(side)] for side in (ours, theirs)]
    return quality_report.Comparison("data", "1 epoch", *sides)


def test_differences_are_of_pairs_and_positive_is_better() -> None:
    comparison = compare([(-99.0, 0.9), (-202.0, 0.8)], [(-100.0, 0.88), (-200.0, 0.81)])
    elbo, knn = comparison.relative("elbo"), comparison.points("knn_accuracy")
    assert elbo.mean == pytest.approx((1.0 - 1.0) / 2, abs=1e-12)
    assert elbo.sd == pytest.approx(np.sqrt(2))
    assert knn.mean == pytest.approx(0.5)
    assert knn.sd == pytest.approx(np.std([2.0, -1.0], ddof=1))


@pytest.mark.parametrize(
    ("ours", "passed"),
    [
        ((-100.4, 0.895), True),
        ((-100.6, 0.95), False),  # the ELBO is more than 0.5 % worse
        ((-90.0, 0.885), False),  # the accuracy is more than one point worse
    ],
)
def test_both_criteria_have_to_be_met(ours: tuple[float, float], passed: bool) -> None:
    assert compare([ours], [(-100.0, 0.9)]).passed is passed


def test_runs_of_other_seeds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not paired"):
        quality_report.Comparison("data", "", [result(0, -1, 0.5)], [result(1, -1, 0.5)])


def test_the_page_shows_every_run_and_the_verdict() -> None:
    good, bad = compare([(-99.0, 0.9)], [(-100.0, 0.9)]), compare([(-102.0, 0.9)], [(-100.0, 0.9)])
    page = quality_report.page([good, bad], "a machine", "- settings")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| data | nb |")]
    assert len(rows) == 2 + 2 + 4  # two cases twice, and each with two runs
    assert [row[-1] for row in rows[:2]] == ["yes |", "**no** |"]
    assert "{" not in page


def test_most_variable_genes_against_a_dense_computation() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 4.0, 30) * rng.gamma(1.0, 1.0, (50, 30))) + np.eye(50, 30)
    normalised = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    expected = np.sort(np.argsort(normalised.var(0))[-7:])
    found = quality_data.most_variable_genes(sparse.csr_matrix(counts + 0.0), 7)
    np.testing.assert_array_equal(found, expected)


def test_a_split_covers_all_cells_once_and_depends_on_the_seed_only() -> None:
    train, test = quality_data.split(101, seed=3)
    assert len(test) == 25
    np.testing.assert_array_equal(np.sort(np.r_[train, test]), np.arange(101))
    np.testing.assert_array_equal(test, quality_data.split(101, seed=3)[1])
    assert not np.array_equal(test, quality_data.split(101, seed=4)[1])


def test_knn_accuracy_judges_test_cells_by_training_cells() -> None:
    latent = np.r_[np.zeros(20), np.full(20, 9.0), [0.1, 0.2, 8.9, 9.1]][:, None]
    labels = np.array(["a"] * 20 + ["b"] * 20 + ["a", "b", "b", "b"])
    train, test = np.arange(40), np.arange(40, 44)
    assert quality_common.knn_accuracy(latent, labels, train, test) == 0.75


def test_parameters_of_scvi_tools_have_a_place_in_ours() -> None:
    names = {
        "z_encoder.encoder.fc_layers.Layer 1.0.weight": "encoder.layers.layers.1.linear.weight",
        "l_encoder.mean_encoder.bias": "library_encoder.mean_head.bias",
        "decoder.px_scale_decoder.0.weight": "decoder.scale_head.weight",
        "px_r": "log_theta",
    }
    assert {name: parity_scvi.renamed(name) for name in names} == names
