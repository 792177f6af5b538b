"""Minified data: the same answers without the counts, and no answer that would need them."""

import numpy as np
import pandas as pd
import pytest
from tests.train.toys import QUIET, counts

from pyrovi import criticism
from pyrovi.errors import DataError, ModelError
from pyrovi.model import SCANVI, SCVI, TOTALVI


def trained(**kwargs):
    adata = counts()
    SCVI.setup_anndata(adata, batch_key="batch", labels_key="labels")
    model = SCVI(adata, n_hidden=8, n_latent=2, **kwargs)
    model.train(3, **QUIET)
    return model


def answers(model, **where):
    """Everything that a user would ask for, as arrays."""
    groups = {"groupby": "labels", "group1": "label_0", "pseudocounts": 1e-3}
    return [
        model.get_latent_representation(**where),
        *model.get_latent_representation(return_dist=True, **where),
        model.get_normalized_expression(library_size="latent", n_samples=2, **where),
        model.get_normalized_expression(transform_batch="batch_1", **where),
        model.get_latent_library_size(**where),
        model.posterior_predictive("X", num_samples=3, **where)["X"].values,
        model.differential_expression(
            **groups, n_samples_overall=50, all_stats=False, silent=True
        ).select_dtypes("number"),
    ]


@pytest.mark.parametrize("observed", [True, False])
def test_queries_answer_as_before(observed, tmp_path):
    model = trained(use_observed_lib_size=observed)
    full, before = model.adata, answers(model)
    copy = full.copy()
    model.minify_adata()
    assert model.adata is not full
    assert model.adata.X.nnz == 0
    assert set(full.obsm) == set(copy.obsm)
    assert (full.X != copy.X).sum() == 0
    model.save(tmp_path / "small", save_anndata=True)
    loaded = SCVI.load(tmp_path / "small")
    assert loaded.adata.X.nnz == 0
    for one in (model, loaded):
        for now, then in zip(answers(one), before, strict=True):
            np.testing.assert_allclose(np.asarray(now), np.asarray(then), rtol=1e-4, atol=1e-6)
    # observations with counts are still encoded
    np.testing.assert_array_equal(model.get_latent_representation(full), before[0])
    some = model.adata[5:9].copy()
    np.testing.assert_allclose(model.get_latent_representation(some), before[0][5:9], rtol=1e-5)


@pytest.mark.parametrize("kind", [SCANVI, TOTALVI])
def test_other_models_answer_as_before(kind):
    adata = counts()
    if kind is SCANVI:
        kind.setup_anndata(adata, "labels", "label_0", batch_key="batch")
    else:
        kind.setup_anndata(adata, "protein_expression", batch_key="batch")
    model = kind(adata, n_hidden=8, n_latent=2)
    model.train(1, **QUIET)

    def ask():
        expression = model.get_normalized_expression(transform_batch="batch_1", n_samples=2)
        parts = expression if isinstance(expression, tuple) else (expression,)
        answers = [model.get_latent_representation(), *map(np.asarray, parts)]
        return answers + ([model.predict(soft=True, num_samples=3)] if kind is SCANVI else [])

    before = ask()
    model.minify_adata()
    for now, then in zip(ask(), before, strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-4, atol=1e-6)
    with pytest.raises(DataError, match="needs the counts"):
        model.get_elbo()


def test_what_needs_counts_says_so():
    model = trained()
    full = model.adata
    elbo = model.get_elbo(seed=1)
    model.minify_adata()
    refused = {
        "density of 'X'": [
            model.get_elbo,
            model.get_marginal_ll,
            model.get_reconstruction_error,
            model.log_likelihood,
            lambda: model.get_normalized_expression(weights="importance"),
        ],
        "Training": [lambda: model.train(1, **QUIET)],
        "compar": [lambda: criticism.posterior_predictive_checks(model, num_samples=2)],
        "been observed": [lambda: model.to_arviz(num_samples=2)],
        "Means of counts": [lambda: model.differential_expression(groupby="labels", silent=True)],
        "A new setup": [lambda: SCVI.setup_anndata(model.adata)],
    }
    for message, calls in refused.items():
        for call in calls:
            with pytest.raises(DataError, match=message):
                call()
    assert model.get_elbo(full, seed=1) == pytest.approx(elbo)


def test_what_cannot_be_minified():
    adata = counts()
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_hidden=8)
    with pytest.raises(ModelError, match="Train it first"):
        model.minify_adata()
    model.train(1, **QUIET)
    model.minify_adata()
    with pytest.raises(DataError, match="minified already"):
        model.minify_adata()


def test_a_minified_reference_takes_a_query():
    model = trained()
    before = model.get_latent_representation()
    query = model.adata[:30].copy()
    query.obs["batch"] = pd.Categorical(["new"] * 30)
    model.minify_adata()
    mapped = SCVI.load_query_data(query, model)
    mapped.train(1, **QUIET)
    assert (
        "new"
        in mapped.registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"]
    )
    np.testing.assert_allclose(mapped.get_latent_representation(query), before[:30], atol=1e-4)
