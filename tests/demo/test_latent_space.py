"""Agreement with labels: perfect, none, and refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyrovi.demo.latent_space import label_agreement, plot_embedding, principal_components
from pyrovi.errors import DataError


@pytest.fixture
def labels() -> np.ndarray:
    return np.repeat(["a", "b", "c"], [60, 30, 30])


def test_separate_groups_agree_perfectly(labels) -> None:
    centres = {"a": (0, 0), "b": (20, 0), "c": (0, 20)}
    noise = np.random.default_rng(0).normal(size=(120, 2))
    found = label_agreement(np.array([centres[name] for name in labels]) + noise, labels)
    assert found == {"knn_accuracy": 1.0, "majority": 0.5, "ari": 1.0}


def test_noise_agrees_as_by_chance(labels) -> None:
    found = label_agreement(np.random.default_rng(0).normal(size=(120, 2)), labels)
    assert abs(found["ari"]) < 0.05
    assert found["knn_accuracy"] < 0.65


def test_rare_labels_are_left_out(labels) -> None:
    space = np.random.default_rng(0).normal(size=(122, 2))
    with_rare = label_agreement(space, np.r_[labels, ["rare", "rare"]])
    assert with_rare == label_agreement(space[:120], labels)


def test_one_label_is_refused() -> None:
    with pytest.raises(DataError, match="at least two labels with 5 cells each"):
        label_agreement(np.zeros((20, 2)), np.repeat("a", 20))


def test_principal_components_ignore_library_size() -> None:
    counts = np.random.default_rng(0).poisson(3.0, (30, 12))
    scores = principal_components(counts, 3)
    assert scores.shape == (30, 3)
    deeper = counts * np.where(np.arange(30) % 2, 4, 1)[:, None]
    correlation = np.corrcoef(scores[:, 0], principal_components(deeper, 3)[:, 0])[0, 1]
    assert abs(correlation) > 0.95


def test_embedding_shows_every_cell_once(labels) -> None:
    space = np.random.default_rng(0).normal(size=(120, 2))
    groups = {"Type": pd.Series(labels), "Batch": pd.Series(["x", "y"] * 60)}
    made = plot_embedding(space, groups)
    for axes, names in zip(made.axes, (["a", "b", "c"], ["x", "y"]), strict=True):
        points = np.concatenate([c.get_offsets() for c in axes.collections])
        np.testing.assert_allclose(np.sort(points, 0), np.sort(space, 0))
        texts = [text.get_text().split(" ")[0] for text in axes.get_legend().get_texts()]
        assert texts == names
