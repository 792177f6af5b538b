"""Query mapping: what must stay stays bitwise, what is new is trained, and only that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
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

from pyrovi.data import StoredMatrix, open_store
from pyrovi.errors import DataError, ModelError, RegistryError, TrainingError
from pyrovi.model import SCVI

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "encode covariates": {"encode_covariates": True, "dispersion": "gene-batch"},
    "embedding": {"batch_representation": "embedding", "encode_covariates": True},
    "latent library": {"use_observed_lib_size": False, "n_layers": 2},
    "shallow": {"deeply_inject_covariates": False, "n_layers": 2, "dispersion": "gene-label"},
}


@pytest.fixture(params=list(OPTIONS))
def reference(request: pytest.FixtureRequest) -> SCVI:
    return make_model(**OPTIONS[request.param])


def query_data(new: bool = True) -> anndata.AnnData:
    adata = make_data(batch_size=15, seed=5)
    if new:
        adata.obs["batch"] = ["batch_1"] * 10 + ["new"] * 20
        adata.obs["donor"] = ["d1", "d9"] * 15
        adata.obs["labels"] = ["label_0"] * 25 + ["label_new"] * 5
    return adata


def whole(module: torch.nn.Module, name: str) -> torch.Tensor:
    """A weight by its name, frozen and trainable parts together."""
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path), leaf).detach().clone()


# ---------------------------------------------------------------------- what does not change


def test_without_new_categories_the_query_model_is_the_reference(reference: SCVI) -> None:
    adata = query_data(new=False)
    before = snapshot(adata)
    query = SCVI.load_query_data(adata, reference)
    np.testing.assert_array_equal(
        query.get_latent_representation(), reference.get_latent_representation(adata)
    )
    options = {"num_samples": 3, "sites": ["mu", "rho"]}
    ours, theirs = (
        query.sample_posterior(**options),
        reference.sample_posterior(adata=adata, **options),
    )
    np.testing.assert_array_equal(ours["mu"], theirs["mu"])
    assert_unchanged(adata, before)
    assert dict(query.summary_stats) == {**reference.summary_stats, "n_obs": 30, "n_cells": 30}


def test_known_cells_are_decoded_as_before_next_to_new_categories(reference: SCVI) -> None:
    """Widening alone changes nothing for observations whose categories are known."""
    adata = query_data()
    query = SCVI.load_query_data(adata, reference)
    known = np.flatnonzero((adata.obs["batch"] != "new") & (adata.obs["donor"] != "d9"))
    assert len(known) == 5
    options = {"num_samples": 2, "sites": "mu", "indices": np.arange(5)}
    part = adata[known].copy()
    ours = query.sample_posterior(adata=part, **options)["mu"].values
    np.testing.assert_allclose(
        ours, reference.sample_posterior(adata=part, **options)["mu"].values, rtol=1e-5
    )
    np.testing.assert_array_equal(
        query.get_latent_representation(part), reference.get_latent_representation(part)
    )


def test_the_reference_is_left_alone(reference: SCVI) -> None:
    before, registry = state(reference), reference.registry
    query = SCVI.load_query_data(query_data(), reference)
    query.train(1, **QUICK)
    assert same_state(state(reference), before)
    assert reference.registry == registry
    assert all(p.requires_grad for p in reference.module.parameters())


@pytest.mark.parametrize(
    ("optim", "weight_decay"),
    [
        (torch.optim.Adam, 0.0),
        (torch.optim.Adam, 0.5),
        (torch.optim.AdamW, 0.5),
        (torch.optim.SGD, 0.5),
    ],
)
def test_training_moves_the_new_columns_only(optim: Any, weight_decay: float) -> None:
    """Bitwise, whatever the optimiser's weight decay."""
    reference = make_model(encode_covariates=True, dispersion="gene-batch", n_layers=2)
    query = SCVI.load_query_data(query_data(), reference, freeze_batchnorm_decoder=True)
    names = [name for name, _ in reference.module.named_parameters()]
    start = {name: whole(query.module, name) for name in names}
    fixed = state(query)
    arguments = {"optim": optim, "weight_decay": weight_decay, "lr": 0.05}
    if optim is torch.optim.SGD:
        arguments = {
            "optim": lambda p, lr, eps, weight_decay: torch.optim.SGD(
                p, lr, momentum=0.9, weight_decay=weight_decay
            ),
            "weight_decay": weight_decay,
            "lr": 1e-4,
        }
    query.train(2, batch_size=8, plan_kwargs=arguments, **QUICK)
    n_columns = {}
    for name in names:
        now = whole(query.module, name)
        old = reference.module.get_parameter(name).detach()
        moved = (now != start[name]).reshape(len(now), -1).any(0)
        if now.shape == old.shape:
            assert not moved.any(), name
            assert torch.equal(now, old), name
            continue
        n_columns[name] = int(moved.sum())
        if "log_theta" in name:
            assert moved.tolist() == [False, False, True]
            assert torch.equal(now[:, :2], old)
        else:  # the last of features, 3 batches, 3 donors, age
            n_in = now.shape[1] - 7
            assert moved.tolist() == [False] * (n_in + 2) + [True] + [False] * 2 + [True, False]
            kept = [*range(n_in + 2), *range(n_in + 3, n_in + 5), n_in + 6]
            assert torch.equal(now[:, kept], old), name
    assert len(n_columns) == 5  # two layers each of encoder and decoder, and the dispersion
    for name, value in state(query).items():
        if not name.endswith("original"):
            np.testing.assert_array_equal(value, fixed[name], err_msg=name)


