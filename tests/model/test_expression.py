from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from scipy.stats import spearmanr
from tests.model.planted import planted_adata, planted_model

from pyrovi.errors import MissingKeyError, ModelError, UnseenCategoryError
from pyrovi.model.decoding import in_batch, spread_draws
from pyrovi.model.denoised import denoised_genes, denoised_samples


@pytest.fixture(scope="module")
def adata():
    return planted_adata(n=60)[0]


@pytest.fixture(scope="module")
def model(adata):
    return planted_model(adata, encode_covariates=True)


def test_expression_is_labelled_and_sums_to_the_library_size(model, adata):
    table = model.get_normalized_expression(indices=[5, 2], gene_list=["g3", "g0"])
    assert table.index.tolist() == ["cell5", "cell2"]
    assert table.columns.tolist() == ["g3", "g0"]
    full = model.get_normalized_expression(return_numpy=True)
    np.testing.assert_allclose(full.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(
        model.get_normalized_expression(library_size=1e4, return_numpy=True), full * np.float32(1e4)
    )
    latent = model.get_normalized_expression(library_size="latent", return_numpy=True)
    np.testing.assert_allclose(latent, full * adata.X.sum(1, keepdims=True), rtol=1e-4)


def test_mean_of_the_draws_is_the_mean(model):
    draws = model.get_normalized_expression(n_samples=7, return_mean=False)
    assert draws.shape == (7, 60, 30)
    assert draws.std(0).min() > 0
    mean = model.get_normalized_expression(n_samples=7)
    np.testing.assert_allclose(mean, draws.mean(0), rtol=1e-5)
    with pytest.warns(UserWarning, match="several draws"):
        model.get_normalized_expression(n_samples=2, return_mean=False, return_numpy=False)


def test_batch_size_is_noise_only(model):
    one, other = (
        model.get_normalized_expression(n_samples=1500, batch_size=b, return_numpy=True)
        for b in (60, 13)
    )
    assert 0 < np.abs(one / other - 1).max() < 0.15


def test_transform_batch_intervenes_on_the_decoder_only(model, adata):
    options = {"n_samples": 3, "return_mean": False}
    own = model.get_normalized_expression(**options)
    first, second = (model.get_normalized_expression(transform_batch=b, **options) for b in (0, 1))
    batch = adata.obs["batch"].to_numpy()
    # the latents do not move: cells already in that batch are unchanged
    np.testing.assert_array_equal(first[:, batch == 0], own[:, batch == 0])
    np.testing.assert_array_equal(second[:, batch == 1], own[:, batch == 1])
    assert np.abs(first[:, batch == 1] / own[:, batch == 1] - 1).max() > 0.01
    both = model.get_normalized_expression(transform_batch=[0, 1], **options)
    np.testing.assert_allclose(both, (first + second) / 2, rtol=1e-5)


def test_transform_batch_is_a_relabelled_minibatch(model):
    draws = model.sample_posterior("rho", num_samples=4, intervention=in_batch(1))
    np.testing.assert_array_equal(
        draws["rho"].values,
        model.get_normalized_expression(transform_batch=1, n_samples=4, return_mean=False),
    )


def test_relabelled_cells_agree_where_the_encoder_ignores_batches(adata):
    model = planted_model(adata, encode_covariates=False)
    moved = adata.copy()
    moved.obs["batch"] = 1 - moved.obs["batch"]
    own = model.get_normalized_expression(moved, transform_batch=0)
    np.testing.assert_array_equal(own, model.get_normalized_expression(transform_batch=0))


def test_a_decoder_that_ignores_batches_is_not_moved(adata):
    model = planted_model(adata, batch_representation="embedding")
    table = model.get_normalized_expression(transform_batch=0)
    other = model.get_normalized_expression(transform_batch=1)
    assert not table.equals(other)
    with torch.no_grad():
        model.module.batch_embedding.trainable[1] = model.module.batch_embedding.trainable[0]
    pd.testing.assert_frame_equal(
        model.get_normalized_expression(transform_batch=0),
        model.get_normalized_expression(transform_batch=1),
    )


def test_overall_draws_are_spread_evenly():
    rng = np.random.default_rng(0)
    rows = spread_draws(np.array([4, 7, 9]), 8, rng)
    counts = np.unique_counts(rows)
    assert counts.values.tolist() == [4, 7, 9]
    assert sorted(counts.counts.tolist()) == [2, 3, 3]
    assert rows.tolist() != sorted(rows)


def test_overall_draws_have_the_mean_of_the_cells(model):
    overall = model.get_normalized_expression(indices=[1, 2], n_samples_overall=4000)
    each = model.get_normalized_expression(indices=[1, 2], n_samples=2000)
    assert overall.shape == (4000, 30)
    np.testing.assert_allclose(overall.mean(0), each.to_numpy().mean(0), rtol=0.05)


def test_importance_draws_fit_the_counts_better(model):
    # an untrained guide is far from the posterior, so the weights have work to do
    plain, weighted = (
        model.get_normalized_expression(n_samples=20, weights=w, return_mean=False)
        for w in ("uniform", "importance")
    )
    counts = np.asarray(model.adata.X)
    fits = [float((counts * np.log(draws)).sum(-1).mean()) for draws in (plain, weighted)]
    assert fits[1] > fits[0] + 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"transform_batch": "b9"}, UnseenCategoryError, "Registered batches: 0, 1"),
        ({"transform_batch": []}, ModelError, "transform_batch is empty"),
        ({"gene_list": ["g1", "nope"]}, MissingKeyError, "nope"),
        ({"gene_list": []}, ModelError, "gene_list is empty"),
        ({"library_size": "observed"}, ModelError, "'latent' or a positive number"),
        ({"library_size": -1}, ModelError, "'latent' or a positive number"),
        ({"n_samples": 0}, ModelError, "at least 1"),
        ({"n_samples": 2, "n_samples_overall": 2}, ModelError, "either n_samples"),
        ({"weights": "equal"}, ModelError, "'uniform' or 'importance'"),
    ],
)
def test_meaningless_options_are_refused(model, options, error, message):
    with pytest.raises(error, match=message):
        model.get_normalized_expression(**options)


