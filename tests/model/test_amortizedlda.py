"""AmortizedLDA: topics that were put in are found, and perplexities are the right way up."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment

import pyrovi as pv
from pyrovi.errors import DataError, ModelError, RegistryError
from pyrovi.model import AmortizedLDA

N, G, K, TOTAL = 400, 60, 4, 400
PRIORS = {"cell_topic_prior": 0.5, "topic_feature_prior": 0.5}
TRAIN = {"train_size": 1.0, "plan_kwargs": {"lr": 2e-2, "lr_decay": 0.02}}


def untrained(n: int = N, total: int = TOTAL, **options) -> AmortizedLDA:
    X = np.random.default_rng(0).multinomial(total, np.full(G, 1 / G), size=n)
    adata = anndata.AnnData(
        X.astype(np.float32),
        obs=pd.DataFrame(index=[f"cell_{i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"gene_{g}" for g in range(G)]),
    )
    AmortizedLDA.setup_anndata(adata)
    return AmortizedLDA(adata, n_topics=K, **PRIORS, **options)


@pytest.fixture(scope="module")
def simulated() -> anndata.AnnData:
    """Data of the model's own story."""
    return untrained().simulate(seed=1)


@pytest.fixture(scope="module")
def model(simulated) -> AmortizedLDA:
    pv.settings.enable_progress_bar = False
    AmortizedLDA.setup_anndata(simulated)
    fitted = AmortizedLDA(simulated, n_topics=K, **PRIORS)
    fitted.train(250, **TRAIN)
    return fitted


