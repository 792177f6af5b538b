"""Evidence bounds against exact evidence."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from tests.module.stories import Factors, Hierarchy, Mean, Pair, given

from pyrovi.data.synthetic import synthetic_iid
from pyrovi.distributions import compiled_counts
from pyrovi.model import SCVI
from pyrovi.module import obs_plate


@pytest.fixture(scope="module")
def column() -> np.ndarray:
    return np.random.default_rng(1).normal(1.0, 2.0, size=(30, 1))


def test_elbo_of_the_exact_posterior_is_the_log_evidence_global(column: np.ndarray) -> None:
    model = given(column, Mean(*Mean.exact_posterior(column)))
    # the bound is exact on average over the posterior, and its sum needs many draws
    assert model.get_elbo(num_samples=20_000) * 30 == pytest.approx(
        Mean.log_evidence(column), abs=0.02
    )


def test_elbo_of_the_exact_posterior_is_the_log_evidence_hierarchy(column: np.ndarray) -> None:
    model = given(column, Hierarchy(column))
    exact = Hierarchy.log_evidence(column)
    assert model.get_elbo(num_samples=5_000) * 30 == pytest.approx(exact, abs=0.05)


def test_marginal_ll_with_the_exact_encoder_needs_one_sample() -> None:
    module = Factors()
    X = module.simulate(50)
    model, exact = given(X, module), module.log_marginal(X.astype(np.float32))
    for samples in (1, 7, 40):
        found = model.get_marginal_ll(n_mc_samples=samples, return_mean=False, batch_size=16)
        np.testing.assert_allclose(found, exact, atol=2e-5)
    assert model.get_marginal_ll(n_mc_samples=3) == pytest.approx(exact.mean(), abs=1e-5)


def test_elbo_with_the_exact_encoder_is_the_marginal_likelihood() -> None:
    module = Factors()
    X = module.simulate(40)
    model, exact = given(X, module), module.log_marginal(X.astype(np.float32))
    local = model.get_elbo(num_samples=4_000, return_mean=False)
    np.testing.assert_allclose(local, exact, atol=0.15)
    assert model.get_elbo(num_samples=4_000) == pytest.approx(exact.mean(), abs=0.02)


@pytest.mark.parametrize(("widen", "shift"), [(1.3, 0.0), (0.8, 0.2)])
def test_bounds_with_a_wrong_encoder_never_exceed_and_tighten(widen: float, shift: float) -> None:
    module = Factors(widen=widen, shift=shift)
    X = module.simulate(50)
    model, exact = given(X, module), module.log_marginal(X.astype(np.float32)).mean()
    values = []
    for samples in (1, 10, 200):
        # minibatches of one of fifty: the plate's scale must not enter the weights
        draws = [
            model.get_marginal_ll(n_mc_samples=samples, seed=s, batch_size=1 if s == 0 else 50)
            for s in range(6)
        ]
        values.append(np.mean(draws))
        assert np.mean(draws) < exact + 5 * np.std(draws) / np.sqrt(len(draws)) + 1e-3
    assert values[0] < exact - 0.05
    assert values[2] == pytest.approx(exact, abs=0.05)


def test_elbo_gap_is_the_kl_of_the_guide() -> None:
    module = Factors(shift=0.3)
    X = module.simulate(30)
    model = given(X, module)
    _, covariance = module.moments(torch.ones(1, 4))
    shift = torch.full((2,), 0.3)
    gap = float(shift @ torch.linalg.inv(covariance) @ shift / 2)
    exact = module.log_marginal(X.astype(np.float32)).mean()
    assert model.get_elbo(num_samples=5_000) == pytest.approx(exact - gap, abs=0.03)


def test_reconstruction_error_is_the_negative_expected_log_likelihood() -> None:
    module = Factors()
    X = module.simulate(25).astype(np.float32)
    model = given(X, module)
    loc, covariance = (t.double().numpy() for t in module.moments(torch.as_tensor(X)))
    W = module.W.double().numpy()
    residual = ((X - loc @ W) ** 2).sum(1) + np.trace(W.T @ covariance @ W)
    exact = residual / (2 * module.sd**2) + 4 * np.log(module.sd * np.sqrt(2 * np.pi))
    found = model.get_reconstruction_error(num_samples=4_000, return_mean=False)
    np.testing.assert_allclose(found["reconstruction_loss"], exact, atol=0.3)
    mean = model.get_reconstruction_error(num_samples=4_000)["reconstruction_loss"]
    assert mean == pytest.approx(exact.mean(), abs=0.05)


def test_evidence_is_of_the_given_observations_in_their_order() -> None:
    module = Factors()
    X = module.simulate(20)
    model, exact = given(X, module), module.log_marginal(X.astype(np.float32))
    order = [7, 3, 11]
    found = model.get_marginal_ll(indices=order, n_mc_samples=2, return_mean=False)
    np.testing.assert_allclose(found, exact[order], atol=2e-5)
    other = model.adata[order].copy()
    found = model.get_marginal_ll(other, n_mc_samples=2, return_mean=False)
    np.testing.assert_allclose(found, exact[order], atol=2e-5)


def test_global_latents_are_averaged_over_their_posterior(column: np.ndarray) -> None:
    loc, scale = Mean.exact_posterior(column)
    model = given(column, Mean(loc, scale))
    found = model.get_marginal_ll(n_mc_samples=1, num_global_samples=4_000, return_mean=False)
    predictive = stats.norm(loc, np.hypot(scale, Mean.sd)).logpdf(column[:, 0])
    np.testing.assert_allclose(found, predictive, atol=0.02)


def test_auxiliary_sites_of_automatic_guides_count_once(column: np.ndarray) -> None:
    """AutoNormal draws in unconstrained space: the Jacobian belongs to the bound."""

    def story(X: torch.Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with obs_plate():
            size = pyro.sample("size", dist.LogNormal(0.0, 1.0))
            pyro.sample("X", dist.Exponential(rate * size[..., None]).to_event(1), obs=X)

    X = np.abs(column) + 0.1
    model = given(X, Pair(story, AutoNormal(story, init_scale=0.3)))
    found = model.get_elbo(num_samples=4_000, return_mean=False)
    guide = model.module.guide
    # by hand: log-normal guides of both
    rng = np.random.default_rng(0)
    rate = stats.lognorm(0.3, scale=np.exp(guide.locs.rate.item()))
    loc = guide.locs.size.detach().numpy()
    draws = np.exp(loc + 0.3 * rng.normal(size=(20_000, 30)))
    q = stats.lognorm(0.3, scale=np.exp(loc)).logpdf(draws)
    rates = rate.rvs((20_000, 1), random_state=rng)
    p = stats.lognorm(1.0).logpdf(draws) + stats.expon(scale=1 / (rates * draws)).logpdf(X[:, 0])
    np.testing.assert_allclose(found, (p - q).mean(0), atol=0.12)
    kl = (rate.logpdf(rates) - stats.gamma(2.0).logpdf(rates)).mean()
    bound = model.get_elbo(num_samples=4_000)
    assert (found.mean() - bound) * 30 == pytest.approx(kl, abs=0.05)


def test_queries_leave_no_trace(column: np.ndarray) -> None:
    module = Factors()
    module.dropout = torch.nn.Dropout(0.5)
    module.norm = torch.nn.BatchNorm1d(2)
    model = given(module.simulate(20), module)
    module.train()
    module.norm.eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    model.get_elbo()
    model.get_marginal_ll(n_mc_samples=3)
    model.get_reconstruction_error()
    model.sample_posterior(num_samples=3)
    assert module.training
    assert module.dropout.training
    assert not module.norm.training
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_elbo_of_held_out_cells_is_the_same_without_the_compiled_loops(
    likelihood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = synthetic_iid(batch_size=100, n_genes=200, n_proteins=0, sparse_format="csr_matrix")
    SCVI.setup_anndata(adata)
    elbos = {}
    for kernels in (True, False):
        if not kernels:
            monkeypatch.setattr(compiled_counts, "applies", lambda *_: False)
        model = SCVI(adata, n_hidden=16, gene_likelihood=likelihood)
        model.train(3, train_size=0.5, batch_size=100, enable_progress_bar=False)
        elbos[kernels] = model.get_elbo(indices=model.validation_indices, num_samples=5)
    assert elbos[True] == pytest.approx(elbos[False], rel=1e-5)