@pytest.mark.parametrize(
    ("likelihood", "names"),
    [
        ("zinb", {"mean", "dispersions", "dropout"}),
        ("nb", {"mean", "dispersions"}),
        ("poisson", {"mean"}),
        ("normal", {"mean", "scale"}),
    ],
)
def test_likelihood_parameters(adata, likelihood, names):
    model = planted_model(adata, gene_likelihood=likelihood)
    got = model.get_likelihood_parameters(n_samples=3, give_mean=True)
    assert set(got) == names
    assert {value.shape for value in got.values()} == {(60, 30)}
    draws = model.get_likelihood_parameters(n_samples=3)
    np.testing.assert_allclose(draws["mean"].mean(0), got["mean"], rtol=1e-5)
    latent = model.get_normalized_expression(library_size="latent", n_samples=3)
    np.testing.assert_allclose(got["mean"], latent, rtol=1e-5)
    if "dispersions" in names:
        theta = model.module.log_theta.exp().detach().numpy()
        np.testing.assert_allclose(got["dispersions"][4], theta, rtol=1e-5)
    if "dropout" in names:
        assert 0 < got["dropout"].min() < got["dropout"].max() < 1


def test_library_size_is_the_total_or_a_log_normal_mean(model, adata):
    totals = adata.X.sum(1, keepdims=True)
    np.testing.assert_allclose(model.get_latent_library_size(), totals, rtol=1e-4)
    latent = planted_model(adata, use_observed_lib_size=False)
    draws = np.exp(latent.sample_posterior("l", num_samples=4000)["l"].values)
    expected = latent.get_latent_library_size()
    assert expected.shape == (60, 1)
    error = draws.std(0) / np.sqrt(4000)
    assert (np.abs(draws.mean(0) - expected) < 6 * error).all()
    one = latent.get_latent_library_size(give_mean=False)
    assert not np.allclose(one, expected)


def test_predictive_counts_are_a_layer_or_an_array(model):
    one = model.posterior_predictive_sample(gene_list=["g2", "g1"])
    assert sparse.issparse(one)
    assert one.shape == (60, 2)
    several = model.posterior_predictive_sample(n_samples=400, indices=[3, 1])
    assert several.shape == (2, 30, 400)
    assert (several == several.round()).all()
    assert several.min() >= 0
    mean = model.get_likelihood_parameters(indices=[3, 1], n_samples=400, give_mean=True)["mean"]
    error = several.std(-1) / np.sqrt(400)
    assert (np.abs(several.mean(-1) - mean) < 6 * error).all()


@pytest.mark.parametrize("correlation_type", ["pearson", "spearman"])
def test_correlations_are_those_of_the_denoised_draws(model, correlation_type):
    table = model.get_feature_correlation_matrix(n_samples=4, correlation_type=correlation_type)
    draws = denoised_samples(
        model, lambda nodes: denoised_genes(nodes, 1000, np.arange(30)), model.manager_of(None),
        np.arange(60), batch=None, n_samples=4,
    )  # fmt: skip
    assert draws.shape == (240, 30)
    exact = np.corrcoef(draws.T) if correlation_type == "pearson" else spearmanr(draws)[0]
    np.testing.assert_allclose(table, exact, atol=1e-5)
    assert table.index.tolist() == table.columns.tolist() == list(model.var_names)


def test_correlations_average_over_batches(model):
    options = {"n_samples": 2, "correlation_type": "pearson", "gene_list": ["g1", "g2", "g9"]}
    first, second, both = (
        model.get_feature_correlation_matrix(transform_batch=b, **options) for b in (0, 1, [0, 1])
    )
    np.testing.assert_allclose(both, (first + second) / 2)
    with pytest.raises(ModelError, match="'spearman' or 'pearson', got 'kendall'"):
        model.get_feature_correlation_matrix(correlation_type="kendall")


def test_batch_representation_is_the_vector_of_the_batch(adata, model):
    embedded = planted_model(adata, batch_representation="embedding")
    got = embedded.get_batch_representation(indices=[7, 3])
    weight = embedded.module.batch_embedding.weight.detach().numpy()
    np.testing.assert_array_equal(got, weight[adata.obs["batch"].to_numpy()[[7, 3]]])
    with pytest.raises(ModelError, match="batch_representation='embedding'"):
        model.get_batch_representation()


def test_queries_leave_the_random_state_and_the_data_alone(model, adata):
    state, before = torch.get_rng_state(), adata.X.copy()
    model.get_normalized_expression(n_samples=2, weights="importance")
    model.get_feature_correlation_matrix(n_samples=2)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(adata.X, before)
