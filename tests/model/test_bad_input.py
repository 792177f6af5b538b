"""Bad input: a typed error that names the value and the fix, with nothing written or lost.

Saved models that are truncated, foreign, newer or malicious, and full disks, are in
``test_persistence.py``; fields that were not registered in ``test_setup.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pytest
from scipy import sparse
from tests.model.samples import (
    QUICK,
    SETUP,
    assert_unchanged,
    make_data,
    make_model,
    same_state,
    snapshot,
    state,
)

from pyrovi.errors import (
    DataError,
    MissingKeyError,
    ModelError,
    NotSetUpError,
    PyroviError,
    RegistryError,
    TrainingError,
    UnseenCategoryError,
)
from pyrovi.model import SCVI


def put(value: float) -> Callable[[anndata.AnnData], None]:
    def change(adata: anndata.AnnData) -> None:
        adata.X[4, 7] = value

    return change


def empty_cells(adata: anndata.AnnData) -> None:
    adata.X[3:5] = 0


def duplicate(names: str) -> Callable[[anndata.AnnData], None]:
    def change(adata: anndata.AnnData) -> None:
        setattr(adata, names, ["twice", "twice", *getattr(adata, names)[2:]])

    return change


def drop(key: str) -> Callable[[anndata.AnnData], None]:
    def change(adata: anndata.AnnData) -> None:
        del adata.obs[key]

    return change


def put_obs(key: str, value: Any) -> Callable[[anndata.AnnData], None]:
    def change(adata: anndata.AnnData) -> None:
        adata.obs[key] = adata.obs[key].astype(object)
        adata.obs.loc[adata.obs_names[2], key] = value
        if key in ("age", "size"):
            adata.obs[key] = adata.obs[key].astype(float)

    return change


CASES: dict[str, tuple[Callable[[anndata.AnnData], None], type[PyroviError], str]] = {
    "negative": (
        put(-1.0),
        DataError,
        r"adata\.X holds -1\.0 in row 4 \('4'\), column 7.*`layer=`",
    ),
    "fractional": (put(0.5), DataError, r"adata\.X holds 0\.5 in row 4.*`layer=`"),
    "nan": (put(np.nan), DataError, r"adata\.X holds nan in row 4.*`layer=`"),
    "inf": (put(np.inf), DataError, r"adata\.X holds inf in row 4.*`layer=`"),
    "empty cells": (empty_cells, DataError, r"2 observations without a single count.*filter_cells"),
    "cell names": (duplicate("obs_names"), DataError, r"'twice'.*obs_names_make_unique"),
    "gene names": (duplicate("var_names"), DataError, r"'twice'.*var_names_make_unique"),
    "missing key": (drop("batch"), MissingKeyError, r"'batch' not found in adata\.obs"),
    "missing covariate": (drop("age"), MissingKeyError, r"'age' not found in adata\.obs"),
    "no batch": (put_obs("batch", np.nan), DataError, r"missing values \(NaN\), the first for '2'"),
    "no age": (put_obs("age", np.nan), DataError, r"missing \(NaN\).*the first for '2'.*impute"),
    "zero size": (put_obs("size", 0.0), DataError, r"not positive, the first for '2' \(0\.0\)"),
}


def setup(adata: anndata.AnnData) -> None:
    SCVI.setup_anndata(adata, size_factor_key="size", **SETUP)


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("sparse_format", [None, sparse.csr_matrix, sparse.csc_array])
def test_at_setup(case: str, sparse_format: Any) -> None:
    change, error, message = CASES[case]
    adata = make_data()
    change(adata)
    if sparse_format is not None:
        adata.X = sparse_format(adata.X)
    before = snapshot(adata)
    with pytest.raises(error, match=message):
        setup(adata)
    assert_unchanged(adata, before)
    with pytest.raises(NotSetUpError, match=r"SCVI\.setup_anndata"):
        SCVI(adata)


@pytest.fixture(scope="module")
def model() -> SCVI:
    adata = make_data()
    setup(adata)
    model = SCVI(adata, n_hidden=4, n_latent=2)
    model.train(1, **QUICK)
    return model


def new_batch(adata: anndata.AnnData) -> None:
    adata.obs["batch"] = "tuesday"


def new_donor(adata: anndata.AnnData) -> None:
    adata.obs["donor"] = "d7"


def reverse(adata: anndata.AnnData) -> None:
    adata._inplace_subset_var(adata.var_names[::-1])


def missing_gene(adata: anndata.AnnData) -> None:
    adata._inplace_subset_var(adata.var_names[1:])


def rename(adata: anndata.AnnData) -> None:
    adata.var_names = ["other", *adata.var_names[1:]]


QUERY_CASES = {
    **CASES,
    "unseen batch": (
        new_batch, UnseenCategoryError, r"\['batch'\].*'tuesday'.*extend_categories=True",
    ),
    "unseen donor": (new_donor, UnseenCategoryError, r"\['donor'\].*'d7'.*'d0'"),
    "order": (reverse, RegistryError, r"another order: position 0.*\[:, model\.var_names\]"),
    "missing gene": (missing_gene, RegistryError, r"missing 1: 'gene_0'.*prepare_query_anndata"),
    "renamed gene": (rename, RegistryError, r"missing 1: 'gene_0'; extra 1: 'other'"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(QUERY_CASES))
def test_at_query(case: str, model: SCVI) -> None:
    change, error, message = QUERY_CASES[case]
    adata = make_data(seed=2)
    change(adata)
    data, query, parameters = snapshot(model.adata), snapshot(adata), state(model)
    for ask in (
        model.get_latent_representation,
        model.get_elbo,
        lambda a: model.posterior_predictive(adata=a, num_samples=1),
        lambda a: model.to_arviz(adata=a, num_samples=1),
    ):
        with pytest.raises(error, match=message):
            ask(adata)
    assert_unchanged(adata, query)
    assert_unchanged(model.adata, data)
    assert same_state(state(model), parameters)


def test_empty_genes_are_a_warning() -> None:
    adata = make_data()
    adata.X[:, 5] = 0
    with pytest.warns(UserWarning, match=r"1 variables without a single count: 'gene_5'"):
        SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=4)
    model.train(2, **QUICK)
    assert np.isfinite(model.get_elbo())
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
@pytest.mark.parametrize("use_observed_lib_size", [True, False])
def test_a_category_with_one_cell(dispersion: Any, use_observed_lib_size: bool) -> None:
    adata = make_data()
    adata.obs["batch"] = ["alone"] + ["together"] * (adata.n_obs - 1)
    with pytest.warns(UserWarning, match=r"fewer than 3 rows: 'alone'"):
        SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(
        adata, n_hidden=4, dispersion=dispersion, use_observed_lib_size=use_observed_lib_size
    )
    model.train(2, batch_size=8, **QUICK)
    assert np.isfinite(model.get_elbo())
    assert model.get_latent_representation(indices=[0]).shape == (1, 10)


def test_a_batch_of_one_cell() -> None:
    """Minibatches of one cell in queries; the last one of a training epoch may have one cell."""
    adata = make_data(batch_size=9)  # 18
    SCVI.setup_anndata(adata, **SETUP)
    for batch_size in (2, 17):
        model = SCVI(adata, n_hidden=4, n_latent=2)
        model.train(2, batch_size=batch_size, train_size=1.0, **QUICK)
        assert np.isfinite(model.history["elbo_train"].to_numpy()).all()
        whole = model.get_latent_representation()
        np.testing.assert_allclose(
            model.get_latent_representation(batch_size=1), whole, rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            model.get_latent_representation(indices=[3]), whole[[3]], rtol=1e-4, atol=1e-6
        )


def test_one_cell_in_all() -> None:
    adata = make_data()[:1].copy()
    with pytest.warns(UserWarning, match="fewer than 3 rows"):
        SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=4)
    with pytest.raises(TrainingError, match="1 training observations"):
        model.train(1, train_size=1.0, **QUICK)
    assert np.isfinite(model.get_latent_representation()).all()


def test_never_set_up(model: SCVI) -> None:
    adata = make_data()
    before = snapshot(adata)
    with pytest.raises(NotSetUpError, match=r"it was not set up\. Run `SCVI\.setup_anndata"):
        SCVI(adata)
    with pytest.raises(NotSetUpError, match=r"needs data: pass an AnnData"):
        SCVI(None)
    for other in (3, "file.h5ad", np.eye(3)):
        with pytest.raises(NotSetUpError, match=rf"This {type(other).__name__} cannot be used"):
            SCVI(other)
    assert_unchanged(adata, before)
    model.get_latent_representation(adata)  # queries need no setup
    assert_unchanged(adata, before)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "selects no observation"),
        ([0, 60], r"position 60, expected positions from 0 to 59"),
        ([-1], "position -1"),
        ([0.5], "integer positions"),
        (np.ones(5, bool), r"mask of length 5.*60 observations"),
        (["0"], "get_indexer"),
        ([[1, 2]], "one-dimensional"),
    ],
)
def test_indices(model: SCVI, indices: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        model.get_latent_representation(indices=indices)


def test_questions_about_sites(model: SCVI) -> None:
    with pytest.raises(ModelError, match=r"'none'"):
        model.sample_posterior("none")
    with pytest.raises(ModelError, match=r"'X' is observed.*posterior_predictive"):
        model.sample_posterior("X")
    with pytest.raises(ModelError, match=r"'z' is not observed"):
        model.log_likelihood("z")
    with pytest.raises(ModelError, match=r"num_samples must be at least 1, got 0"):
        model.sample_posterior(num_samples=0)
    with pytest.raises(ModelError, match=r"reduce='mean'"):
        model.sample_posterior("mu", num_samples=2**27)
    with pytest.raises(ModelError, match=r"Unknown group 'future'; groups are: posterior"):
        model.to_arviz(groups=["future"])


def test_unknown_options() -> None:
    adata = make_data()
    SCVI.setup_anndata(adata)
    with pytest.raises(ModelError, match=r"dispersion must be one of 'gene'.*got 'cell'"):
        SCVI(adata, dispersion="cell")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="n_latents"):
        SCVI(adata, n_latents=3)


def test_failed_training_loses_nothing(model: SCVI) -> None:
    parameters, history = state(model), {k: len(v) for k, v in model.history.items()}
    for options in ({"max_epochs": 0}, {"early_stopping": True, "train_size": 1.0}):
        with pytest.raises(TrainingError):
            model.train(**{"max_epochs": 1, **options}, **QUICK)
    assert same_state(state(model), parameters)
    assert {k: len(v) for k, v in model.history.items()} == history
    assert make_model(epochs=0).is_trained is False


def test_counts_overwritten_after_the_setup() -> None:
    adata = make_data()
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_hidden=4, n_latent=2)
    adata.X = np.log1p(np.asarray(adata.X))
    with pytest.raises(DataError, match="raw counts"):
        model.train(max_epochs=1)
    assert not model.is_trained


def test_minibatches_of_one_cell() -> None:
    adata = make_data()
    SCVI.setup_anndata(adata)
    with pytest.raises(TrainingError, match=r"batch_size=1.*at least 2"):
        SCVI(adata, n_hidden=4, n_latent=2).train(max_epochs=1, batch_size=1)
    without = SCVI(adata, n_hidden=4, n_latent=2, use_batch_norm="none")
    without.train(max_epochs=1, batch_size=1)
    assert without.is_trained


def test_unknown_plan_arguments() -> None:
    adata = make_data()
    SCVI.setup_anndata(adata)
    with pytest.raises(TrainingError, match=r"'optimizer'.*`optim`.*n_epochs_kl_warmup"):
        SCVI(adata, n_hidden=4).train(max_epochs=1, plan_kwargs={"optimizer": "AdamW"})


def test_normalised_values_need_the_normal_likelihood() -> None:
    adata = make_data()
    adata.X = np.log1p(np.asarray(adata.X))
    SCVI.setup_anndata(adata, is_count_data=False)
    with pytest.raises(ModelError, match=r"gene_likelihood='zinb' is for counts"):
        SCVI(adata)
    model = SCVI(adata, gene_likelihood="normal", n_hidden=4, n_latent=2)
    model.train(max_epochs=2)
    assert np.isfinite(model.history["elbo_train"].to_numpy()).all()
    assert not model.module.log_variational


def test_arguments_that_cannot_be_saved_are_told_before_training() -> None:
    class Odd(SCVI):
        def __init__(self, adata: Any, activation: Any = None) -> None:
            super().__init__(adata, n_hidden=4, n_latent=2)

    adata = make_data()
    Odd.setup_anndata(adata)
    with pytest.warns(UserWarning, match=r"Odd cannot be saved: argument 'activation'"):
        Odd(adata, activation=object())
