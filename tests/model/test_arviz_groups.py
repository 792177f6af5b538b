"""What every group of an export to ArviZ holds, against values that are known."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from tests.criticism.exact import exact_conditional, exact_model, simulated
from tests.model import arviz_lines
from tests.model.arviz_lines import Positive, dataset, group_names, positive_model, table
from tests.model.test_restarts import Factors, factor_data
from tests.train.toys import QUIET
from torch import Tensor

import pyrovi as pv
from pyrovi.errors import ModelError
from pyrovi.model.arviz_export import GROUPS
from pyrovi.model.chains import in_chain
from pyrovi.posterior.pareto import psis

pytestmark = pytest.mark.filterwarnings("ignore:This .* is not trained")

OF_GUIDES = ("posterior", "sample_stats", "log_prior", "log_likelihood")


@pytest.fixture(scope="module")
def sampled() -> Any:
    """The regression with group effects, by NUTS."""
    model = pv.from_pyro(arviz_lines.groups, table())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(
            method="nuts", num_samples=150, num_warmup=150, num_chains=2, num_workers=2,
            enable_progress_bar=False,
        )  # fmt: skip
    return model


@pytest.fixture(scope="module")
def fitted() -> Any:
    """The same by SVI, three times."""
    model = pv.from_pyro(arviz_lines.groups, table(), guide="mvn")
    model.train(60, n_restarts=3, num_workers=1, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def factors() -> Any:
    adata = factor_data()
    Factors.setup_anndata(adata)
    model = Factors(adata)
    model.train(
        200, lr=0.15, n_restarts=3, num_workers=1, batch_size=None, train_size=1.0,
        plan_kwargs={"lr_decay": 0.01, "n_epochs_kl_warmup": 0}, averaging=True, **QUIET,
    )  # fmt: skip
    return model


def test_every_chain_is_a_query_of_its_own(fitted: Any) -> None:
    container = fitted.to_arviz(num_samples=7, seed=5, groups=OF_GUIDES)
    posterior = dataset(container, "posterior")
    assert posterior["a"].dims == ("chain", "draw", "group")
    assert posterior["a"].shape == (3, 7, 4)
    assert list(posterior["group"].values) == ["u", "v", "w", "x"]
    first = fitted.sample_posterior(num_samples=7, seed=5)
    for chain in range(3):
        with in_chain(fitted, chain):
            same_noise = fitted.sample_posterior(num_samples=7, seed=5)["b"].values
        assert np.array_equal(posterior["b"].values[chain], same_noise) == (chain == 0)
    assert not np.array_equal(posterior["b"].values[0], posterior["b"].values[1])
    best = fitted.restarts["best"].to_numpy().argmax()
    if best == 0:
        np.testing.assert_array_equal(posterior["b"].values[0], first["b"].values)
    assert container.attrs["num_restarts"] == container.attrs["num_chains"] == 3
    assert container.attrs["guide"] == "mvn"
    assert container.attrs["story"] == "groups"


def test_densities_of_the_draws_of_a_guide(fitted: Any) -> None:
    container = fitted.to_arviz(num_samples=9, groups=OF_GUIDES)
    posterior, of_draws = dataset(container, "posterior"), dataset(container, "sample_stats")
    exact = arviz_lines.log_joint(table(), posterior)
    np.testing.assert_allclose(of_draws["lp"], exact, rtol=2e-5)
    np.testing.assert_allclose(of_draws["log_weight"], of_draws["lp"] - of_draws["log_q"])
    for chain in range(3):
        with in_chain(fitted, chain):
            seed = None if chain == 0 else pv._rng.derive_seed("chain", chain)
            bound = fitted.estimate_elbo(num_samples=9, seed=seed)
        np.testing.assert_allclose(of_draws["elbo"][chain], bound.draws * 24)


def test_weights_of_an_exact_guide_are_the_evidence() -> None:
    model, values = positive_model()
    container = model.to_arviz(num_samples=300, groups=(*OF_GUIDES, "vi_diagnostics"))
    of_draws, of_fit = dataset(container, "sample_stats"), dataset(container, "vi_diagnostics")
    evidence = Positive.evidence(values)
    np.testing.assert_allclose(of_draws["log_weight"], evidence, rtol=1e-5)
    np.testing.assert_allclose(of_draws["elbo"], evidence, rtol=1e-5)
    np.testing.assert_allclose(of_fit["elbo"], evidence, rtol=1e-5)
    np.testing.assert_allclose(of_fit["elbo_mcse"], 0.0, atol=1e-5)
    u = np.log(dataset(container, "posterior")["m"].values.astype(float))
    precision = 0.25 + len(values)
    guide = stats.norm(values.sum() / precision, precision**-0.5).logpdf(u)
    np.testing.assert_allclose(of_draws["log_q"], guide, atol=1e-4)
    joint = stats.norm(u[..., None], 1.0).logpdf(values).sum(-1) + stats.norm(0, 2).logpdf(u)
    np.testing.assert_allclose(of_draws["lp"], joint, rtol=1e-5)


def test_diagnostics_of_restarts(fitted: Any) -> None:
    groups = ("sample_stats", "vi_diagnostics")
    container = fitted.to_arviz(num_samples=100, groups=groups)
    found, of_draws = dataset(container, "vi_diagnostics"), dataset(container, "sample_stats")
    assert found["loss_train"].shape == (3, 60)
    for chain in range(3):
        loss = fitted.restart_history(chain)["elbo_train"]["elbo_train"]
        np.testing.assert_allclose(found["loss_train"][chain], loss)
        _, khat = psis(of_draws["log_weight"].values[chain])
        assert float(found["khat"][chain]) == pytest.approx(float(khat))
    np.testing.assert_allclose(found["elbo"], of_draws["elbo"].mean("draw"))


def test_a_point_estimate_has_no_density() -> None:
    model = pv.from_pyro(arviz_lines.groups, table(), guide="delta")
    model.train(5, enable_progress_bar=False)
    groups = ("posterior", "sample_stats", "vi_diagnostics")
    container = model.to_arviz(num_samples=3, groups=groups)
    assert set(dataset(container, "sample_stats")) == {"elbo", "lp"}
    assert "khat" not in dataset(container, "vi_diagnostics")
    exact = arviz_lines.log_joint(table(), dataset(container, "posterior"))
    np.testing.assert_allclose(dataset(container, "sample_stats")["lp"], exact, rtol=2e-5)


def test_laplace_and_map() -> None:
    model = pv.from_pyro(arviz_lines.groups, table())
    model.train(method="laplace")
    container = model.to_arviz(num_samples=50, groups=("posterior", "sample_stats"))
    assert container.attrs["inference"] == "laplace"
    assert "normal approximation" in container.attrs["note"]
    assert not {"guide", "num_restarts"} & set(container.attrs)
    exact = arviz_lines.log_joint(table(), dataset(container, "posterior"))
    of_draws = dataset(container, "sample_stats")
    np.testing.assert_allclose(of_draws["lp"], exact, rtol=2e-5)
    scale = model.module.posterior.scale_tril.double()
    highest = stats.multivariate_normal(cov=(scale @ scale.T).numpy()).logpdf(np.zeros(len(scale)))
    assert (of_draws["log_q"] <= highest + 1e-6).all()
    assert float(of_draws["log_q"].mean()) == pytest.approx(highest - len(scale) / 2, abs=1.5)
    model.train(method="map")
    with pytest.raises(ModelError, match="'vi_diagnostics' is of approximations"):
        model.to_arviz(groups="vi_diagnostics")


def test_pathfinder_has_its_pareto_shape() -> None:
    model = pv.from_pyro(arviz_lines.groups, table())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(method="pathfinder", num_samples=60)
    container = model.to_arviz(groups=("posterior", "vi_diagnostics"))
    assert set(group_names(container)) == {"posterior", "vi_diagnostics", "sample_stats"}
    khat = dataset(container, "sample_stats")["khat"].values
    assert dataset(container, "vi_diagnostics")["khat"].values == khat[0, 0]
    exact = arviz_lines.log_joint(table(), dataset(container, "posterior"))
    np.testing.assert_allclose(dataset(container, "sample_stats")["lp"], exact, rtol=2e-5)


def test_energies_and_densities_of_nuts(sampled: Any) -> None:
    container = sampled.to_arviz(num_samples=50, groups=("posterior", "log_likelihood"))
    posterior, of_draws = dataset(container, "posterior"), dataset(container, "sample_stats")
    assert set(of_draws) == {
        "diverging", "energy", "lp", "step_size", "tree_depth", "n_steps", "acceptance_rate"
    }  # fmt: skip
    assert posterior["b"].shape == of_draws["lp"].shape == (2, 50)
    np.testing.assert_allclose(of_draws["lp"], arviz_lines.log_joint(table(), posterior), rtol=1e-4)
    assert (of_draws["energy"] >= -of_draws["lp"]).all()  # kinetic energy is not negative
    assert not np.array_equal(posterior["b"][0], posterior["b"][1])
    assert container.attrs["inference"] == "nuts"
    assert not {"note", "guide", "num_restarts"} & set(container.attrs)


def test_log_likelihood_without_locals_is_plain(sampled: Any) -> None:
    container = sampled.to_arviz(num_samples=20, groups=("posterior", "log_likelihood"))
    draws, found = dataset(container, "posterior"), dataset(container, "log_likelihood")
    data = table()
    codes = data["group"].astype("category").cat.codes.to_numpy()
    mean = draws["a"].values[..., codes] + draws["b"].values[..., None] * data["x"].to_numpy()
    exact = stats.norm(mean, draws["s"].values[..., None]).logpdf(data["y"].to_numpy())
    assert found["response"].dims == ("chain", "draw", "obs")
    np.testing.assert_allclose(found["response"], exact, atol=2e-4)
    assert found.attrs["kind"] == "plain"
    assert "in_sample" not in found.attrs


def test_log_likelihood_with_locals_is_marginal() -> None:
    X, W, sd = simulated(20)
    model = exact_model(X, W, sd)
    groups = ("posterior", "log_likelihood", "vi_diagnostics")
    container = model.to_arviz(num_samples=15, num_inner=30, groups=groups)
    found = dataset(container, "log_likelihood")
    exact = exact_conditional(
        X, W, sd, dataset(container, "posterior")["m"].values[0].astype(float)
    )
    assert found["X"].dims == ("chain", "draw", "obs")
    np.testing.assert_allclose(found["X"][0], exact, atol=2e-3)  # the guide is exact: no variance
    assert (found.attrs["kind"], found.attrs["num_inner"]) == ("iw-marginal", 30)
    of_fit = dataset(container, "vi_diagnostics")
    fit = model.local_fit()
    np.testing.assert_allclose(of_fit["local_khat"][0], fit["khat"], atol=1e-6)
    np.testing.assert_allclose(of_fit["local_ess"][0], fit["ess"])


def test_log_prior_is_of_top_level_sites(sampled: Any, fitted: Any) -> None:
    for model in (sampled, fitted):
        container = model.to_arviz(num_samples=20, groups=("posterior", "log_prior"))
        draws, found = dataset(container, "posterior"), dataset(container, "log_prior")
        assert set(found) == {"s", "tau", "b"}  # a depends on tau
        exact = {"s": stats.lognorm(0.5), "tau": stats.halfnorm(), "b": stats.norm(0, 2)}
        for name, prior in exact.items():
            assert found[name].dims == ("chain", "draw")
            np.testing.assert_allclose(found[name], prior.logpdf(draws[name]), atol=1e-5)


def test_prior_groups(fitted: Any) -> None:
    groups = ("prior", "prior_predictive", "posterior_predictive")
    container = fitted.to_arviz("b", num_samples=400, seed=2, groups=groups)
    prior = dataset(container, "prior")
    assert prior["b"].shape == (1, 400)
    assert stats.kstest(prior["b"].values[0], stats.norm(0, 2).cdf).pvalue > 1e-3
    query = fitted.sample_prior("response", num_samples=400, seed=2)
    predicted = dataset(container, "prior_predictive")["response"]
    np.testing.assert_array_equal(predicted.values[0], query["response"].values)
    with in_chain(fitted, 0):
        query = fitted.posterior_predictive(num_samples=400, seed=2)
    predicted = dataset(container, "posterior_predictive")["response"]
    assert predicted.shape == (3, 400, 24)
    np.testing.assert_array_equal(predicted.values[0], query["response"].values)


def test_data_go_by_what_is_observed(fitted: Any) -> None:
    """The observed site is called otherwise than its column, which is no covariate."""
    groups = ("observed_data", "constant_data")
    container = fitted.to_arviz(indices=[20, 3], groups=groups)
    data = table().iloc[[20, 3]]
    observed, constant = (dataset(container, group) for group in groups)
    assert set(observed) == {"response"}
    np.testing.assert_array_equal(observed["response"], data["y"])
    assert set(constant) == {"x", "group"}
    np.testing.assert_array_equal(constant["x"], data["x"])
    np.testing.assert_array_equal(constant["group"], [3, 0])
    assert list(observed["obs"].values) == list(constant["obs"].values) == ["row20", "row3"]


def test_unconstrained_coordinates(sampled: Any) -> None:
    groups = ("posterior", "unconstrained_posterior")
    container = sampled.to_arviz(["s", "a", "tau"], num_samples=10, groups=groups)
    draws, found = (dataset(container, group) for group in groups)
    np.testing.assert_allclose(found["s"], np.log(draws["s"]), atol=1e-5)
    np.testing.assert_allclose(found["tau"], np.log(draws["tau"]), atol=1e-5)
    np.testing.assert_array_equal(found["a"], draws["a"])
    assert found["a"].dims == draws["a"].dims
    assert list(found["group"].values) == ["u", "v", "w", "x"]


def test_unconstrained_coordinates_of_other_shape() -> None:
    def story(y: Tensor) -> None:
        with pv.plate("one", 1), pv.plate("two", 2, dim=-2):
            p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        low = pyro.sample("low", dist.Uniform(-1.0, 3.0))
        with pv.obs_plate():
            pyro.sample("o", dist.Normal(low + p.sum(), 1.0), obs=y)

    frame = pd.DataFrame({"y": [0.0, 1.0]}, index=["a", "b"])
    model = pv.from_pyro(story, frame, site_dims={"p": ("part",)})
    groups = ("posterior", "unconstrained_posterior")
    container = model.to_arviz(num_samples=6, groups=groups)
    draws, found = (dataset(container, group) for group in groups)
    assert draws["p"].dims == ("chain", "draw", "two", "one", "part")  # a size of one has a name
    assert found["p"].dims == ("chain", "draw", "two", "one", "p_unconstrained_0")
    assert found["p"].shape == (1, 6, 2, 1, 2)
    back = torch.distributions.biject_to(torch.distributions.constraints.simplex)
    values = back(torch.as_tensor(found["p"].values))
    np.testing.assert_allclose(values, draws["p"], atol=1e-5)
    np.testing.assert_allclose(4 / (1 + np.exp(-found["low"])) - 1, draws["low"], atol=1e-5)


def test_factors_are_aligned(factors: Any) -> None:
    sites, groups = ["W", "z"], ("posterior", "unconstrained_posterior")
    options: dict[str, Any] = {"num_samples": 20, "indices": range(10), "groups": groups}
    raw = factors.to_arviz(sites, **options)
    turned = factors.to_arviz(sites, align={"factor": "rotation"}, **options)
    before, after = dataset(raw, "posterior"), dataset(turned, "posterior")
    assert after.attrs["aligned"] == "factor: rotation"
    assert after["W"].dtype == before["W"].dtype

    def spread(draws: Any) -> float:
        return float(draws["W"].mean("draw").var("chain").mean())

    assert spread(after) < 0.1 * spread(before)
    products = [
        np.einsum("cdnf,cdfv->cdnv", draws["z"].values, draws["W"].values)
        for draws in (before, after)
    ]
    np.testing.assert_allclose(products[0], products[1], atol=1e-4)
    np.testing.assert_array_equal(dataset(turned, "unconstrained_posterior")["W"], before["W"])


def test_dimensions_that_cannot_be_told_apart() -> None:
    def story(y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
        n = pyro.sample("n", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pv.obs_plate():
            pyro.sample("o", dist.Normal(m.sum() + n.sum(), 1.0), obs=y)

    frame = pd.DataFrame({"y": [0.0, 1.0]}, index=["a", "b"])
    for dims, message in (
        ({"m": ("gene", "gene")}, r"'m' has the dimension 'gene' twice.*'gene_2'"),
        ({"m": ("gene", "draw")}, r"'m' has a dimension named 'draw'"),
        ({"m": ("gene", "n")}, r"'m' has a dimension named 'n', like the site 'n'"),
        ({"m": ("gene", "k"), "n": ("k",)}, r"'k' has size 3 in site 'n' and 2 in a site before"),
    ):
        model = pv.from_pyro(story, frame, site_dims=dims)
        with pytest.raises(ModelError, match=message):
            model.to_arviz(num_samples=2)


def test_nothing_is_disturbed(fitted: Any) -> None:
    every = GROUPS
    state = {name: value.clone() for name, value in fitted.module.state_dict().items()}
    torch.manual_seed(0)
    np.random.seed(0)
    one = fitted.to_arviz(num_samples=4, groups=every, seed=1)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    assert np.random.random() == np.random.RandomState(0).random_sample()
    torch.manual_seed(1)
    two = fitted.to_arviz(num_samples=4, groups=every, seed=1)
    for group in every:
        assert dataset(one, group).equals(dataset(two, group)), group
    assert all(torch.equal(state[n], v) for n, v in fitted.module.state_dict().items())


def computing(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.deterministic("odds", b.exp())
    pyro.deterministic("of the rows", b * x.sum())
    with pv.obs_plate():
        mean = pyro.deterministic("mean", b * x)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_defaults_hold_what_az_summary_and_az_plot_ppc_ask_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = np.linspace(-1, 1, 12)
    model = pv.from_pyro(computing, {"x": x, "y": 2 * x})
    model.train(method="nuts", num_chains=2, num_warmup=60, num_samples=30, num_workers=1)
    container = model.to_arviz()
    posterior = dataset(container, "posterior")
    # neither one value per observation nor a function of the minibatch
    assert list(posterior.data_vars) == ["b", "odds"]
    np.testing.assert_allclose(posterior["odds"], np.exp(posterior["b"]), rtol=1e-6)
    np.testing.assert_allclose(dataset(container, "observed_data")["y"], 2 * x, rtol=1e-6)
    monkeypatch.setattr("pyrovi.model.arviz_export.MAX_OBSERVED", 11)
    assert "observed_data" not in group_names(model.to_arviz())


def test_all_groups_are_those_that_the_model_has() -> None:
    x = np.linspace(-1, 1, 12)
    model = pv.from_pyro(computing, {"x": x, "y": 2 * x})
    model.train(method="nuts", num_chains=1, num_warmup=60, num_samples=20)
    with pytest.raises(ModelError):
        model.to_arviz(groups="vi_diagnostics")
    found = group_names(model.to_arviz(groups="all"))
    assert set(found) == set(GROUPS) - {"vi_diagnostics"}
    with pytest.raises(ModelError, match="or 'all'"):
        model.to_arviz(groups=("all", "posterior"))
