"""Verdicts, multiplicity and figures of values that are uniform or are not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyrovi.criticism.calibration.plots import plot_ecdf_difference, plot_histogram
from pyrovi.criticism.calibration.result import Calibration, holm
from pyrovi.criticism.calibration.symmetry import symmetry_test
from pyrovi.errors import ModelError


def ranks(values: dict[str, np.ndarray], num_draws: int = 99, **options) -> Calibration:
    frame = pd.DataFrame({k: np.floor(v * (num_draws + 1)).astype(int) for k, v in values.items()})
    return Calibration("Test", frame, num_draws, **options)


def test_holm_is_the_step_down_adjustment() -> None:
    adjusted = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).max() <= 1


def test_uniform_ranks_of_many_quantities_pass_together_as_often_as_asked() -> None:
    rng = np.random.default_rng(0)
    passed = [
        ranks({f"q{k}": rng.uniform(size=50) for k in range(5)}, 9).passed for _ in range(150)
    ]
    assert np.mean(passed) == pytest.approx(0.95, abs=0.05)


@pytest.mark.parametrize(
    ("a", "b", "reading"),
    [
        (1.0, 2.0, "draws too high"),  # the truth lies low among the draws
        (2.0, 1.0, "draws too low"),
        (0.5, 0.5, "draws too narrow"),
        (2.0, 2.0, "draws too wide"),
    ],
)
def test_the_reading_names_the_deviation(a: float, b: float, reading: str) -> None:
    found = ranks({"mu": np.random.default_rng(1).beta(a, b, size=400)})
    assert not found.passed
    assert found.table.loc["mu", "reading"] == reading


@pytest.mark.parametrize(
    ("position", "reading"), [(0.0, "draws too high"), (0.999, "draws too low")]
)
@pytest.mark.parametrize("others", [0, 3])
def test_ranks_at_one_end_are_bias(position: float, reading: str, others: int) -> None:
    values = np.full(60, position)
    values[:others] = 0.999 - position
    assert ranks({"mu": values}).table.loc["mu", "reading"] == reading


def test_ranks_at_both_ends_are_narrow() -> None:
    values = np.repeat([0.0, 0.999], [26, 34])
    assert ranks({"mu": values}).table.loc["mu", "reading"] == "draws too narrow"


def test_bias_and_spread_are_zero_and_one_for_every_rank_once() -> None:
    found = ranks({"mu": (np.arange(100) + 0.5) / 100}, 99)
    assert found.table.loc["mu", "bias"] == pytest.approx(0)
    assert found.table.loc["mu", "spread"] == pytest.approx(1)


def test_symmetry_has_its_level_and_power() -> None:
    rng = np.random.default_rng(0)
    level = [symmetry_test(rng.beta(0.4, 0.4, 60), seed=i) < 0.1 for i in range(200)]
    assert np.mean(level) == pytest.approx(0.1, abs=0.06)
    assert symmetry_test(rng.beta(2.0, 1.0, 100)) < 0.01
    tied = np.repeat([0.1, 0.9, 0.5], 20)  # ranks have ties; these are exactly symmetric
    assert symmetry_test(tied) > 0.9


def test_empty_results_and_unknown_quantities_are_refused() -> None:
    with pytest.raises(ModelError, match="nothing to judge"):
        Calibration("Test", pd.DataFrame({"mu": []}), 99)
    with pytest.raises(ModelError, match="no quantity 'tau'"):
        plot_histogram(ranks({"mu": np.full(30, 0.5)}), "tau")


def test_figures_show_the_band_and_the_counts() -> None:
    rng = np.random.default_rng(0)
    found = ranks({"mu": rng.uniform(size=200), "tau": rng.beta(0.3, 0.3, 200)}, 100)
    made = found.plot()
    assert len(made.axes) == 4
    assert [ax.get_title(loc="left") for ax in made.axes[:2]] == ["tau", "mu"]
    ax = plot_histogram(found, "mu")
    assert sum(ax.patches[0].get_data().values) == 200
    line = plot_ecdf_difference(found, "mu").get_lines()[-1]
    assert line.get_ydata()[0] == pytest.approx(0)
    assert line.get_ydata()[-1] == pytest.approx(0)