def test_latent_space_of_known_cells_stays_through_training(reference: SCVI) -> None:
    known = make_data(batch_size=10, seed=9)
    before = reference.get_latent_representation(known)
    query = SCVI.load_query_data(query_data(), reference)
    query.train(2, lr=0.05, **QUICK)
    np.testing.assert_array_equal(query.get_latent_representation(known), before)


def test_embedding_vectors() -> None:
    reference = make_model(batch_representation="embedding")
    old = reference.module.batch_embedding.weight.detach().clone()
    query = SCVI.load_query_data(query_data(), reference)
    start = query.module.batch_embedding.weight.detach().clone()
    assert torch.equal(start[:2], old)
    query.train(2, lr=0.05, plan_kwargs={"weight_decay": 0.5}, **QUICK)
    now = query.module.batch_embedding.weight.detach()
    assert torch.equal(now[:2], old)
    assert (now[2] != start[2]).all()


def test_library_prior_of_a_new_batch_is_that_of_the_query() -> None:
    reference = make_model(use_observed_lib_size=False)
    adata = query_data()
    query = SCVI.load_query_data(adata, reference)
    totals = np.log(adata.X.sum(1))[10:]
    means = query.module.library_log_means.numpy()
    np.testing.assert_array_equal(means[:2], reference.module.library_log_means.numpy())
    np.testing.assert_allclose(means[2], totals.mean(), rtol=1e-5)
    np.testing.assert_allclose(query.module.library_log_vars.numpy()[2], totals.var(), rtol=1e-4)


def test_a_reference_with_one_batch() -> None:
    """A single category has no column; it keeps its zero effect when a second one comes."""
    adata = make_data(n_batches=1)
    reference = make_model(adata)
    query_adata = make_data(batch_size=10, seed=4)
    query = SCVI.load_query_data(query_adata, reference)
    assert query.summary_stats.n_batch == 2
    linear = query.module.decoder.layers.layers[0].linear
    assert torch.equal(linear.weight[:, 3], torch.zeros(8))
    first = query_adata[query_adata.obs["batch"] == "batch_0"].copy()
    options = {"adata": first, "sites": "mu", "num_samples": 2}
    before = reference.sample_posterior(**options)["mu"].values
    np.testing.assert_allclose(query.sample_posterior(**options)["mu"].values, before, rtol=1e-5)
    query.train(1, lr=0.05, **QUICK)
    assert torch.equal(linear.weight[:, 3], torch.zeros(8))
    assert linear.weight[:, 4].abs().sum() > 0


# ---------------------------------------------------------------------- options


