"""PPCA and factor analysis: closed forms, recovery, loadings up to rotation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from scipy.linalg import subspace_angles

import pyrovi as pv
from pyrovi.errors import DataError, ModelError, RegistryError, TrainingError
from pyrovi.model import PPCA, FactorAnalysis
from pyrovi.posterior.alignment import align

N, D, K = 500, 15, 2
QUICK: dict[str, Any] = {"enable_progress_bar": False, "accelerator": "cpu"}


def data(noise: str = "diagonal", seed: int = 0, n: int = N) -> anndata.AnnData:
    """From the story; the truth is in ``varm``, ``var`` and ``obsm``."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(D, K)) * [2.0, 1.0]
    mu = 5 * rng.normal(size=D)
    psi = rng.gamma(3.0, 0.2, D) + 0.1 if noise == "diagonal" else np.full(D, 0.6)
    z = rng.normal(size=(n, K))
    loc = z @ W.T + mu
    X = (loc + rng.normal(size=(n, D)) * np.sqrt(psi)).astype(np.float32)
    var = pd.DataFrame({"mu": mu, "psi": psi}, index=[f"gene_{g}" for g in range(D)])
    obs = pd.DataFrame(index=[f"cell_{c}" for c in range(n)])
    return anndata.AnnData(X, obs=obs, var=var, varm={"W": W}, obsm={"z": z, "loc": loc})


def fitted(cls: Any, adata: anndata.AnnData | None = None, **options: Any) -> Any:
    adata = data("diagonal" if cls is FactorAnalysis else "isotropic") if adata is None else adata
    cls.setup_anndata(adata)
    model = cls(adata, n_latent=K)
    model.train(**QUICK, **options)
    return model


@pytest.fixture(scope="module")
def ppca() -> PPCA:
    return fitted(PPCA)


@pytest.fixture(scope="module")
def factors() -> FactorAnalysis:
    return fitted(FactorAnalysis)


