from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tests.model.planted import DOWN, N_GENES, UP, planted_adata, planted_model

from pyrovi.errors import DataError, MissingKeyError, ModelError, UnseenCategoryError

# trains a model, some seconds on an idle machine
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained():
    adata, lfc = planted_adata()
    return planted_model(adata, epochs=50), lfc


def in_gene_order(model, table):
    return table.loc[model.var_names]


def test_a_planted_effect_is_recovered_in_sign_and_size(trained):
    model, truth = trained
    obs_before, uns_before = model.adata.obs.copy(), dict(model.adata.uns)
    table = model.differential_expression(groupby="group", group1="a", group2="b")
    ordered = in_gene_order(model, table)
    assert np.abs(ordered["lfc_median"] - truth).max() < 0.5
    planted = np.zeros(N_GENES, dtype=bool)
    planted[UP] = planted[DOWN] = True
    np.testing.assert_array_equal(ordered["is_de_fdr_0.05"][planted], True)
    assert ordered["proba_de"][planted].min() > ordered["proba_de"][~planted].max()
    assert (np.diff(table["proba_de"]) <= 0).all()
    assert set(table["comparison"]) == {"a vs b"}
    pd.testing.assert_frame_equal(model.adata.obs, obs_before)
    assert dict(model.adata.uns) == uns_before


def test_random_halves_do_not_differ(trained):
    model, _ = trained
    table = model.differential_expression(groupby="half", group1=0, n_samples_overall=2000)
    assert not table["is_de_fdr_0.05"].any()
    assert np.abs(table["lfc_mean"]).max() < 0.25
    assert table["group1"].unique().tolist() == [0]
    assert table["group2"].unique().tolist() == ["Rest"]


def test_paired_draws_of_the_groups_are_independent(trained):
    model, _ = trained
    from pyrovi.model.differential import differential_expression  # the attached function itself

    assert model.differential_expression.__func__ is differential_expression
    alike = np.flatnonzero(model.adata.obs["group"] == "a")
    table = in_gene_order(
        model,
        model.differential_expression(idx1=alike[::2], idx2=alike[1::2], n_samples_overall=2000),
    )
    draws = [model.get_normalized_expression(indices=alike, n_samples_overall=2000, seed=s)
             for s in (1, 2)]  # fmt: skip
    independent = np.log2(draws[0]) - np.log2(draws[1])
    np.testing.assert_allclose(table["lfc_std"], independent.std(0), rtol=0.15)


def test_the_same_call_gives_the_same_table_and_batch_size_is_noise(trained):
    model, _ = trained
    options = {"groupby": "group", "group1": "a", "n_samples_overall": 2000}
    first = model.differential_expression(**options)
    pd.testing.assert_frame_equal(first, model.differential_expression(**options))
    other = model.differential_expression(**options, batch_size=37)
    gap = in_gene_order(model, first)["proba_de"] - in_gene_order(model, other)["proba_de"]
    assert 0 < np.abs(gap).max() < 0.08


def test_each_group_against_the_rest(trained):
    model, _ = trained
    table = model.differential_expression(groupby="group", n_samples_overall=500, silent=True)
    assert table["comparison"].unique().tolist() == ["a vs Rest", "b vs Rest"]
    first, second = (in_gene_order(model, table[table["group1"] == name]) for name in ("a", "b"))
    np.testing.assert_allclose(first["lfc_median"][:8], -second["lfc_median"][:8], atol=0.3)
    counts, group = model.adata.X, model.adata.obs["group"].to_numpy()
    np.testing.assert_allclose(first["raw_mean1"], counts[group == "a"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(first["raw_mean2"], counts[group == "b"].mean(0), rtol=1e-5)


def test_ways_to_name_the_same_cells_agree(trained):
    model, _ = trained
    mask = (model.adata.obs["group"] == "a").to_numpy()
    tables = [
        model.differential_expression(idx1=cells, n_samples_overall=100)
        for cells in (mask, np.flatnonzero(mask), "group == 'a'")
    ]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])


def test_vanilla_prefers_the_group_with_more(trained):
    model, _ = trained
    table = in_gene_order(
        model,
        model.differential_expression(
            groupby="group", group1="a", group2="b", mode="vanilla", all_stats=False
        ),
    )
    assert list(table) == [
        "proba_m1", "proba_m2", "bayes_factor", "scale1", "scale2",
        "comparison", "group1", "group2",
    ]  # fmt: skip
    assert (table["bayes_factor"].iloc[UP] > 2).all()
    assert (table["bayes_factor"].iloc[DOWN] < -2).all()


def test_batch_correction_takes_the_batch_effect_away(trained):
    model, _ = trained
    options = {"groupby": "batch", "group1": 1, "group2": 0, "n_samples_overall": 2000}
    raw = in_gene_order(model, model.differential_expression(**options))
    corrected = in_gene_order(
        model, model.differential_expression(**options, batch_correction=True)
    )
    assert raw["lfc_median"].iloc[10:15].min() > 1.0
    assert np.abs(corrected["lfc_median"].iloc[10:15]).max() < 0.3
    swapped = in_gene_order(
        model,
        model.differential_expression(**options, batch_correction=True, batchid1=[0], batchid2=[1]),
    )
    assert swapped["lfc_median"].iloc[10:15].max() < -1.0


def test_importance_weights_leave_a_good_fit_alone(trained):
    model, _ = trained
    options = {"groupby": "group", "group1": "a", "n_samples_overall": 1500}
    plain, weighted = (
        in_gene_order(model, model.differential_expression(**options, weights=w))
        for w in ("uniform", "importance")
    )
    np.testing.assert_allclose(plain["lfc_mean"], weighted["lfc_mean"], atol=0.25)
    assert not plain["lfc_mean"].equals(weighted["lfc_mean"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ModelError, "groupby"),
        ({"groupby": "typo"}, MissingKeyError, "no column of obs; columns: group, batch"),
        ({"groupby": "group", "group1": "c"}, MissingKeyError, "'c'.*groups are 'a', 'b'"),
        ({"groupby": "group", "group1": "a", "group2": "a"}, DataError, "two different groups"),
        ({"idx1": np.zeros(400, bool)}, DataError, "selects no observation"),
        ({"idx1": np.arange(400)}, DataError, "'rest' holds no cell"),
        ({"idx1": "half > 7"}, DataError, "'idx1' holds no cell"),
        ({"idx1": [1], "groupby": "group"}, ModelError, "either idx1"),
        ({"groupby": "group", "mode": "both"}, ModelError, "'change' or 'vanilla'"),
        ({"groupby": "group", "batchid1": [0]}, ModelError, "batch_correction=True"),
        (
            {"groupby": "group", "batch_correction": True, "batchid1": ["x"]},
            UnseenCategoryError,
            "'x' is no batch",
        ),
        ({"groupby": "group", "weights": "some"}, ModelError, "'uniform' or 'importance'"),
        ({"groupby": "group", "n_samples_overall": 0}, ModelError, "at least 1"),
    ],
)
def test_impossible_comparisons_are_refused(trained, options, error, message):
    with pytest.raises(error, match=message):
        trained[0].differential_expression(**options)
