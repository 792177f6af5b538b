"""LinearSCVI: loadings are recovered, named, saved, and taken to new data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import subspace_angles
from tests.model.samples import QUICK, assert_unchanged, make_data, snapshot

import pyrovi as pv
from pyrovi.errors import DataError, ModelError, RegistryError, TrainingError
from pyrovi.model import SCVI, LinearSCVI
from pyrovi.model.factor_start import principal_axes, start_at_principal_axes
from pyrovi.model.refit import refit

G, K = 30, 2


def simulated(n: int = 1000, seed: int = 0) -> anndata.AnnData:
    """From the story: loadings that differ in strength, one dispersion."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(G, K)) * [1.0, 0.5]
    z = rng.normal(size=(n, K))
    logits = z @ W.T + rng.normal(size=G)
    rho = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    library = rng.lognormal(7.0, 0.3, (n, 1))
    theta = 10.0
    counts = rng.poisson(rng.gamma(theta, library * rho / theta)).astype(np.float32)
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"gene_{g}" for g in range(G)])
    return anndata.AnnData(counts, obs=obs, var=var, varm={"W": W}, obsm={"z": z, "rho": rho})


def small(adata: anndata.AnnData | None = None, epochs: int = 1, **kwargs: Any) -> LinearSCVI:
    adata = make_data() if adata is None else adata
    LinearSCVI.setup_anndata(adata, batch_key="batch", labels_key="labels")
    model = LinearSCVI(adata, **{"n_hidden": 8, "n_latent": 3, **kwargs})
    if epochs:
        model.train(epochs, batch_size=16, **QUICK)
    return model


@pytest.fixture(scope="module")
def trained() -> LinearSCVI:
    adata = simulated()
    LinearSCVI.setup_anndata(adata)
    model = LinearSCVI(adata, n_latent=K, use_observed_lib_size=True)
    long(model, 100, lr=0.01)
    return model


def long(model: LinearSCVI, epochs: int, **plan: Any) -> None:
    """Train with steps that do not shrink with the gradient (``eps``)."""
    model.train(epochs, train_size=1.0, plan_kwargs={"eps": 1e-8, **plan}, **QUICK)


def centred(loadings: Any) -> np.ndarray:
    values = np.asarray(loadings, float)
    return values - values.mean(0)


def test_recovers_loadings_up_to_rotation(trained: LinearSCVI) -> None:
    truth = centred(trained.adata.varm["W"])
    found = centred(trained.get_loadings())
    assert np.degrees(subspace_angles(found, truth).max()) < 8
    # and their size: the prior of z has unit variance
    lengths = np.linalg.svd(found, compute_uv=False) / np.linalg.svd(truth, compute_uv=False)
    assert lengths == pytest.approx(np.ones(K), abs=0.2)


@pytest.mark.slow
def test_recovers_what_is_identified_with_a_latent_library() -> None:
    adata = simulated()
    LinearSCVI.setup_anndata(adata)
    model = LinearSCVI(adata, n_latent=K)
    long(model, 100, lr=0.01)
    long(model, 150, lr=2e-3, n_epochs_kl_warmup=0, lr_decay=0.05)
    found, truth = centred(model.get_loadings()), centred(adata.varm["W"])
    assert np.degrees(subspace_angles(found, truth).max()) < 6
    drawn = model.sample_posterior("rho", num_samples=100, indices=np.arange(300))["rho"].values
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    true = adata.obsm["rho"][:300]
    inside = ((low < true) & (true < high)).mean()
    assert 0.80 < inside < 0.97, inside


def residual_axes(counts: np.ndarray, batch: np.ndarray, number: int) -> np.ndarray:
    """Principal axes of Pearson residuals, by a whole decomposition."""
    total, overall = counts.sum(1, keepdims=True), counts.sum(0) + 0.5
    mean, overall = overall / len(counts), overall / overall.sum()
    residuals = np.empty_like(counts)
    for code in np.unique(batch):
        rows = batch == code
        expected = total[rows] * (counts[rows].sum(0) + overall) / (counts[rows].sum() + 1)
        residuals[rows] = np.clip((counts[rows] - expected) / np.sqrt(expected), -10, 10)
    _, sizes, axes = np.linalg.svd(residuals, full_matrices=False)
    axes = axes[:number].T * sizes[:number] / len(counts) ** 0.5
    axes = axes * np.where((axes**3).sum(0) < 0, -1, 1)
    return axes / np.sqrt(mean)[:, None]