def trained(query: SCVI) -> set[str]:
    """Names of what moved in a round of training (running statistics included)."""
    before = state(query)
    query.train(2, lr=0.05, **QUICK)
    after = state(query)
    return {k for k in before if not np.array_equal(before[k], after[k])}


@pytest.mark.slow
def test_freezing_options() -> None:
    reference = make_model(encode_covariates=True, n_layers=2)
    first = "layers.layers.0.linear"
    columns = f"{first}.parametrizations.weight.original"

    def what(**options: Any) -> set[str]:
        return trained(SCVI.load_query_data(query_data(), reference, **options))

    default = what()
    assert f"encoder.{columns}" in default
    assert f"decoder.{columns}" in default
    assert not [name for name in default if "encoder" in name and "batch_norm" in name]
    assert "decoder.layers.layers.1.batch_norm.running_mean" in default
    assert not [name for name in default if "head" in name or name.endswith("bias_linear")]

    frozen_norms = what(freeze_batchnorm_decoder=True)
    assert frozen_norms == {name for name in default if "batch_norm" not in name}

    norms = what(freeze_batchnorm_encoder=False)
    assert {n for n in norms - default if "encoder" in n and "batch_norm" in n}
    assert not {n for n in norms - default if "batch_norm" not in n}

    expression = what(freeze_expression=False)
    assert {f"encoder.{first}.weight", f"encoder.{first}.bias"} <= expression
    assert f"decoder.{columns}" in expression

    decoder = what(freeze_decoder_first_layer=False)
    assert {f"decoder.{first}.weight", f"decoder.{first}.bias"} <= decoder
    assert f"encoder.{columns}" in decoder

    everything = what(unfrozen=True)
    assert everything == set(state(reference))


def test_freeze_dropout() -> None:
    reference = make_model(dropout_rate=0.5)
    rates = [
        [m.p for m in q.module.modules() if isinstance(m, torch.nn.Dropout)]
        for q in (
            SCVI.load_query_data(query_data(), reference),
            SCVI.load_query_data(query_data(), reference, freeze_dropout=True),
        )
    ]
    assert rates == [[0.5], [0.0]]


def test_nothing_to_train() -> None:
    query = SCVI.load_query_data(query_data(new=False), make_model(), freeze_batchnorm_decoder=True)
    with pytest.raises(TrainingError, match="nothing to train"):
        query.train(1, **QUICK)


# ---------------------------------------------------------------------- saving, chains, paths


def test_query_models_are_saved_with_what_is_frozen(reference: SCVI, tmp_path: Path) -> None:
    adata = query_data()
    query = SCVI.load_query_data(adata, reference, freeze_dropout=True)
    query.train(1, **QUICK)
    query.save(tmp_path / "query")
    loaded = SCVI.load(tmp_path / "query", adata)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), query.get_latent_representation()
    )
    names = {n for n, p in query.module.named_parameters() if p.requires_grad}
    assert {n for n, p in loaded.module.named_parameters() if p.requires_grad} == names
    assert same_state(state(loaded), state(query))
    moved = trained(loaded)
    assert names <= moved
    assert not [m for m in moved - names if "running" not in m and "tracked" not in m]
    assert not any(m.p for m in loaded.module.modules() if isinstance(m, torch.nn.Dropout))


def test_a_reference_from_a_folder(reference: SCVI, tmp_path: Path) -> None:
    reference.save(tmp_path / "reference", save_anndata=True)
    adata = query_data()
    one = SCVI.load_query_data(adata, reference)
    two = SCVI.load_query_data(adata, str(tmp_path / "reference"))
    assert same_state(state(one), state(two))
    assert two.adata is adata


def test_a_query_of_a_query(reference: SCVI) -> None:
    known = make_data(batch_size=10, seed=9)
    before = reference.get_latent_representation(known)
    first = SCVI.load_query_data(query_data(), reference)
    first.train(1, **QUICK)
    adata = query_data()
    adata.obs["batch"] = "newer"
    second = SCVI.load_query_data(adata, first)
    assert list(
        second.registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"]
    ) == ["batch_0", "batch_1", "new", "newer"]
    data = query_data()
    np.testing.assert_array_equal(
        second.get_latent_representation(data), first.get_latent_representation(data)
    )
    second.train(1, lr=0.05, **QUICK)
    np.testing.assert_array_equal(
        second.get_latent_representation(data), first.get_latent_representation(data)
    )
    np.testing.assert_array_equal(second.get_latent_representation(known), before)


