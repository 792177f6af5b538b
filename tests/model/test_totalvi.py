"""TOTALVI on data simulated from known proteins: recovery, imputation, names, files, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

import pyrovi as pv
from pyrovi.errors import DataError, MissingKeyError, ModelError, RegistryError, TrainingError
from pyrovi.model.truth import truth_of
from pyrovi.nn.freezing import freeze_batch_norm
from pyrovi.nn.layers import BatchNorm
from pyrovi.train import AdversarialTrainingPlan, SVITrainingPlan

pytestmark = pytest.mark.filterwarnings("ignore:Proteins without a count:UserWarning")

N, G, P = 500, 30, 5
NETWORK: dict[str, Any] = {"n_latent": 4, "n_hidden": 32, "dropout_rate_decoder": 0.0}
NAMES = [f"CD{i}" for i in range(P)]


def cells(lacking: bool = False, seed: int = 0, n: int = N) -> anndata.AnnData:
    """Two types of cells in two batches; each protein is the foreground of one of the types."""
    rng = np.random.default_rng(seed)
    kind, batch = rng.integers(2, size=n), np.arange(n) % 2
    programme = rng.gamma(0.7, 1.0, (2, G)) + 0.05
    rate = 200 * programme[kind] / programme[kind].sum(1, keepdims=True)
    X = rng.poisson(rate * rng.gamma(5.0, 0.2, rate.shape))
    X[:, 0] += 1
    has = kind[:, None] == np.arange(P) % 2
    back = rng.lognormal(1.5 + 0.2 * np.arange(P), 0.25, (n, P))
    y = rng.poisson(np.where(has, 12 * back, back)).astype(float)
    if lacking:
        y[batch == 1, :3] = 0
    names = [f"cell_{i}" for i in range(n)]
    obs = pd.DataFrame({"batch": pd.Categorical(np.array(["a", "b"])[batch]),
                        "kind": pd.Categorical(np.array(["s", "t"])[kind]),
                        "panel": pd.Categorical(np.array(["p", "q"])[batch]),
                        "size": X.sum(1) / 100}, index=names)  # fmt: skip
    proteins = pd.DataFrame(y, index=names, columns=NAMES)
    adata = anndata.AnnData(
        X.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(G)])
    )
    adata.obsm["protein"] = proteins
    adata.uns["truth"] = {"background": back, "has": has}
    return adata


def made(adata: anndata.AnnData, **options: Any) -> Any:
    pv.model.TOTALVI.setup_anndata(adata, "protein", batch_key="batch")
    return pv.model.TOTALVI(adata, **{**NETWORK, **options})


@pytest.fixture(scope="module")
def fitted() -> Any:
    model = made(cells(lacking=True))
    model.train(max_epochs=60, batch_size=64, enable_progress_bar=False)
    return model


def test_foreground_and_background_are_recovered(fitted: Any) -> None:
    truth = fitted.adata.uns["truth"]
    measured = np.ones((N, P), dtype=bool)
    measured[1::2, :3] = False
    with pytest.warns(UserWarning, match="not measured in the batch b"):
        probability = fitted.get_protein_foreground_probability(n_samples=10)
    assert list(probability.columns) == NAMES
    assert list(probability.index) == list(fitted.adata.obs_names)
    called = probability.to_numpy() > 0.5
    assert (called == truth["has"])[measured].mean() > 0.9
    draws = fitted.sample_posterior("beta", num_samples=200)["beta"]
    assert draws.dims[1:] == ("obs", "protein")
    assert list(draws["protein"].values) == NAMES
    low, high = np.quantile(draws.values, [0.05, 0.95], axis=0)
    inside = (low < truth["background"]) & (truth["background"] < high)
    assert 0.8 < inside[measured].mean() < 0.97


@pytest.mark.slow
def test_cells_of_its_own_story_are_recovered() -> None:
    """Given the decoders, which are known here, the guide covers the truth of each cell."""
    story = made(cells(n=1000), n_latent=2)
    story.train(max_epochs=60, batch_size=64, enable_progress_bar=False)
    simulated = story.simulate(seed=1)
    model = story.fresh_copy(simulated)
    known = story.module.state_dict()
    known |= {k: v for k, v in model.module.state_dict().items() if "encoder" in k}
    model.module.load_state_dict(known)
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_("encoder" in name)
    for name, part in list(model.module.named_modules()):
        if "decoder" in name and isinstance(part, BatchNorm):
            freeze_batch_norm(model.module, name)
    model.train(max_epochs=150, batch_size=64, enable_progress_bar=False)
    draws = model.sample_posterior(["z", "rho", "beta"], num_samples=200)
    truth = truth_of(simulated)
    for site, values in draws.items():
        low, high = np.quantile(values, [0.05, 0.95], axis=0)
        inside = (low < truth[site].values) & (truth[site].values < high)
        assert 0.8 < inside.mean() < 0.97, (site, inside.mean())


def test_missing_proteins_are_imputed_in_the_other_batch(fitted: Any) -> None:
    truth = fitted.adata.uns["truth"]
    lacking = np.arange(1, N, 2)
    rna, protein = fitted.get_normalized_expression(
        indices=lacking, transform_batch="a", n_samples=10, include_protein_background=True
    )
    assert rna.shape == (len(lacking), G)
    np.testing.assert_allclose(rna.sum(1), 1.0, rtol=1e-4)
    true = truth["background"][lacking] * np.where(truth["has"][lacking], 12, 1)
    for t in range(3):
        assert np.corrcoef(np.log(protein.to_numpy()[:, t]), np.log(true[:, t]))[0, 1] > 0.85
        assert np.median(protein.to_numpy()[:, t] / true[:, t]) == pytest.approx(1.0, abs=0.35)


def test_background_follows_the_batch(fitted: Any) -> None:
    """The intervention draws beta anew in the other batch; the rest stays."""
    own = fitted.get_protein_background_mean(indices=np.arange(0, N, 2), protein_list=NAMES[3:])
    with pytest.warns(UserWarning, match="CD0"):
        other = fitted.get_protein_background_mean(indices=np.arange(0, N, 2), transform_batch="b")
    assert not np.allclose(own, other[NAMES[3:]])
    assert np.allclose(own, other[NAMES[3:]], rtol=1.0)


def test_options_of_protein_expression(fitted: Any) -> None:
    one = {"indices": np.arange(0, 40, 2), "seed": 1}
    _, plain = fitted.get_normalized_expression(**one)
    _, scaled = fitted.get_normalized_expression(scale_protein=True, **one)
    np.testing.assert_allclose(scaled.sum(1), 1.0, rtol=1e-5)
    _, both = fitted.get_normalized_expression(include_protein_background=True, **one)
    assert (both.to_numpy() > plain.to_numpy()).all()
    _, mixed = fitted.get_normalized_expression(sample_protein_mixing=True, **one)
    assert (mixed.to_numpy() == 0).any()
    rna, some = fitted.get_normalized_expression(
        protein_list=["CD4", "CD3"], gene_list=["g7"], library_size=100, **one
    )
    assert list(rna.columns) == ["g7"]
    np.testing.assert_allclose(some, plain[["CD4", "CD3"]])
    counts, _ = fitted.get_normalized_expression(library_size="latent", **one)
    totals = fitted.adata.X[one["indices"]].sum(1)
    np.testing.assert_allclose(counts.sum(1), totals, rtol=1e-3)
    several = fitted.get_normalized_expression(n_samples=3, return_mean=False, **one)
    assert [a.shape for a in several] == [(3, 20, G), (3, 20, P)]
    overall = fitted.get_normalized_expression(n_samples_overall=7, **one)
    assert [a.shape for a in overall] == [(7, G), (7, P)]


def test_differential_expression_of_both(fitted: Any) -> None:
    table = fitted.differential_expression(
        groupby="kind", group1="s", group2="t", batch_correction=True, batchid1=["a"],
        batchid2=["a"], n_samples_overall=500,
    )  # fmt: skip
    proteins = table[table.modality == "protein"]
    assert sorted(proteins.index) == NAMES
    assert (table.modality == "rna").sum() == G
    up = proteins.loc[NAMES, "lfc_median"].to_numpy() > 0
    np.testing.assert_array_equal(up, np.arange(P) % 2 == 0)
    raw = fitted.adata.obsm["protein"][fitted.adata.obs["kind"] == "s"].mean()
    np.testing.assert_allclose(proteins.loc[NAMES, "raw_mean1"], raw)
    with pytest.raises(ModelError, match="protein_prior_count"):
        fitted.differential_expression(groupby="kind", protein_prior_count=-1)


def test_predictive_counts_parameters_and_correlations(fitted: Any) -> None:
    rows = np.arange(0, N, 2)
    drawn = fitted.posterior_predictive_sample(indices=rows)
    assert drawn["rna"].shape == (len(rows), G)
    true = fitted.adata.obsm["protein"].to_numpy()[rows].mean(0)
    np.testing.assert_allclose(drawn["protein"].mean(0), true, rtol=0.3)
    assert fitted.posterior_predictive_sample(indices=[0], n_samples=4)["rna"].shape == (1, G, 4)
    parameters = fitted.get_likelihood_parameters(indices=rows, n_samples=2)
    fore, back = (parameters[f"protein_{k}_mean"] for k in ("foreground", "background"))
    assert fore.shape == (2, len(rows), P)
    assert (fore >= back).all()
    matrix = fitted.get_feature_correlation_matrix(indices=rows, n_samples=3, gene_list=["g1"])
    assert list(matrix.index) == ["g1", *NAMES]
    assert matrix.loc["CD0", "CD2"] > 0.3 > -0.3 > matrix.loc["CD0", "CD1"]
    assert fitted.get_latent_library_size(indices=rows).shape == (len(rows), 1)


def test_files_and_going_on(fitted: Any, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    alone = pv.load(tmp_path / "model")
    loaded = pv.load(tmp_path / "model", fitted.adata)
    query = cells(lacking=True)
    for other in (alone, loaded):
        z = other.get_latent_representation(query)
        np.testing.assert_allclose(z, fitted.get_latent_representation(), atol=1e-6)
    before = {k: v.clone() for k, v in loaded.module.named_parameters()}
    loaded.train(max_epochs=1, enable_progress_bar=False)
    assert all((before[k] != v).any() for k, v in loaded.module.named_parameters())


def test_adversary_is_for_missing_proteins(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[type] = []
    setup = SVITrainingPlan.setup
    monkeypatch.setattr(
        SVITrainingPlan, "setup", lambda s, stage: (used.append(type(s)), setup(s, stage))[1]
    )
    quick = {"max_epochs": 1, "enable_progress_bar": False}
    for lacking, option, plan in (
        (True, None, AdversarialTrainingPlan), (True, False, SVITrainingPlan),
        (False, None, SVITrainingPlan), (False, True, AdversarialTrainingPlan),
    ):  # fmt: skip
        made(cells(lacking)).train(adversarial_classifier=option, **quick)
        assert used.pop() is plan
    with pytest.warns(UserWarning, match="not measured there: b \\(3\\)"):
        made(cells(lacking=True))
    model = made(cells(lacking=True), override_missing_proteins=True)
    model.train(**quick)
    assert used.pop() is SVITrainingPlan
    adata = cells()
    pv.model.TOTALVI.setup_anndata(adata, "protein")
    single = pv.model.TOTALVI(adata, **NETWORK)
    with pytest.raises(TrainingError, match="at least 2"):
        single.train(adversarial_classifier=True, **quick)
    everything = made(cells(lacking=True))
    everything.train(train_size=1.0, **quick)  # nothing held out: neither stopping nor plateaus


def test_panels_mudata_and_options() -> None:
    mudata = pytest.importorskip("mudata")
    adata = cells(lacking=True)
    pv.model.TOTALVI.setup_anndata(
        adata, "protein", panel_key="panel", batch_key="kind", size_factor_key="size",
    )  # fmt: skip
    model = pv.model.TOTALVI(adata, empirical_protein_background_prior=True, **NETWORK)
    assert model.module.c.shape == (P, 2)
    assert not np.allclose(model.module.c.detach(), 3.0)
    model.train(max_epochs=1, enable_progress_bar=False)
    rna = anndata.AnnData(adata.X, obs=adata.obs[[]], var=adata.var)
    y = adata.obsm["protein"]
    protein = anndata.AnnData(
        y.to_numpy().astype(np.float32), obs=adata.obs[[]], var=pd.DataFrame(index=NAMES)
    )
    with pytest.warns():
        mdata = mudata.MuData({"rna": rna, "protein": protein})
    mdata.obs["batch"] = adata.obs["batch"].to_numpy()
    where = {"rna_layer": "rna", "protein_layer": "protein"}
    pv.model.TOTALVI.setup_mudata(mdata, batch_key="batch", modalities=where)
    model = pv.model.TOTALVI(mdata, **NETWORK)
    model.train(max_epochs=1, enable_progress_bar=False)
    assert list(model.var_names) == list(adata.var_names)
    idata = model.to_arviz(num_samples=3)
    assert list(idata.posterior["beta"]["protein"].values) == NAMES
    assert list(model.get_protein_foreground_probability(transform_batch="a").columns) == NAMES
    with pytest.raises(DataError, match="protein_layer"):
        pv.model.TOTALVI.setup_mudata(mdata, modalities={"rna_layer": "rna"})
    with pytest.raises(DataError, match=r"modalities is a list.*Expected a dictionary"):
        pv.model.TOTALVI.setup_mudata(mdata, modalities=["rna"])
    with pytest.raises(DataError, match="protein_key"):
        pv.model.TOTALVI.setup_mudata(mdata, modalities={**where, "protein_key": "rna"})


def test_unseen_batches_of_a_query(fitted: Any) -> None:
    query = cells(lacking=False, seed=3)
    query.obs["batch"] = pd.Categorical(["c"] * N)
    query.obs_names = [f"new_{i}" for i in range(N)]
    model = pv.model.TOTALVI.load_query_data(query, fitted)
    model.train(max_epochs=2, enable_progress_bar=False)
    assert model.module.c.shape == (P, 3)
    np.testing.assert_array_equal(model.module.measured[1, :3], False)
    np.testing.assert_array_equal(model.module.measured[2], True)
    reference = fitted.module.rho_decoder.heads[0].weight.detach()
    np.testing.assert_array_equal(
        model.module.rho_decoder.heads[0].weight.detach()[:, : reference.shape[1]], reference
    )


def test_query_without_some_proteins(fitted: Any, tmp_path: Any) -> None:
    fitted.save(tmp_path / "reference")
    query = cells(lacking=False, seed=3)
    query.obs_names = [f"new_{i}" for i in range(N)]
    del query.obsm["protein"][NAMES[1]]
    with pytest.raises(DataError, match=f"batch '[ab]': '{NAMES[1]}'"):
        pv.model.TOTALVI.prepare_query_anndata(query, fitted)
    query.obs["batch"] = pd.Categorical(["c"] * N)
    for proteins in (query.obsm["protein"][NAMES[:1] + NAMES[:1:-1]], None):
        given = query[:, ::-1].copy()
        del given.obsm["protein"]
        if proteins is not None:
            given.obsm["protein"] = proteins
        made = pv.model.TOTALVI.prepare_query_anndata(given, tmp_path / "reference", inplace=False)
        assert list(made.var_names) == list(fitted.var_names)
        model = pv.model.TOTALVI.load_query_data(made, fitted)
        measured = [name in (() if proteins is None else proteins) for name in NAMES]
        np.testing.assert_array_equal(model.module.measured[2], measured)
        assert ("protein" in given.obsm) == (proteins is not None)


def test_a_protein_with_the_name_of_a_gene() -> None:
    adata = cells()
    proteins = adata.obsm["protein"]
    adata.obsm["protein"] = proteins.rename(columns={NAMES[0]: adata.var_names[0]})
    pv.model.TOTALVI.setup_anndata(adata, "protein", batch_key="batch")
    model = pv.model.TOTALVI(adata, n_hidden=8, n_latent=2)
    model.train(1, enable_progress_bar=False)
    table = model.differential_expression(groupby="batch", group1="a", group2="b", silent=True)
    assert sorted(table.loc[adata.var_names[0], "modality"]) == ["protein", "rna"]
    assert (table["modality"] == "protein").sum() == P


def test_bad_input(fitted: Any) -> None:
    other = cells()
    other.obsm["protein"] = other.obsm["protein"][NAMES[::-1]]
    with pytest.raises(RegistryError, match="protein"):
        fitted.get_latent_representation(other)
    other.obsm["protein"] = cells().obsm["protein"][NAMES[:3]]
    with pytest.raises(RegistryError, match="protein"):
        fitted.get_latent_representation(other)
    with pytest.raises(MissingKeyError, match="CD77"):
        fitted.get_protein_foreground_probability(protein_list=["CD77"])
    with pytest.raises(ModelError, match="protein_list is empty"):
        fitted.get_protein_foreground_probability(protein_list=[])
    with pytest.raises(MissingKeyError, match="nothing"):
        pv.model.TOTALVI.setup_anndata(other, "nothing")
    other.obsm["protein"] = other.obsm["protein"] + 0.5
    with pytest.raises(DataError, match="protein"):
        pv.model.TOTALVI.setup_anndata(other, "protein")
