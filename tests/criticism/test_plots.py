"""Figures show what they say, and belong to nobody else."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import pyrovi as pv
from pyrovi.criticism import plot_elbo, plot_mean_variance, plot_totals, plot_zero_fraction
from pyrovi.errors import ModelError


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in axes.get_lines()}


def test_elbo_is_the_negative_loss(trained) -> None:
    left, middle, right = plot_elbo(trained).axes
    shown = lines(left)
    np.testing.assert_allclose(shown["training"], -trained.history["elbo_train"].iloc[:, 0])
    np.testing.assert_allclose(shown["held out"], -trained.history["elbo_validation"].iloc[:, 0])
    np.testing.assert_allclose(
        lines(right)["training"],
        trained.history["kl_local_train"].iloc[:, 0]
        + trained.history["kl_global_train"].iloc[:, 0],
    )
    weight = trained.history["kl_weight"].iloc[:, 0]
    full = -trained.history["elbo_train"].iloc[:, 0][weight == weight.max()]
    block = max(1, len(full) // 4)
    last = next(y for label, y in lines(middle).items() if "last quarter" in label)
    np.testing.assert_allclose(last, full.iloc[-block:].mean())
    assert "nats" in left.get_ylabel()
    assert "KL" in right.get_ylabel()


def test_a_model_without_history_is_refused() -> None:
    adata = pv.data.synthetic_iid(batch_size=10, n_genes=5)
    pv.model.SCVI.setup_anndata(adata)
    with pytest.raises(ModelError, match="no training history"):
        plot_elbo(pv.model.SCVI(adata))


@pytest.mark.parametrize(
    ("plot", "statistic"),
    [
        (plot_mean_variance, "variance"),
        (plot_zero_fraction, "zero_fraction"),
        (plot_totals, "total"),
    ],
)
def test_predicted_against_observed(checks, plot, statistic) -> None:
    made = plot(checks)
    points = np.concatenate(
        [c.get_offsets() for c in made.axes[1].collections if len(c.get_offsets()) > 1]
    )
    observed = checks.observed[statistic].to_numpy()
    np.testing.assert_allclose(np.sort(points[:, 0]), np.sort(observed))
    legend = [text.get_text() for text in made.axes[1].get_legend().get_texts()]
    assert f"({checks.coverage(statistic):.0%})" in legend[0]
    for axes in made.axes:
        assert axes.get_title(loc="left")
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def test_histogram_counts_every_observation(checks) -> None:
    observed = plot_totals(checks).axes[0].patches[-1].get_data().values
    assert observed.sum() == checks.observed.sizes["obs"]


def test_criticism_loads_matplotlib_only_to_draw() -> None:
    code = (
        "import sys, pyrovi.criticism.model_report\n"
        "assert not {'matplotlib', 'sklearn', 'umap', 'scanpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_notebooks_show_figures_and_axes_by_themselves(checks) -> None:
    made = plot_totals(checks)
    for shown in (made, made.axes[0]):
        assert shown._repr_png_().startswith(b"\x89PNG")
    code = (
        "import sys, pyrovi.criticism.style as style\n"
        "with style.axes_of(None, 2, 2) as axes: axes.plot([1, 2])\n"
        "assert axes._repr_png_()\n"
        "plt = sys.modules.get('matplotlib.pyplot')\n"
        "assert plt is None or not plt.get_fignums()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