def test_same_seed_same_surgery(reference: SCVI) -> None:
    adata = query_data()
    torch.rand(3)
    one = state(SCVI.load_query_data(adata, reference))
    torch.rand(5)
    assert same_state(one, state(SCVI.load_query_data(adata, reference)))


def test_a_reference_of_another_class() -> None:
    class Other(SCVI):
        pass

    with pytest.raises(ModelError, match=r"is a SCVI, not a Other.*SCVI\.load_query_data"):
        Other.load_query_data(query_data(), make_model(epochs=0))


# ---------------------------------------------------------------------- preparing the variables


@pytest.fixture
def plain() -> SCVI:
    return make_model(epochs=0)


@pytest.mark.parametrize("sparse_format", [None, "csr_matrix", "csc_matrix", "csr_array"])
@pytest.mark.parametrize("inplace", [True, False])
def test_order_is_restored(plain: SCVI, inplace: bool, sparse_format: Any) -> None:
    adata = make_data(seed=5, sparse_format=sparse_format)
    expected = plain.get_latent_representation(adata)
    shuffled = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    with pytest.raises(RegistryError, match="same names in another order"):
        SCVI.load_query_data(shuffled, plain)
    before = snapshot(shuffled)
    result = SCVI.prepare_query_anndata(shuffled, plain, inplace=inplace)
    if inplace:
        assert result is None
        prepared = shuffled
    else:
        assert_unchanged(shuffled, before)
        prepared = result
    assert_unchanged(prepared, adata)
    query = SCVI.load_query_data(prepared, plain)
    np.testing.assert_array_equal(query.get_latent_representation(), expected)


@pytest.mark.parametrize("sparse_format", [None, "csr_matrix", "csc_matrix", "csr_array"])
def test_missing_genes_are_zeros_and_extra_ones_are_left_out(
    plain: SCVI, sparse_format: Any
) -> None:
    adata = make_data(seed=5, sparse_format=sparse_format)
    adata.layers["counts"] = adata.X.copy()
    adata.obs["flag"] = True
    adata.uns["note"] = {"a": [1, 2]}
    adata.var["highly_variable"] = True
    missing = [2, 7]
    expected = adata.copy()
    dense = expected.X.toarray() if sparse_format else expected.X
    dense[:, missing] = 0
    part = adata[:, [11, 3, 0, 1, 4, 5, 6, 8, 9, 10]].copy()
    extra = part[:, :1].copy()
    extra.var_names = ["unknown"]
    query = anndata.concat([part, extra], axis="var", merge="first", uns_merge="first")
    query.raw = query.copy()
    before = snapshot(query)
    prepared = SCVI.prepare_query_anndata(query, plain, inplace=False)
    assert_unchanged(query, before)
    assert list(prepared.var_names) == list(plain.var_names)
    for matrix in (prepared.X, prepared.layers["counts"]):
        values = matrix.toarray() if sparse_format else matrix
        np.testing.assert_array_equal(values, dense)
        assert matrix.dtype == adata.X.dtype
    assert list(prepared.obs.columns) == list(query.obs.columns)
    np.testing.assert_array_equal(
        prepared.obsm["protein_expression"], query.obsm["protein_expression"]
    )
    assert prepared.uns["note"] == {"a": [1, 2]}
    assert prepared.raw.n_vars == query.n_vars
    assert prepared.var["highly_variable"].isna().to_numpy().nonzero()[0].tolist() == missing
    SCVI.prepare_query_anndata(query, plain)
    assert_unchanged(query, prepared)
    SCVI.load_query_data(query, plain).get_latent_representation()


