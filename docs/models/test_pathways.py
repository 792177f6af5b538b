"""Tests of the model class: it recovers what it was simulated with, and refuses what is wrong."""

import numpy as np
import pandas as pd
import pytest
import torch
from pathways import Pathways

import pyrovi as pv


@pytest.fixture(scope="module")
def simulated():
    """Cells drawn from the story, with everything that was drawn, and a fit to them."""
    torch.manual_seed(0)
    adata = pv.data.synthetic_iid(batch_size=250, n_genes=60, n_batches=2)
    sets = np.zeros((60, 3), dtype=int)
    for p in range(3):
        sets[15 * p : 15 * (p + 1), p] = 1
    adata.varm["sets"] = pd.DataFrame(sets, index=adata.var_names, columns=["a", "b", "c"])
    Pathways.setup_anndata(adata, "sets", batch_key="batch")
    model = Pathways(adata)
    truth = model.simulate(seed=1)
    fit = model.fresh_copy(truth)
    fit.train(100, lr=0.01, enable_progress_bar=False)
    return fit, truth


def test_recovers_what_it_was_simulated_with(simulated):
    fit, truth = simulated
    table = pv.criticism.recovery(fit, truth, sites=["z", "w"]).table
    assert table.loc["z", "correlation"] > 0.9
    assert table["coverage_90"].between(0.8, 0.97).all()


def test_results_carry_the_names_of_the_data(simulated):
    fit, _ = simulated
    activities = fit.get_activities(indices=[3, 1])
    assert list(activities.columns) == ["a", "b", "c"]
    assert list(activities.index) == list(fit.adata.obs_names[[3, 1]])


def test_saved_and_loaded(simulated, tmp_path):
    fit, _ = simulated
    fit.save(tmp_path / "fit")
    again = Pathways.load(tmp_path / "fit", fit.adata)
    pd.testing.assert_frame_equal(again.get_activities(), fit.get_activities())


def test_gene_sets_are_zeros_and_ones():
    adata = pv.data.synthetic_iid(batch_size=5, n_genes=4)
    adata.varm["sets"] = pd.DataFrame({"a": [0, 1, 2, 0]}, index=adata.var_names)
    with pytest.raises(pv.errors.DataError, match="other than 0 and 1"):
        Pathways.setup_anndata(adata, "sets")
