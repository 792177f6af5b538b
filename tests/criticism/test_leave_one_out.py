"""PSIS-LOO against the exact leave-one-out densities of a linear-Gaussian factor model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDelta
from tests.criticism.exact import exact_loo, exact_model, simulated
from tests.module.stories import Pair, given

from pyrovi.criticism.comparison import compare
from pyrovi.criticism.elpd import difference_estimate
from pyrovi.criticism.leave_one_out import _pointwise, _relative_efficiency, loo
from pyrovi.errors import DataError, ModelError
from pyrovi.model.amortization import amortization_gap
from pyrovi.model.local_fit import local_fit
from pyrovi.module import obs_plate
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.pareto import khat_threshold, psis

DATA = simulated()


@pytest.fixture(scope="module")
def result():
    return loo(exact_model(*DATA, widen=1.2), num_samples=500, num_inner=80)


def test_marginal_loo_is_exact_where_the_conditional_form_is_useless(result) -> None:
    exact = exact_loo(*DATA)
    assert result.elpd == pytest.approx(exact.sum(), abs=1.0)
    np.testing.assert_allclose(result.pointwise["elpd"], exact, atol=0.1)
    assert result.n_bad == 0
    assert result.se == pytest.approx(np.sqrt(300 * exact.var()), rel=0.02)

    conditional = exact_model(*DATA).log_likelihood(num_samples=500)["X"].values
    weights, khat = psis(-conditional)
    wrong = np.log(np.exp(weights + conditional).sum(0)).sum()
    assert wrong - exact.sum() > 100
    assert np.mean(khat > 0.7) > 0.5


def test_effective_number_of_parameters(result) -> None:
    # eight means, hardly shrunk by their prior
    assert result.p_loo == pytest.approx(8, abs=1.5)
    np.testing.assert_allclose(result.pointwise["p_loo"].sum(), result.p_loo)


def test_pointwise_is_named_and_summarised(result) -> None:
    assert list(result.pointwise.index[:2]) == ["cell0", "cell1"]
    assert result.pointwise["elpd"].sum() == pytest.approx(result.elpd)
    assert result.khat_threshold == khat_threshold(500)
    summary = result.summary().loc["loo"]
    assert summary["observations"] == 300
    assert summary["elpd"] == result.elpd
    assert result.sites == {"X": (8,)}


def test_arviz_says_the_same(result) -> None:
    az = pytest.importorskip("arviz")
    found = az.loo(result.to_arviz(), pointwise=True)
    elpd = found.elpd_loo if hasattr(found, "elpd_loo") else found.elpd
    p_loo = found.p_loo if hasattr(found, "p_loo") else found.p
    assert elpd == pytest.approx(result.elpd, rel=1e-6)
    assert found.se == pytest.approx(result.se, rel=2e-3)  # 0.x divides by N, 1.x by N - 1
    assert p_loo == pytest.approx(result.p_loo, rel=1e-4)
    # ArviZ 1.x fits the tails in a way of its own
    tolerance = 1e-6 if hasattr(found, "elpd_loo") else 0.1
    np.testing.assert_allclose(found.pareto_k, result.pointwise["khat"], rtol=0, atol=tolerance)


def test_same_seed_same_bits_and_the_callers_random_state_is_left_alone() -> None:
    model = exact_model(*simulated(30))
    before = torch.get_rng_state()
    one = loo(model, num_samples=30, num_inner=5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.pointwise.equals(loo(model, num_samples=30, num_inner=5, seed=3).pointwise)
    assert not one.pointwise.equals(loo(model, num_samples=30, num_inner=5, seed=4).pointwise)


def test_bias_of_few_inner_draws_is_foretold() -> None:
    X, W, sd = simulated(100)
    model = exact_model(X, W, sd, widen=1.8)
    few, many = (loo(model, num_samples=150, num_inner=k, seed=1) for k in (20, 500))
    assert few.inner_bias > 5
    assert many.elpd - few.elpd == pytest.approx(few.inner_bias - many.inner_bias, rel=0.3)
    assert any("raise num_inner" in note for note in few.notes())
    assert many.notes() == []
    assert loo(exact_model(X, W, sd), num_inner=1).inner_bias == pytest.approx(0, abs=1e-3)


def test_likelihoods_that_differ_by_thousands_of_nats_neither_over_nor_underflow() -> None:
    values = np.random.default_rng(0).normal(-5000, 900, size=(100, 3))
    values = xr.DataArray(values, dims=("draw", "obs"), coords={"obs": ["a", "b", "c"]})
    table, _ = _pointwise(values, xr.Dataset(), 1.0)
    assert np.isfinite(table["elpd"]).all()
    assert (table["elpd"] >= values.min("draw").values - 1e-6).all()
    assert not table["good"].any()


def test_an_outlier_is_flagged() -> None:
    X, W, sd = simulated(80)
    X[4] += 40.0
    result = loo(exact_model(X, W, sd), num_samples=500, num_inner=20)
    assert list(result.pointwise.index[~result.pointwise["good"]]) == ["cell4"]
    assert result.n_bad == 1


def test_stored_draws_of_mcmc_are_weighed_with_proposals_of_their_own() -> None:
    X, W, sd = simulated(60)
    model = exact_model(X, W, sd)
    draws = model.sample_posterior(["m", "z"], num_samples=600, seed=1)
    values = {name: torch.as_tensor(draws[name].values).float() for name in ("m", "z")}
    chains = {name: v.reshape(2, 300, *v.shape[1:]) for name, v in values.items()}
    names = [str(name) for name in model.adata.obs_names]
    model.module.use_posterior(StoredDraws(chains, {"z": -2}, names))
    found = loo(model, num_inner=400)
    assert found.settings["num_samples"] == 600
    assert found.elpd == pytest.approx(exact_loo(X, W, sd).sum(), abs=1.0)
    assert found.n_bad == 0
    assert (found.pointwise["inner_khat"] < 0.6).all()
    for diagnose in (local_fit, amortization_gap):
        with pytest.raises(ModelError, match="set of stored draws"):
            diagnose(model)


# ---------------------------------------------------------------------- subsampled


def test_subsampled_loo_covers_the_whole(result) -> None:
    model = exact_model(*DATA, widen=1.2)
    found = loo(model, num_samples=500, num_inner=80, subsample=60)
    assert len(found.pointwise) == 60
    assert found.n_obs == 300
    assert found.elpd == pytest.approx(result.elpd, abs=3 * found.subsampling_se + 0.5)
    assert found.subsampling_se < 3
    assert found.se == pytest.approx(result.se, rel=0.05)
    assert found.p_loo == pytest.approx(8, abs=3)
    assert found.approximation is not None
    assert len(found.approximation) == 300
    assert found.summary()["evaluated"].item() == 60


def test_difference_estimator_is_unbiased_and_knows_its_error() -> None:
    rng = np.random.default_rng(0)
    terms = rng.normal(-3, 1, 200)
    cheap = terms + rng.normal(0.3, 0.2, 200)
    estimates, errors, population = [], [], []
    for _ in range(4000):
        sampled = rng.choice(200, 20, replace=False)
        estimate, error, se = difference_estimate(terms[sampled], cheap, sampled)
        estimates.append(estimate)
        errors.append(error**2)
        population.append(se**2)
    assert np.mean(estimates) == pytest.approx(terms.sum(), abs=4 * np.std(estimates) / 63)
    assert np.mean(errors) == pytest.approx(np.var(estimates), rel=0.1)
    assert np.mean(population) == pytest.approx(200 * terms.var(ddof=1), rel=0.02)
    # a useless approximation costs precision, not truth
    zero = np.zeros(200)
    exact = difference_estimate(terms, zero, np.arange(200))
    assert exact == pytest.approx((terms.sum(), 0.0, np.sqrt(200 * terms.var(ddof=1))))


@pytest.mark.parametrize("size", [1, 30, 31])
def test_bad_subsample(size: int) -> None:
    with pytest.raises(DataError, match="subsample must be between 2 and 29"):
        loo(exact_model(*simulated(30)), subsample=size)


# ---------------------------------------------------------------------- refused


def _pair(*, in_model: bool) -> Pair:
    """A network of the model, or of the guide only."""

    def model(X: torch.Tensor) -> None:
        m = pyro.sample("m", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with obs_plate():
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = m + (pair.net(z) if in_model else z[..., :1])
            pyro.sample("X", dist.Normal(loc, 1.0).to_event(1), obs=X)

    def guide(X: torch.Tensor) -> None:
        pyro.sample("m", dist.Normal(pair.loc, 0.5).to_event(1))
        with obs_plate():
            loc = X[..., :2] if in_model else pair.net(X[..., :2])[..., :2]
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    pair = Pair(model, guide)
    pair.net = torch.nn.Linear(2, 3)
    pair.loc = torch.nn.Parameter(torch.zeros(3))
    return pair


def test_refuses_trained_parameters_of_the_model_but_not_of_the_guide() -> None:
    X = np.random.default_rng(0).normal(size=(10, 3))
    with pytest.raises(ModelError, match=r"in-sample: the parameters 'net.weight', 'net.bias' of"):
        loo(given(X, _pair(in_model=True)))
    assert np.isfinite(loo(given(X, _pair(in_model=False)), num_samples=50, num_inner=20).elpd)


def test_refuses_point_estimates_of_globals() -> None:
    def model(X: torch.Tensor) -> None:
        m = pyro.sample("m", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with obs_plate():
            pyro.sample("X", dist.Normal(m, 1.0).to_event(1), obs=X)

    X = np.random.default_rng(0).normal(size=(10, 3))
    with pytest.raises(ModelError, match=r"global latents 'm'.*held_out\(model\)"):
        loo(given(X, Pair(model, AutoDelta(model))))


def test_a_decoder_is_refused(trained) -> None:
    with pytest.raises(ModelError, match=r"'decoder\..* and \d+ more of the model.*held_out"):
        loo(trained)


def test_only_training_observations_can_be_left_out() -> None:
    X, W, sd = simulated(20)
    model = exact_model(X, W, sd, fit_to=X[:15])
    model.train_indices = np.arange(15)
    found = loo(model, num_samples=400, num_inner=1)
    assert found.n_obs == 15
    assert found.elpd == pytest.approx(exact_loo(X[:15], W, sd).sum(), abs=0.5)
    with pytest.raises(DataError, match="1 of the 2 observations were not trained on"):
        loo(model, indices=[3, 17])
    with pytest.raises(DataError, match="names an observation twice"):
        loo(model, indices=[3, 3])


def test_tails_are_as_long_as_the_effective_number_of_draws_allows() -> None:
    """Chains that stick have fewer draws to tell the shape of a tail from; ArviZ agrees."""
    rng = np.random.default_rng(0)
    values = xr.DataArray(-np.abs(rng.standard_t(3, size=(400, 5))), dims=("draw", "obs"))
    values = values.assign_coords(obs=list("abcde"))
    table, _ = _pointwise(values, xr.Dataset(), 0.1)
    weights, khat = psis(-values.values, reff=0.1)
    np.testing.assert_allclose(table["khat"], khat)
    assert not np.allclose(khat, psis(-values.values)[1])
    np.testing.assert_allclose(table["elpd"], np.log(np.exp(weights + values.values).sum(0)))


def test_relative_efficiency_is_that_of_the_stored_chains() -> None:
    rng = np.random.default_rng(1)
    steps = rng.normal(size=(4, 500))
    chain = np.zeros((4, 500))
    for t in range(1, 500):
        chain[:, t] = 0.8 * chain[:, t - 1] + steps[:, t]  # efficiency (1 - 0.8) / (1 + 0.8)
    model = exact_model(*DATA)
    shape = model.sample_posterior("m", num_samples=1)["m"].shape[1:]
    draws = torch.as_tensor(chain).reshape(4, 500, *(1,) * len(shape)).expand(4, 500, *shape)
    model.module.use_posterior(StoredDraws({"m": draws}))
    values = xr.Dataset({"m": (("draw", "k"), chain.reshape(-1, 1))})
    assert _relative_efficiency(model, values) == pytest.approx(0.2 / 1.8, rel=0.35)
    assert _relative_efficiency(model, values.isel(draw=slice(0, 100))) == 1.0
    model.module.use_posterior(None)
    assert _relative_efficiency(model, values) == 1.0


def test_a_sum_that_few_observations_are_reliable_in_is_unusable(result) -> None:
    assert not result.unusable
    assert repr(result).startswith("LOO of")
    half, more = (replace(result, n_bad=n) for n in (150, 151))
    assert not half.unusable
    assert more.unusable
    assert repr(more).startswith("UNUSABLE: the weights of 151 of 300 observations")
    assert more._repr_html_().startswith("<div><b>UNUSABLE")
    assert len(compare({"a": result, "b": half})) == 2
    with pytest.raises(ModelError, match="The loo of 'b' is unusable: 151 of 300"):
        compare({"a": result, "b": more})