@pytest.mark.parametrize("options", [{}, {"use_batch_norm": "none"}])
def test_the_start_is_along_principal_axes(options: dict[str, Any]) -> None:
    adata = simulated(300)
    adata.obs["batch"] = np.where(np.arange(300) % 3 == 0, "a", "b")
    adata.X[adata.obs["batch"] == "a", :5] *= 3
    LinearSCVI.setup_anndata(adata, batch_key="batch")
    model = LinearSCVI(adata, n_latent=K, **options)
    start_at_principal_axes(model, np.arange(300))
    codes = (adata.obs["batch"] == "b").to_numpy()
    expected = residual_axes(adata.X.astype(float), codes, K)
    np.testing.assert_allclose(model.get_loadings(), expected, rtol=1e-3, atol=1e-4)
    # the batch moves the genes that it multiplies
    model.module.eval()
    with torch.no_grad():
        decode = model.module.decoder
        rho = [decode(torch.zeros(1, K), torch.zeros(1, 1), torch.tensor([[s]]))[0] for s in (0, 1)]
    ratio = (rho[0] / rho[1]).numpy()[0]
    assert ratio[:5].mean() / ratio[5:].mean() == pytest.approx(3, rel=0.1)


def test_fits_of_other_seeds_have_the_same_loadings() -> None:
    found = []
    for seed in (1, 2):
        pv.settings.seed = seed
        adata = simulated()
        LinearSCVI.setup_anndata(adata)
        model = LinearSCVI(adata, n_latent=K)
        model.train(25, train_size=1.0, plan_kwargs={"lr": 5e-3}, **QUICK)
        found.append(centred(model.get_loadings()))
    for one, other in zip(*(loadings.T for loadings in found), strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.95


@pytest.mark.parametrize("shape", [(300, 40), (12, 40), (40, 3)])
def test_principal_axes_by_a_whole_decomposition(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values *= np.linspace(2, 1, shape[1], dtype=np.float32)
    found = principal_axes(values, 5)
    variances, axes = np.linalg.eigh(values.T @ values / len(values))
    few = min(5, *shape)
    np.testing.assert_allclose((found**2).sum(0)[:few], variances[::-1][:few], rtol=1e-3)
    np.testing.assert_allclose(found[:, few:], 0)
    cosines = (found / np.linalg.norm(found, axis=0).clip(1e-9)).T @ axes[:, ::-1][:, :5]
    np.testing.assert_allclose(np.abs(cosines.diagonal())[:few], 1, atol=1e-3)


def test_when_there_is_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setitem(LinearSCVI.starts, "principal-axes", lambda *_: calls.append(1))
    model = small()
    assert calls == [1]
    model.save(tmp_path / "m")
    for again in (model, pv.load(tmp_path / "m", adata=model.adata)):
        again.train(1, batch_size=16, **QUICK)
    assert calls == [1]  # training goes on
    by_chance = small(epochs=0)
    by_chance.train(1, start=None, **QUICK)
    refit(by_chance, model.adata)
    by_chance.fresh_copy().train(1, n_restarts=2, **QUICK)
    assert calls == [1]  # restarts would agree for that reason alone
    refit(model, model.adata)
    assert calls == [1, 1]
    with pytest.raises(TrainingError, match="start must be None or 'principal-axes'"):
        model.fresh_copy().train(1, start="nowhere", **QUICK)


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_query_keeps_the_loadings_of_its_reference(epochs: int, tmp_path: Path) -> None:
    reference = small(epochs=epochs)
    new = make_data(seed=1)
    new.obs["batch"] = new.obs["batch"].astype(str).str.replace("batch_1", "new")
    query = LinearSCVI.load_query_data(new, reference)
    query.save(tmp_path / "query")
    loaded = pv.load(tmp_path / "query", adata=query.adata)
    for mapped in (query, loaded):
        mapped.train(1, batch_size=16, **QUICK)
        np.testing.assert_array_equal(mapped.get_loadings(), reference.get_loadings())


def test_loadings_are_named(trained: LinearSCVI) -> None:
    loadings = trained.get_loadings()
    assert list(loadings.index) == list(trained.adata.var_names)
    assert list(loadings.columns) == ["Z_0", "Z_1"]
    assert small(dispersion="gene").get_loadings().shape == (12, 3)


def test_loadings_are_what_a_unit_of_z_does(trained: LinearSCVI) -> None:
    """Log proportions of two cells differ by the loadings, times the difference of their z."""
    drawn = trained.sample_posterior(["z", "rho"], num_samples=1, indices=[0, 1])
    z, rho = drawn["z"].values[0], np.log(drawn["rho"].values[0])
    difference = (rho[0] - rho[1]) - (rho[0] - rho[1]).mean()
    expected = centred(trained.get_loadings()) @ (z[0] - z[1])
    np.testing.assert_allclose(difference, expected, atol=1e-4)


def test_defaults() -> None:
    model = small(epochs=1)
    assert model.module.gene_likelihood == "nb"
    assert model.module.latent_library
    assert "l" in model.sites


@pytest.mark.parametrize("dispersion", ["gene-batch", "gene-label"])
def test_dispersions_by_group(dispersion: str) -> None:
    model = small(dispersion=dispersion)
    groups = {"gene-batch": 2, "gene-label": 3}[dispersion]
    assert model.module.log_theta.shape == (12, groups)
    assert np.isfinite(model.get_elbo())


def test_save_load_and_train_on(tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path / "m")
    loaded = pv.load(tmp_path / "m", adata=model.adata)
    assert isinstance(loaded, LinearSCVI)
    pd.testing.assert_frame_equal(loaded.get_loadings(), model.get_loadings())
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    before = loaded.get_loadings()
    loaded.train(1, batch_size=16, **QUICK)
    assert (loaded.get_loadings() != before).all().all()


def test_query_data_keep_the_loadings() -> None:
    reference = small(epochs=3)
    query = make_data(seed=1)
    query.obs["batch"] = query.obs["batch"].astype(str).str.replace("batch_1", "new")
    before = snapshot(query)
    mapped = LinearSCVI.load_query_data(query, reference)
    pd.testing.assert_frame_equal(mapped.get_loadings(), reference.get_loadings())
    mapped.train(2, batch_size=16, **QUICK)
    pd.testing.assert_frame_equal(mapped.get_loadings(), reference.get_loadings())
    assert_unchanged(query, before)
    decoder = mapped.module.decoder.scale_layers.layers[0].linear.weight
    old = reference.module.decoder.scale_layers.layers[0].linear.weight
    np.testing.assert_array_equal(decoder[:, :3].detach().numpy(), old[:, :3].detach().numpy())
    assert mapped.summary_stats.n_batch == 3


def test_shares_the_methods_of_scvi() -> None:
    model = small()
    expression = model.get_normalized_expression(n_samples=2, transform_batch="batch_0")
    assert expression.shape == model.adata.shape
    de = model.differential_expression(groupby="labels", group1="label_0")
    assert set(de.index) == set(model.adata.var_names)
    assert model.posterior_predictive("X", num_samples=2)["X"].shape[1:] == model.adata.shape


def test_bad_input() -> None:
    adata = make_data()
    LinearSCVI.setup_anndata(adata)
    with pytest.raises(ModelError, match="dispersion='gene-cell'"):
        LinearSCVI(adata, dispersion="gene-cell")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="size_factor_key"):
        LinearSCVI.setup_anndata(adata, size_factor_key="size")  # type: ignore[call-arg]
    adata.X = adata.X + 0.5
    with pytest.raises(DataError, match="integer"):
        LinearSCVI.setup_anndata(adata)
    model = small()
    with pytest.raises(RegistryError):
        model.get_latent_representation(make_data()[:, ::-1].copy())
    with pytest.raises(ModelError, match="SCVI"):
        LinearSCVI.load_query_data(make_data(), SCVI_model())


def SCVI_model() -> SCVI:
    adata = make_data()
    SCVI.setup_anndata(adata)
    return SCVI(adata, n_hidden=8)
