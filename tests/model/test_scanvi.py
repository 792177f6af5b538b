"""SCANVI: cells simulated from its own story, predictions, and what is taken over from SCVI."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from tests.model.samples import (
    QUICK,
    assert_unchanged,
    make_data,
    make_model,
    same_state,
    snapshot,
    state,
)

import pyrovi as pv
from pyrovi.errors import (
    DataError,
    MissingKeyError,
    ModelError,
    RegistryError,
    TrainingError,
    UnseenCategoryError,
)
from pyrovi.model import SCANVI, SCVI, LinearSCVI, truth_of
from pyrovi.model.label_prediction import fit_temperature

SETUP = {
    "labels_key": "type",
    "unlabeled_category": "none",
    "batch_key": "batch",
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["age"],
}


def partly_labelled(**kwargs: Any) -> anndata.AnnData:
    """Small data; about half of the cells have a label."""
    adata = make_data(**kwargs)
    hidden = np.random.default_rng(1).random(adata.n_obs) < 0.5
    adata.obs["type"] = np.where(hidden, "none", adata.obs["labels"].astype(str))
    return adata


def scanvi(adata: anndata.AnnData | None = None, epochs: int = 1, **kwargs: Any) -> SCANVI:
    adata = partly_labelled() if adata is None else adata
    SCANVI.setup_anndata(adata, **SETUP)
    model = SCANVI(adata, **{"n_hidden": 8, "n_latent": 3, **kwargs})
    if epochs:
        model.train(epochs, batch_size=16, **QUICK)
    return model


@pytest.fixture(scope="module")
def model() -> SCANVI:
    return scanvi(epochs=3)


# ---------------------------------------------------------------------- predictions


def test_predictions_are_named_and_consistent(model: SCANVI) -> None:
    adata = model.adata
    before = snapshot(adata)
    soft = model.predict(soft=True)
    assert list(soft.columns) == ["label_0", "label_1", "label_2"]
    assert list(soft.index) == list(adata.obs_names)
    np.testing.assert_allclose(soft.sum(axis=1), 1.0, rtol=1e-5)
    hard = model.predict()
    assert isinstance(hard, pd.Series)
    pd.testing.assert_series_equal(hard, soft.idxmax(axis=1), check_names=False)
    some = model.predict(indices=[7, 3], soft=True)
    assert list(some.index) == list(adata.obs_names[[7, 3]])
    assert_unchanged(adata, before)


def test_probabilities_average_over_draws_of_z(model: SCANVI) -> None:
    soft = model.predict(soft=True, num_samples=4000, indices=np.arange(5)).to_numpy()
    x = torch.as_tensor(model.adata.X[:5].toarray() if hasattr(model.adata.X, "toarray")
                        else model.adata.X[:5])  # fmt: skip
    with torch.no_grad():
        loc, scale = model.module.encoder(x.float().log1p())
        z = loc + scale * torch.randn(4000, *loc.shape, generator=torch.Generator().manual_seed(0))
        exact = model.module.c_given_z(z).softmax(-1)
    error = exact.std(0).numpy() / 4000**0.5
    assert (np.abs(soft - exact.mean(0).numpy()) < 6 * error + 1e-6).all()


def test_predictions_do_not_read_labels(model: SCANVI) -> None:
    adata = model.adata.copy()
    expected = model.predict(soft=True)
    del adata.obs["type"]
    pd.testing.assert_frame_equal(model.predict(adata, soft=True), expected)
    np.testing.assert_array_equal(
        model.get_latent_representation(adata), model.get_latent_representation()
    )


def test_known_types_are_known(model: SCANVI) -> None:
    c = model.sample_posterior("c", num_samples=20)["c"].values
    codes = model.adata_manager.get_from_registry("labels")[:, 0]
    known = codes < 3
    assert (c[:, known] == codes[known]).all()
    assert len(np.unique(c[:, ~known])) == 3


@pytest.mark.slow
def test_what_scvi_gives(model: SCANVI) -> None:
    n, g = model.adata.shape
    assert model.get_normalized_expression(n_samples=2).shape == (n, g)
    assert model.get_normalized_expression(n_samples=2, weights="importance").shape == (n, g)
    assert np.isfinite(model.get_elbo())
    assert np.isfinite(model.get_marginal_ll(n_mc_samples=20))
    de = model.differential_expression(groupby="labels", group1="label_0", n_samples_overall=50)
    assert len(de)
    assert model.posterior_predictive(["X", "labels"], num_samples=2)["labels"].shape[:2] == (2, n)
    assert model.local_fit(num_inner=200, indices=np.arange(5)).shape[0] == 5
    assert "posterior" in model.to_arviz(num_samples=3, indices=np.arange(5))


# ---------------------------------------------------------------------- files and training


def test_saved_and_loaded(model: SCANVI, tmp_path: Any) -> None:
    model.save(tmp_path / "model")
    loaded = pv.load(tmp_path / "model", model.adata)
    assert isinstance(loaded, SCANVI)
    assert same_state(state(loaded), state(model))
    pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))
    before = state(loaded)
    loaded.train(1, **QUICK)
    moved = [not np.array_equal(before[n], state(loaded)[n]) for n in before]
    assert sum(moved) > 0.9 * len(moved)


def test_samples_per_label_reach_the_splitter() -> None:
    model = scanvi(epochs=0)
    seen: list[int] = []
    classify = model.module.classify
    model.module.classify = lambda X, batch: seen.append(len(X)) or classify(X, batch)
    model.train(1, n_samples_per_label=2, train_size=1.0, **QUICK)
    assert seen == [6]  # two of each of three labels


def test_one_model_from_another() -> None:
    adata = partly_labelled()
    SCVI.setup_anndata(adata, **{k: v for k, v in SETUP.items() if k != "unlabeled_category"})
    scvi = SCVI(adata, n_hidden=8, n_latent=3)
    with pytest.warns(UserWarning, match="not trained"):
        SCANVI.from_scvi_model(scvi, "none")
    scvi.train(1, **QUICK)
    before = state(scvi)
    model = SCANVI.from_scvi_model(scvi, "none", linear_classifier=True)
    assert same_state(state(scvi), before)
    np.testing.assert_array_equal(
        model.get_latent_representation(), scvi.get_latent_representation()
    )
    ours, theirs = (m.sample_posterior("rho", num_samples=2).rho for m in (model, scvi))
    assert ours.shape == theirs.shape
    assert model._init_arguments["linear_classifier"]
    with pytest.raises(TrainingError, match="weights of one SCVI model"):
        model.train(1, n_restarts=2, **QUICK)
    model.train(**QUICK)
    assert len(model.history["elbo_train"]) == 10
    model.train(2, **QUICK)
    assert len(model.history["elbo_train"]) == 12


def test_other_labels_and_data() -> None:
    scvi = make_model()
    adata = scvi.adata.copy()
    adata.obs["type"] = adata.obs["labels"].astype(str)
    adata.obs.loc[adata.obs_names[::3], "type"] = "none"
    model = SCANVI.from_scvi_model(scvi, "none", labels_key="type", adata=adata)
    assert model.unlabeled_category == "none"
    assert model.module.n_labels == 3
    one_batch = adata[adata.obs["batch"] == "batch_1"].copy()
    with pytest.raises(RegistryError, match=r"'categorical_mapping' of 'batch'"):
        SCANVI.from_scvi_model(scvi, "none", labels_key="type", adata=one_batch)


def linear() -> LinearSCVI:
    adata = make_data()
    LinearSCVI.setup_anndata(adata, labels_key="labels")
    return LinearSCVI(adata, n_hidden=8)


def test_what_cannot_be_taken_over() -> None:
    scvi = make_model(epochs=0)
    with pytest.raises(ModelError, match="Expected a fitted SCVI model, got a str"):
        SCANVI.from_scvi_model("folder", "none")
    with pytest.raises(ModelError, match="got a LinearSCVI"):
        SCANVI.from_scvi_model(linear(), "none")
    with pytest.raises(ModelError, match="'n_hidden' is given by the SCVI model"):
        SCANVI.from_scvi_model(scvi, "none", n_hidden=4)
    with pytest.raises(ModelError, match="dispersion of each label"):
        SCANVI.from_scvi_model(make_model(epochs=0, dispersion="gene-label"), "none")
    adata = make_data()
    SCVI.setup_anndata(adata)
    with pytest.raises(ModelError, match="set up without labels"):
        SCANVI.from_scvi_model(SCVI(adata, n_hidden=8), "none")


def test_can_be_diagnosed(model: SCANVI) -> None:
    table = pv.criticism.diagnose(model).table
    gap = table.loc["amortisation gap, nats per observation"]
    assert gap["verdict"] == "not available"
    assert "local k-hat" in " ".join(table.index)
    with pytest.raises(ModelError, match=r"'c' is no discrete latent .* predict\(soft=True\)"):
        model.discrete_marginals("c")


# ---------------------------------------------------------------------- queries of a reference


@pytest.mark.parametrize("column", ["missing", "unlabelled", "some"])
def test_query_data(column: str) -> None:
    reference = scanvi()
    adata = partly_labelled(seed=4)
    adata.obs["batch"] = "new"
    if column == "missing":
        del adata.obs["type"]
    if column == "unlabelled":
        adata.obs["type"] = "none"
    query = SCANVI.load_query_data(adata, reference)
    frozen = ("c_given_z", "z_given_u_c", "u_given_z_c", "encoder", "label_rate")
    before = {n: v for n, v in state(query).items() if n.startswith(frozen)}
    query.train(1, batch_size=16, **QUICK)
    after = state(query)
    assert all(np.array_equal(after[n], before[n]) for n in before)
    soft = query.predict(soft=True)
    assert list(soft.columns) == ["label_0", "label_1", "label_2"]
    known = adata.copy()
    known.obs["batch"] = "batch_0"  # which the encoder does not see
    pd.testing.assert_frame_equal(soft, reference.predict(known, soft=True))


def test_unseen_labels_are_refused() -> None:
    reference = scanvi(epochs=0)
    adata = partly_labelled(seed=4)
    adata.obs["type"] = "another"
    with pytest.raises(UnseenCategoryError, match=r"'another'.*'none' for unlabelled"):
        SCANVI.load_query_data(adata, reference)


# ---------------------------------------------------------------------- bad input


def test_bad_input() -> None:
    adata = partly_labelled()
    with pytest.raises(MissingKeyError, match="'tpye' not found"):
        SCANVI.setup_anndata(adata, "tpye", "none")
    adata.obs["nothing"] = "none"
    SCANVI.setup_anndata(adata, "nothing", "none")
    with pytest.raises(DataError, match=r"No cell has a label.*'none'"):
        SCANVI(adata)
    with pytest.warns(UserWarning, match=r"'Unknown' does not occur in adata.obs\['type'\]"):
        SCANVI.setup_anndata(adata, "type", "Unknown")  # all are labelled
    assert SCANVI(adata, n_hidden=8).module.n_labels == 4


# ---------------------------------------------------------------------- calibration


def log_loss(model: SCANVI, adata: anndata.AnnData, indices: Any) -> float:
    return float(log_losses(model, adata, indices).mean())


def log_losses(model: SCANVI, adata: anndata.AnnData, indices: Any) -> np.ndarray:
    soft = model.predict(indices=indices, soft=True, num_samples=50)
    return -np.log([soft.loc[n, adata.obs["labels"][n]] for n in soft.index])


def test_held_out_labels_cool_an_overfitted_classifier(tmp_path: Any) -> None:
    adata = partly_labelled(batch_size=100)
    labels = adata.obs["labels"].astype(str).to_numpy()
    wrong = np.random.default_rng(2).random(adata.n_obs) < 0.3  # nobody can know these
    labels[wrong] = np.random.default_rng(3).permutation(labels)[wrong]
    adata.obs["labels"] = labels
    adata.obs["type"] = np.where(adata.obs["type"] == "none", "none", labels)
    model = scanvi(adata, epochs=0, n_hidden=64)
    model.train(40, lr=5e-3, train_size=0.5, **QUICK)
    temperature = model.module.temperature.item()
    assert temperature > 1.2
    held = np.intersect1d(model.validation_indices, np.flatnonzero(adata.obs["type"] != "none"))
    losses = {}
    for other in (temperature, 1.0, 0.8 * temperature, 1.25 * temperature):
        model.module.temperature.fill_(other)
        prior = 0.5 * np.log(other) ** 2 / len(held)
        losses[other] = log_loss(model, adata, held) + prior
    assert min(losses, key=losses.__getitem__) == temperature
    assert losses[1.0] > losses[temperature] + 0.02
    model.module.temperature.fill_(temperature)
    wrong = held[log_losses(model, adata, held) > 1][:2]  # they alone would say: as hot as can be
    assert len(wrong) == 2
    assert 1 < fit_temperature(model, wrong) < 10
    with pytest.raises(pv.errors.TrainingError, match="nothing"):
        model.train(1, early_stopping=True, early_stopping_monitor="nothing", **QUICK)
    temperature = model.module.temperature.item()
    assert temperature > 1.2  # of the classifier as the epoch before the error left it
    with pytest.raises(pv.errors.TrainingError, match="nonsense"):
        model.train(1, plan_kwargs={"nonsense": 1}, **QUICK)
    assert model.module.temperature.item() == temperature
    model.save(tmp_path / "model")
    assert pv.load(tmp_path / "model").module.temperature.item() == temperature
    query = SCANVI.load_query_data(partly_labelled(seed=4), model)
    query.train(1, **QUICK)
    assert query.module.temperature.item() == temperature  # with the classifier of the reference
    model.train(1, train_size=1.0, **QUICK)
    assert model.module.temperature.item() == 1.0  # no held-out labels


# ---------------------------------------------------------------------- recovery


def planted(n: int = 1200, n_genes: int = 15) -> SCANVI:
    """A model whose types differ: means of z near -1.6, 0 and 1.6; counts of about one a gene."""
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(rng.poisson(5.0, (n, n_genes)).astype(np.float32))
    adata.obs["type"] = rng.choice(["A", "B", "C", "none"], n, p=[0.2, 0.2, 0.2, 0.4])
    adata.obs["size"] = 1.0  # which encoders do not see
    SCANVI.setup_anndata(adata, "type", "none", size_factor_key="size")
    options = {"use_batch_norm": "none", "gene_likelihood": "nb", "dropout_rate": 0.0}
    model = SCANVI(adata, n_latent=1, n_hidden=32, **options)
    module: Any = model.module
    with torch.no_grad():
        module.z_given_u_c.layers.layers[0].linear.weight[:3, 1:] = 4 * torch.eye(3)
        module.z_given_u_c.mean_head.weight *= 2
        module.z_given_u_c.mean_head.weight[0, :3] = torch.tensor([-0.4, 0.0, 0.4])
        module.z_given_u_c.variance_head.bias.fill_(-1.5)
        module.decoder.layers.layers[0].linear.weight *= 2.5
        module.decoder.scale_head.weight *= 3
        module.log_theta.fill_(2.0)
    return model


def test_cells_of_the_own_story_are_recovered() -> None:
    """The networks of the story are given, so that z and u have a meaning; the guide is fitted."""
    story = planted()
    simulated = story.simulate(seed=1)
    simulated = simulated[np.asarray(simulated.X.sum(axis=1)).ravel() > 0].copy()
    truth = truth_of(simulated)
    assert abs((simulated.obs["type"] == "none").mean() - 0.4) < 0.05  # labels, as in the story
    c = truth["c"].values.astype(int)
    known = (simulated.obs["type"] != "none").to_numpy()
    np.testing.assert_array_equal(simulated.obs["type"][known], np.array(list("ABC"))[c[known]])
    model = story.fresh_copy(simulated, seed=3)
    of_story = ("z_given_u_c", "decoder", "log_theta")
    given = {n: v for n, v in story.module.state_dict().items() if n.startswith(of_story)}
    model.module.load_state_dict({**model.module.state_dict(), **given})
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(not name.startswith(of_story))
    plan = {"classification_ratio": 1.0, "lr_decay": 0.05, "n_epochs_kl_warmup": 0}
    model.train(40, lr=0.01, batch_size=100, plan_kwargs=plan, **QUICK)
    draws = model.sample_posterior(["z", "u"], num_samples=200)
    for name in ("z", "u"):
        low, high = np.quantile(draws[name].values, [0.05, 0.95], axis=0)
        inside = (low <= truth[name].values) & (truth[name].values <= high)
        assert 0.80 < inside.mean() < 0.97, (name, inside.mean())
    soft = model.predict(soft=True).to_numpy()[~known]
    right = soft.argmax(1) == c[~known]
    assert right.mean() > 0.85
    # as sure as it is right, to within the sampling error of the hits
    assert abs(soft.max(1).mean() - right.mean()) < 3 * right.std() / len(right) ** 0.5 + 0.01
    log_loss = -np.log(soft[np.arange(len(right)), c[~known]]).mean()
    assert log_loss < 0.35
