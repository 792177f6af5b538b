"""Bounds on the evidence: what they are, and their order."""

from __future__ import annotations

import numpy as np
import pytest

import pyrovi as pv
from pyrovi.criticism import evidence_bounds
from pyrovi.errors import ModelError


def test_bounds_of_each_set(trained) -> None:
    bounds = evidence_bounds(trained, importance_samples=64)
    assert list(bounds.index) == ["training", "held out"]
    assert bounds["observations"].tolist() == [54, 6]
    for name, rows in (
        ("training", trained.train_indices),
        ("held out", trained.validation_indices),
    ):
        elbo = trained.get_elbo(indices=rows)
        local = trained.get_elbo(indices=rows, return_mean=False)
        assert bounds.loc[name, "elbo"] == pytest.approx(elbo)
        error = np.std(local, ddof=1) / np.sqrt(len(rows))
        assert bounds.loc[name, "standard error"] == pytest.approx(error)
        assert bounds.loc[name, "importance"] > bounds.loc[name, "elbo"]


def test_large_sets_are_sampled_repeatably(trained) -> None:
    first = evidence_bounds(trained, importance_samples=2, max_observations=10)
    assert first.loc["training", "observations"] == 10
    again = evidence_bounds(trained, importance_samples=2, max_observations=10)
    assert first.equals(again)


def test_an_untrained_model_is_refused() -> None:
    adata = pv.data.synthetic_iid(batch_size=10, n_genes=5)
    pv.model.SCVI.setup_anndata(adata)
    with pytest.raises(ModelError, match="not been trained"):
        evidence_bounds(pv.model.SCVI(adata))