def values(model: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    drawn = model.sample_posterior(["W", "mu", "psi"], num_samples=1)
    return tuple(drawn[site].values[0].astype(float) for site in ("W", "mu", "psi"))  # type: ignore[return-value]


def exact_log_density(model: Any, X: np.ndarray) -> np.ndarray:
    W, mu, psi = values(model)
    return stats.multivariate_normal(mu, W @ W.T + np.diag(psi)).logpdf(np.asarray(X, float))


# ---------------------------------------------------------------------- closed forms


def closed_form(X: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Axes, noise variance and log-likelihood per observation, from the covariance."""
    X = np.asarray(X, float)
    eigenvalues, axes = np.linalg.eigh(np.cov(X.T, bias=True))
    eigenvalues, axes = eigenvalues[::-1], axes[:, ::-1]
    sigma2 = eigenvalues[K:].mean()
    W = axes[:, :K] * np.sqrt(eigenvalues[:K] - sigma2)
    p = stats.multivariate_normal(X.mean(0), W @ W.T + sigma2 * np.eye(D))
    return W, float(sigma2), float(p.logpdf(X).mean())


@pytest.mark.parametrize("options", [{}, {"start": None}], ids=["default", "random start"])
def test_ppca_reaches_the_closed_form(options: dict[str, Any]) -> None:
    model = fitted(PPCA, **options)
    W, sigma2, log_likelihood = closed_form(model.adata.X)
    assert model.get_elbo() == pytest.approx(log_likelihood, rel=1e-5)
    found, mu, psi = values(model)
    assert subspace_angles(found, W).max() < 2e-3
    np.testing.assert_allclose(np.abs(found), np.abs(W), atol=5e-3)  # the axes themselves
    np.testing.assert_allclose(mu, model.adata.X.mean(0), atol=0.01)
    assert psi == pytest.approx(np.full(D, sigma2), rel=1e-3)


def test_factor_analysis_has_no_gradient_left(factors: FactorAnalysis) -> None:
    """At the maximum the model's variances are those of the data (Bishop, exercise 12.22)."""
    X = np.asarray(factors.adata.X, float)
    W, mu, psi = values(factors)
    np.testing.assert_allclose((W @ W.T).diagonal() + psi, X.var(0), rtol=2e-3)
    np.testing.assert_allclose(mu, X.mean(0), atol=2e-3)
    sd = np.sqrt(psi)  # and W is the leading subspace of the standardised covariance
    _, axes = np.linalg.eigh(np.cov(((X - mu) / sd).T, bias=True))
    assert subspace_angles(W / sd[:, None], axes[:, -K:]).max() < 5e-3
    assert factors.get_elbo() > fitted(PPCA, data()).get_elbo() + 0.1


def test_random_start_finds_the_same_maximum(factors: FactorAnalysis) -> None:
    random = fitted(FactorAnalysis, start=None)
    assert random.get_elbo() == pytest.approx(factors.get_elbo(), abs=2e-3)
    assert subspace_angles(values(random)[0], values(factors)[0]).max() < 1e-2
    assert random.history["elbo_train"].iloc[0, 0] > factors.history["elbo_train"].iloc[0, 0] + 1


def test_minibatches_and_units_do_not_move_it(factors: FactorAnalysis) -> None:
    scaled = data()
    unit = np.logspace(-3, 3, D)
    scaled.X = (scaled.X * unit).astype(np.float32)
    model = fitted(FactorAnalysis, scaled, batch_size=100)
    W, _, psi = values(model)
    expected, _, noise = values(factors)
    assert subspace_angles(W / unit[:, None], expected).max() < 1e-2
    np.testing.assert_allclose(psi / unit**2, noise, rtol=0.02)
    assert model.get_elbo() == pytest.approx(factors.get_elbo() - np.log(unit).sum(), abs=0.01)


def test_elbo_is_the_log_density(factors: FactorAnalysis) -> None:
    X = factors.adata.X
    exact = exact_log_density(factors, X)
    np.testing.assert_allclose(
        factors.get_elbo(num_samples=1, return_mean=False), exact, rtol=1e-5, atol=1e-4
    )
    assert factors.get_elbo(num_samples=1) == pytest.approx(exact.mean(), rel=1e-6)
    assert factors.get_marginal_ll(n_mc_samples=2) == pytest.approx(exact.mean(), rel=1e-6)
    assert factors.estimate_elbo(num_samples=4).mcse < 1e-4


# ---------------------------------------------------------------------- recovery


@pytest.mark.parametrize(("cls", "noise"), [(PPCA, "isotropic"), (FactorAnalysis, "diagonal")])
def test_recovers_the_parameters(cls: Any, noise: str) -> None:
    adata = data(noise, seed=3, n=2000)
    model = fitted(cls, adata)
    W, mu, psi = values(model)
    truth = adata.varm["W"]
    np.testing.assert_allclose(W @ W.T, truth @ truth.T, atol=0.15 * (truth @ truth.T).max())
    np.testing.assert_allclose(mu, adata.var["mu"], atol=0.3)
    np.testing.assert_allclose(psi, adata.var["psi"], rtol=0.2)
    # z is known up to the rotation; W z is not changed by it
    drawn = model.sample_posterior("loc", num_samples=200, indices=np.arange(400))["loc"].values
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    true = adata.obsm["loc"][:400]
    assert 0.85 < ((low < true) & (true < high)).mean() < 0.94


def test_posterior_of_the_factors_is_calibrated(factors: FactorAnalysis) -> None:
    table = pv.criticism.encoder_sbc(factors, num_simulations=200).table
    assert (table["verdict"] != "fails").all()


# ---------------------------------------------------------------------- results


def test_loadings_and_explained_variance(ppca: PPCA) -> None:
    loadings = ppca.get_loadings()
    assert list(loadings.index) == list(ppca.adata.var_names)
    assert list(loadings.columns) == ["Z_0", "Z_1"]
    np.testing.assert_allclose(loadings, values(ppca)[0], rtol=1e-6)
    explained = ppca.get_explained_variance()
    assert explained["variance"].is_monotonic_decreasing
    eigenvalues = np.linalg.eigvalsh(np.cov(np.asarray(ppca.adata.X, float).T, bias=True))[::-1]
    sigma2 = eigenvalues[K:].mean()
    np.testing.assert_allclose(explained["variance"], eigenvalues[:K] - sigma2, rtol=2e-3)
    np.testing.assert_allclose(
        explained["share"], (eigenvalues[:K] - sigma2) / eigenvalues.sum(), rtol=2e-3
    )


def test_latent_representation_goes_with_the_loadings(factors: FactorAnalysis) -> None:
    z = factors.get_latent_representation()
    W, mu, psi = values(factors)
    gain = W.T @ np.linalg.inv(W @ W.T + np.diag(psi))
    np.testing.assert_allclose(z, (factors.adata.X - mu) @ gain.T, atol=1e-4)
    mean, variance = factors.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(mean, z)
    np.testing.assert_allclose(variance[0], np.diag(np.eye(K) - gain @ W), rtol=1e-4)
    one = factors.get_latent_representation(give_mean=False)
    assert one.std(0) == pytest.approx(np.ones(K), abs=0.15)
    new = data(seed=9, n=20)
    new.varm["W"] = factors.adata.varm["W"]
    assert factors.get_latent_representation(new).shape == (20, K)


def test_sites_carry_names(factors: FactorAnalysis) -> None:
    drawn = factors.sample_posterior(["W", "z", "loc"], num_samples=2)
    assert drawn["W"].dims == ("draw", "var", "factor")
    assert drawn["z"].dims == ("draw", "obs", "factor")
    assert list(drawn["loc"].coords["var"].values) == list(factors.adata.var_names)


def test_restarts_agree_after_alignment() -> None:
    model = fitted(FactorAnalysis, n_restarts=3, num_workers=1, max_epochs=400)
    idata = model.to_arviz(["W"], num_samples=2)
    loadings = idata.posterior["W"].values.astype(float)  # (restart, draw, var, factor)
    turned = align({"W": loadings}, {"W": 1}, "rotation")["W"]
    assert np.abs(turned - turned[:1]).max() < 0.02
    # each is on its principal axes, so that here nothing but signs is left to align, and not even
    # these: the largest loading is positive
    assert np.abs(loadings - loadings[:1]).max() < 0.05
    assert model.get_loadings().to_numpy() == pytest.approx(loadings[model.restarts["best"]][0, 0])


# ---------------------------------------------------------------------- what every model does


def test_save_load_and_train_on(factors: FactorAnalysis, tmp_path: Path) -> None:
    factors.save(tmp_path / "m")
    loaded = FactorAnalysis.load(tmp_path / "m", adata=factors.adata)
    np.testing.assert_array_equal(loaded.get_loadings(), factors.get_loadings())
    assert loaded.get_elbo() == factors.get_elbo()
    without = pv.load(tmp_path / "m")
    np.testing.assert_array_equal(without.get_loadings(), factors.get_loadings())
    before = [p.detach().clone() for p in loaded.module.parameters()]
    loaded.train(max_epochs=2, batch_size=50, plan_kwargs={"lr": 0.01}, **QUICK)
    after = loaded.module.parameters()
    assert all((a != b).any() for a, b in zip(after, before, strict=True))


def test_sparse_data_and_layers() -> None:
    adata = data(n=200)
    expected = fitted(FactorAnalysis, adata.copy(), max_epochs=1).get_elbo()
    adata.layers["values"] = sparse.csr_matrix(adata.X)
    adata.X = None
    FactorAnalysis.setup_anndata(adata, layer="values")
    model = FactorAnalysis(adata, n_latent=K)
    model.train(max_epochs=1, **QUICK)
    assert model.get_elbo() == pytest.approx(expected, rel=1e-6)


def test_simulated_data_have_the_covariance_of_the_model(factors: FactorAnalysis) -> None:
    simulated = factors.posterior_predictive("X", num_samples=20)["X"].values.reshape(-1, D)
    W, _, psi = values(factors)
    np.testing.assert_allclose(np.cov(simulated.T), W @ W.T + np.diag(psi), atol=0.25)


def test_held_out_observations_have_no_part_in_training() -> None:
    adata = data(n=300)
    split = [np.arange(200), np.arange(0), np.arange(200, 300)]
    external = {"datasplitter_kwargs": {"external_indexing": split}}
    model = fitted(FactorAnalysis, adata, **external)
    other = adata.copy()
    other.X[200:] += 100 * np.random.default_rng(0).normal(size=(100, D)).astype(np.float32)
    moved = fitted(FactorAnalysis, other, **external)
    np.testing.assert_allclose(moved.get_loadings(), model.get_loadings(), atol=0.02)
    assert len(fitted(FactorAnalysis, adata, train_size=0.5, max_epochs=1).train_indices) == 150


# ---------------------------------------------------------------------- bad input


def test_constant_variables() -> None:
    adata = data(n=100)
    adata.X[:, 3] = 7.0
    FactorAnalysis.setup_anndata(adata)
    with pytest.raises(DataError, match=r"1 variables are constant.*gene_3.*Leave them out"):
        FactorAnalysis(adata, n_latent=K)
    model = fitted(PPCA, adata, max_epochs=1)  # one noise for all: no problem
    assert np.abs(model.get_loadings().loc["gene_3"]).max() < 1e-5
    adata.X[:] = 1.0
    with pytest.raises(DataError, match="All variables are constant"):
        PPCA(adata, n_latent=K)


def test_a_variable_that_is_constant_in_training() -> None:
    adata = data(n=100)
    adata.X[:50, 3] = 7.0
    FactorAnalysis.setup_anndata(adata)
    model = FactorAnalysis(adata, n_latent=K)
    split = {"external_indexing": [np.arange(50), np.arange(0), np.arange(50, 100)]}
    with pytest.raises(DataError, match="gene_3"):
        model.train(datasplitter_kwargs=split, **QUICK)


def test_bad_input(factors: FactorAnalysis) -> None:
    adata = data(n=20)
    FactorAnalysis.setup_anndata(adata)
    with pytest.raises(ModelError, match=f"less than the {D} variables, got {D}"):
        FactorAnalysis(adata, n_latent=D)
    few = FactorAnalysis(adata, n_latent=12)
    with pytest.raises(DataError, match="lower n_latent"):
        few.train(datasplitter_kwargs={"external_indexing": [np.arange(9), [], []]}, **QUICK)
    with pytest.raises(TrainingError, match="start must be None or 'components', got 'pathfinder'"):
        few.train(start="pathfinder", **QUICK)
    adata.X[2, 1] = np.nan
    with pytest.raises(DataError):
        FactorAnalysis.setup_anndata(adata)
    with pytest.raises(RegistryError, match="var_names"):
        factors.get_latent_representation(data(n=20)[:, ::-1].copy())
    with pytest.raises(RegistryError):
        factors.get_latent_representation(data(n=20)[:, 1:].copy())