def test_prepared_data_can_be_written(plain: SCVI, tmp_path: Path) -> None:
    adata = make_data(seed=5)
    adata.var["flag"] = [True, False] * 6
    adata.var["symbol"] = list("abcdefghijkl")
    adata.var["length"] = np.arange(12)
    prepared = SCVI.prepare_query_anndata(adata[:, :11].copy(), plain, inplace=False)
    prepared.write_h5ad(tmp_path / "q.h5ad")
    assert_unchanged(
        anndata.read_h5ad(tmp_path / "q.h5ad").copy(), anndata.read_h5ad(tmp_path / "q.h5ad")
    )
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "q.h5ad").X, prepared.X)


def test_little_overlap(plain: SCVI) -> None:
    adata = make_data(seed=5)
    with pytest.warns(UserWarning, match=r"Only 9 of the 12 variables.*75 %"):
        SCVI.prepare_query_anndata(adata[:, :9].copy(), plain)
    adata.var_names = [f"other_{i}" for i in range(12)]
    before = snapshot(adata)
    with pytest.raises(DataError, match=r"'other_0'.*share no name with the reference.*convert"):
        SCVI.prepare_query_anndata(adata, plain)
    assert_unchanged(adata, before)
    adata.var_names = ["0"] * 12
    with pytest.raises(DataError, match=r"var_names_make_unique"):
        SCVI.prepare_query_anndata(adata, plain)


def test_reference_names(plain: SCVI, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    plain.save(tmp_path / "m")
    adata = make_data()
    for reference in (plain, tmp_path / "m", str(tmp_path / "m")):
        names = SCVI.prepare_query_anndata(adata, reference, return_reference_var_names=True)
        assert list(names) == list(adata.var_names)
    with pytest.raises(ModelError, match=r"reference_model is a int\. Expected a model"):
        SCVI.prepare_query_anndata(adata, 3)


def test_backed_query(plain: SCVI, tmp_path: Path) -> None:
    adata = make_data(seed=5)
    shuffled = adata[:, ::-1].copy()
    shuffled.write_h5ad(tmp_path / "q.h5ad")
    backed = anndata.read_h5ad(tmp_path / "q.h5ad", backed="r")
    with pytest.raises(DataError, match=r"backed by a file.*to_memory"):
        SCVI.prepare_query_anndata(backed, plain)
    prepared = SCVI.prepare_query_anndata(backed, plain, inplace=False)
    np.testing.assert_array_equal(prepared.X, adata.X)
    backed.file.close()


def test_a_query_whose_matrix_stays_on_disk(plain: SCVI, tmp_path: Path) -> None:
    adata = make_data(seed=5)
    adata[:, 1:][:, ::-1].write_h5ad(tmp_path / "q.h5ad")
    opened = open_store(tmp_path / "q.h5ad")
    prepared = SCVI.prepare_query_anndata(opened, plain, inplace=False)
    np.testing.assert_array_equal(prepared.X[:, 1:], adata.X[:, 1:])
    assert not np.asarray(prepared.X[:, 0]).any()
    adata[:, ::-1].write_h5ad(tmp_path / "same.h5ad")
    SCVI.prepare_query_anndata(opened := open_store(tmp_path / "same.h5ad"), plain)
    assert isinstance(opened.X, StoredMatrix)
    np.testing.assert_array_equal(opened.X[:], adata.X)


def test_subset_in_place(plain: SCVI) -> None:
    adata = make_data(seed=5)
    expected = plain.get_latent_representation(adata)
    more = anndata.concat(
        [
            adata,
            anndata.AnnData(
                np.ones((adata.n_obs, 2), np.float32), obs=adata.obs[[]], var={"v": [1, 2]}
            ),
        ],
        axis="var",
        merge="first",
    )[:, ::-1].copy()
    with pytest.raises(RegistryError, match="extra 2"):
        SCVI.load_query_data(more, plain)
    query = SCVI.load_query_data(more, plain, inplace_subset_query_vars=True)
    assert list(more.var_names) == list(plain.var_names)
    np.testing.assert_array_equal(query.get_latent_representation(), expected)


def test_unknown_query_column(plain: SCVI) -> None:
    adata = query_data()
    del adata.obs["donor"]
    before = snapshot(adata)
    with pytest.raises(KeyError, match="'donor' not found"):
        SCVI.load_query_data(adata, plain)
    assert_unchanged(adata, before)
    assert SETUP["categorical_covariate_keys"] == ["donor"]