def matched(model: AmortizedLDA, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The model's topic of each true one, and the cosines of the pairs."""
    found = model.get_feature_by_topic().to_numpy().T
    cosines = unit(beta) @ unit(found).T
    rows, columns = linear_sum_assignment(-cosines)
    return columns, cosines[rows, columns]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def entropy_perplexity(X: np.ndarray, p: np.ndarray) -> float:
    return float(np.exp(-(X * np.log(p)).sum() / X.sum()))


def test_topics_are_recovered(model, simulated):
    truth = pv.model.truth_of(simulated)
    order, cosines = matched(model, truth["beta"].to_numpy())
    assert cosines.min() > 0.95
    theta = truth["theta"].to_numpy()
    found = model.get_latent_representation().to_numpy()[:, order]
    assert np.corrcoef(found.ravel(), theta.ravel())[0, 1] > 0.95


def test_intervals_of_the_proportions_cover(model, simulated):
    truth = pv.model.truth_of(simulated)
    order, _ = matched(model, truth["beta"].to_numpy())
    draws = model.sample_posterior("theta", num_samples=400, reduce=["q05", "q95"])["theta"]
    low, high = draws.to_numpy()[:, :, order]
    theta = truth["theta"].to_numpy()
    assert 0.80 < ((low <= theta) & (theta <= high)).mean() < 0.97


def test_perplexity_of_the_truth_bounds_that_of_the_fit(model, simulated):
    truth = pv.model.truth_of(simulated)
    X = simulated.X
    exact = entropy_perplexity(X, truth["theta"].to_numpy() @ truth["beta"].to_numpy())
    completed = model.get_completion_perplexity()
    assert exact < completed < 1.03 * exact
    bound = model.get_perplexity()
    assert exact < bound < 1.12 * exact
    frequencies = entropy_perplexity(X, X.sum(0) / X.sum() + 1e-12)
    assert bound < frequencies < 1.01 * G


def test_perplexity_is_at_least_one_and_lower_for_a_better_model(model, simulated):
    worse = AmortizedLDA(simulated, n_topics=K, **PRIORS)
    worse.train(3, train_size=1.0)
    assert 1 <= model.get_perplexity() < worse.get_perplexity()
    assert 1 <= model.get_completion_perplexity() < worse.get_completion_perplexity()
    assert model.get_elbo() > worse.get_elbo()


def test_perplexity_is_one_where_nothing_is_uncertain():
    X = np.zeros((20, 3), np.float32)
    X[:, 0] = 500
    adata = anndata.AnnData(X)
    with pytest.warns(UserWarning, match="without a single count"):
        AmortizedLDA.setup_anndata(adata)
    model = AmortizedLDA(adata, n_topics=2)
    model.train(300, train_size=1.0, lr=0.1)
    assert model.get_perplexity() == pytest.approx(1.0, abs=0.03)
    assert model.get_completion_perplexity() == pytest.approx(1.0, abs=0.03)


def test_perplexity_is_that_of_the_bound(model, simulated):
    """The bound of :meth:`get_elbo`, less the logarithm of the number of orders."""
    from scipy.special import gammaln

    rows = np.arange(50)
    X = simulated.X[rows].astype(np.float64)
    local = model.get_elbo(indices=rows, return_mean=False).sum()
    orders = gammaln(X.sum(1) + 1).sum() - gammaln(X + 1).sum()
    expected = np.exp(-(local - orders) / X.sum())
    assert model.get_perplexity(indices=rows) == pytest.approx(expected, rel=1e-4)


def test_completion_depends_on_what_is_seen(model):
    little = model.get_completion_perplexity(fraction=0.02)
    assert model.get_completion_perplexity(fraction=0.8) < little
    for fraction in (0.0, 1.0):
        with pytest.raises(ModelError, match="fraction must be between 0 and 1"):
            model.get_completion_perplexity(fraction=fraction)


def test_results_carry_names_and_sum_to_one(model, simulated):
    names = [f"topic_{k}" for k in range(K)]
    theta = model.get_latent_representation(indices=[5, 2, 9])
    assert list(theta.index) == ["cell_5", "cell_2", "cell_9"]
    assert list(theta.columns) == names
    np.testing.assert_allclose(theta.sum(axis=1), 1, rtol=1e-5)
    beta = model.get_feature_by_topic()
    assert list(beta.index) == list(simulated.var_names)
    assert list(beta.columns) == names
    np.testing.assert_allclose(beta.sum(axis=0), 1, rtol=1e-5)
    posterior = model.to_arviz(num_samples=5, sites=["beta", "theta"]).posterior
    assert posterior["beta"].sel(topic="topic_1", var="gene_3").shape == (1, 5)
    assert posterior["theta"].sel(topic="topic_1", obs="cell_7").shape == (1, 5)


def test_the_means_are_those_of_the_sites(model):
    theta = model.sample_posterior("theta", num_samples=2000, reduce="mean")["theta"]
    ours = model.get_latent_representation(n_samples=2000)
    np.testing.assert_allclose(ours, theta, atol=0.02)
    beta = model.sample_posterior("beta", num_samples=500, reduce="mean")["beta"]
    np.testing.assert_allclose(model.get_feature_by_topic(n_samples=500).T, beta, atol=2e-3)


def test_rows_in_any_order_and_batches_agree(model):
    rows = [31, 4, 17, 200]
    whole = model.get_latent_representation(n_samples=2000)
    some = model.get_latent_representation(indices=rows, n_samples=2000, batch_size=3)
    np.testing.assert_allclose(some, whole.iloc[rows], atol=0.02)


def test_predictive_counts_have_the_observed_totals(model, simulated):
    X = model.posterior_predictive(num_samples=20, indices=np.arange(30))["X"]
    assert X.dims == ("draw", "obs", "var")
    np.testing.assert_array_equal(X.sum("var"), np.full((20, 30), TOTAL))
    likelihood = model.log_likelihood(num_samples=3, indices=np.arange(30))["X"]
    assert likelihood.shape == (3, 30)
    assert (likelihood < 0).all()


def test_a_saved_model_answers_alike_and_trains_on(model, simulated, tmp_path):
    model.save(tmp_path / "lda")
    loaded = AmortizedLDA.load(tmp_path / "lda", simulated)
    pd.testing.assert_frame_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    pd.testing.assert_frame_equal(loaded.get_feature_by_topic(), model.get_feature_by_topic())
    assert loaded.get_perplexity() == model.get_perplexity()
    before = {k: p.detach().clone() for k, p in loaded.module.named_parameters()}
    loaded.train(1)
    assert all(bool((before[k] != p).any()) for k, p in loaded.module.named_parameters())


def test_new_data_are_matched_by_name(model, simulated):
    new = anndata.AnnData(simulated.X[:40], simulated.obs[:40].copy(), simulated.var.copy())
    found = model.get_latent_representation(new, n_samples=1000)
    own = model.get_latent_representation(indices=np.arange(40), n_samples=1000)
    np.testing.assert_allclose(found, own, atol=0.03)
    with pytest.raises(RegistryError, match="same names in another order"):
        model.get_latent_representation(new[:, ::-1].copy())
    with pytest.raises(RegistryError, match="gene_59"):
        model.get_latent_representation(new[:, :-1].copy())


def test_restarts_and_local_fit_work(simulated):
    model = AmortizedLDA(simulated, n_topics=2)
    model.train(2, n_restarts=2, num_workers=1)
    assert len(model.restarts) == 2
    fit = model.local_fit(num_inner=200, indices=np.arange(4))
    assert list(fit.index) == list(simulated.obs_names[:4])


def test_bad_input(simulated):
    fractions = anndata.AnnData(np.full((4, 3), 0.5, np.float32))
    with pytest.raises(DataError, match="count"):
        AmortizedLDA.setup_anndata(fractions)
    with pytest.raises(ModelError, match="n_topics"):
        AmortizedLDA(simulated, n_topics=1)
    untrained = AmortizedLDA(simulated, n_topics=2)
    with (
        pytest.warns(UserWarning, match="not trained"),
        pytest.raises(ModelError, match="none to predict"),
    ):
        untrained.get_completion_perplexity(indices=[0], fraction=1 - 1e-12)


def test_the_module_names_the_learning_rate(simulated):
    model = AmortizedLDA(simulated, n_topics=2)
    model.train(1, train_size=1.0)
    assert model.history["lr-Adam"].iloc[-1, 0] == pytest.approx(model.module.default_lr)
    model = AmortizedLDA(simulated, n_topics=2)
    model.train(1, train_size=1.0, lr=0.003)
    assert model.history["lr-Adam"].iloc[-1, 0] == pytest.approx(0.003)
