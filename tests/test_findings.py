"""What goes wrong elsewhere without an error, and is right or refused here, by ``pv.from_pyro``."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGaussian,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from tests.criticism.exact import (
    SharedMean,
    exact_conditional,
    exact_loo,
    simulated,
)
from tests.model.test_restarts import Factors as FactorModel
from tests.model.test_restarts import factor_data
from tests.module.stories import Factors, Hierarchy

import pyrovi as pv
from pyrovi.errors import ModelError, TrainingError
from pyrovi.model.chains import in_chain, num_chains
from pyrovi.posterior.convergence import rhat
from pyrovi.posterior.pareto import psis

FIELDS = {"X": pv.fields.layer(), "batch": pv.fields.obs("batch", kind="categories")}
QUIET: dict[str, Any] = {"enable_progress_bar": False}


def annotated(X: np.ndarray) -> anndata.AnnData:
    adata = anndata.AnnData(np.asarray(X, dtype=np.float32))
    adata.obs_names = [f"cell{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"gene{i}" for i in range(adata.n_vars)]
    adata.obs["batch"] = "only"
    return adata


@pytest.fixture(scope="module")
def column() -> np.ndarray:
    return np.random.default_rng(1).normal(1.0, 1.0, size=(40, 1))


def means(y: Any, *, prior: float = 2.0) -> None:
    """mu ~ N(0, prior); z_n ~ N(mu, 1); y_n ~ N(z_n, 0.5)."""
    mu = pyro.sample("mu", dist.Normal(0.0, prior))
    with pv.obs_plate():
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


# 1 ---------------------------------------------------------------------- ArviZ


def test_arviz_takes_the_result_and_its_summary_has_the_names_of_the_data() -> None:
    """ArviZ 1.x has no converter of Pyro at all, and 0.x none of SVI."""
    az = pytest.importorskip("arviz")

    def story(X: Any, *, n_vars: int) -> None:
        with pv.plate("var", n_vars):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            pyro.sample("X", dist.Normal(m, 1.0).to_event(1), obs=X)

    X = np.random.default_rng(0).normal([0.0, 1.0, 2.0], 1.0, size=(30, 3))
    model = pv.from_pyro(story, annotated(X))
    model.train(200, n_restarts=2, num_workers=1, **QUIET)
    table = az.summary(model.to_arviz(num_samples=200), var_names=["m"], round_to="none")
    assert list(table.index) == ["m[gene0]", "m[gene1]", "m[gene2]"]
    exact = X.sum(0) / 31
    np.testing.assert_allclose(table["mean"].astype(float), exact, atol=5 / 31**0.5 / 20)
    assert (table["r_hat"].astype(float) < 1.05).all()  # of one fit there would be none


# 2 ---------------------------------------------------------------------- joint draws


def test_draws_are_joint_over_globals_deterministics_and_minibatches(column: np.ndarray) -> None:
    def story(y: Any) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 2.0))
        with pv.obs_plate():
            mu = pyro.deterministic("mu", w + 0 * y)
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    model = pv.from_pyro(story, {"y": column[:, 0]})
    draws = model.sample_posterior(["w", "mu"], num_samples=300, batch_size=7)
    w, mu = draws["w"].values, draws["mu"].values
    assert w.std() > 0
    for n in (0, 6, 7, 39):  # of the first, second and last minibatch
        assert np.corrcoef(w, mu[:, n])[0, 1] == pytest.approx(1, abs=1e-6)
    assert np.corrcoef(mu[:, 0], mu[:, 39])[0, 1] == pytest.approx(1, abs=1e-6)


# 3 ---------------------------------------------------------------------- subsampled plates


def test_a_plate_with_indices_of_its_own_is_refused(column: np.ndarray) -> None:
    def story(y: Any) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("cells", len(column), subsample=torch.arange(len(y))):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ModelError, match=r"subsampled plate 'cells' \(2 of 40\).*Use obs_plate"):
        pv.from_pyro(story, {"y": column[:, 0]})


@pytest.mark.parametrize(
    "guide",
    [
        AutoDiagonalNormal,
        AutoMultivariateNormal,
        AutoLowRankMultivariateNormal,
        AutoStructured,
        AutoGaussian,
    ],
)
def test_guides_that_take_the_size_of_the_first_minibatch_are_refused(
    guide: Any, column: np.ndarray
) -> None:
    with pytest.raises(ModelError, match="'z': its parameters have the size of the first minib"):
        pv.from_pyro(means, {"y": column[:, 0]}, guide=guide)


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["normal", AutoNormal])
def test_minibatches_find_the_mean_field_optimum(guide: Any, column: np.ndarray) -> None:
    """Locations at the posterior means, scales at the roots of the inverse precisions.

    Pyro's guide by itself pairs the observations of the minibatch with the rows of others: all its
    locals then go to their common mean.
    """
    y = column[:, 0]
    model = pv.from_pyro(means, {"y": y}, guide=guide)
    options = {"plan_kwargs": {"lr": 0.05, "lr_decay": 0.01}, "averaging": True, **QUIET}
    model.train(300, batch_size=8, train_size=1.0, **options)
    draws = model.sample_posterior(num_samples=2_000)
    mu = Hierarchy(column).loc.item()
    z = (mu / 1.0**2 + y / 0.5**2) / (1 + 4)
    assert draws["mu"].mean() == pytest.approx(mu, abs=0.1)
    assert np.abs(draws["z"].mean("draw").values - z).max() < 0.25
    assert np.corrcoef(draws["z"].mean("draw"), z)[0, 1] > 0.99
    assert draws["z"].std("draw").mean() == pytest.approx(5**-0.5, rel=0.1)


# 4 ---------------------------------------------------------------------- bounds


def test_importance_weighted_bounds_stay_below_the_evidence() -> None:
    """N / B = 50: the scale of a minibatch belongs outside of the logarithm."""
    pair = Factors(widen=1.3, shift=0.2)
    X = pair.simulate(400)
    model = pv.from_pyro(pair, annotated(X), FIELDS)
    exact = pair.log_marginal(X)
    found = model.marginal_log_likelihood(num_samples=1, num_inner=20, batch_size=8)
    bound = found["log_likelihood"].values[0]
    whole = model.marginal_log_likelihood(num_samples=1, num_inner=20)["log_likelihood"].values[0]
    for each in (bound, whole):
        error = (each - exact).std() / 20
        assert -0.2 < (each - exact).mean() < 3 * error


def test_renyi_over_minibatches_is_refused(column: np.ndarray) -> None:
    model = pv.from_pyro(means, {"y": column[:, 0]})
    options = {"plan_kwargs": {"loss_fn": RenyiELBO(alpha=0.0, num_particles=4)}, "train_size": 1.0}
    with pytest.raises(TrainingError, match="RenyiELBO scales the observation plate inside"):
        model.train(2, batch_size=8, **options, **QUIET)


# 5 ---------------------------------------------------------------------- isolation


def test_two_models_of_one_story_do_not_share_parameters() -> None:
    """In Pyro's global store, both would end at the same location."""

    def story(y: Any) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 100.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    rng = np.random.default_rng(0)
    data = [rng.normal(loc, 1.0, size=50) for loc in (5.0, 9.0)]
    models = [pv.from_pyro(story, {"y": y}) for y in data]
    for model in models:  # one after the other: the second must not move the first
        model.train(300, **QUIET)
    for model, y in zip(models, data, strict=True):
        found = float(model.sample_posterior("mu", num_samples=500, reduce="mean")["mu"])
        assert found == pytest.approx(y.mean(), abs=0.05)
    assert not list(pyro.get_param_store())


# 6 ---------------------------------------------------------------------- leave-one-out


def test_loo_is_exact_where_the_conditional_form_is_useless() -> None:
    X, W, sd = simulated()
    model = pv.from_pyro(SharedMean(X, W, sd, widen=1.2), annotated(X), FIELDS)
    exact = exact_loo(X, W, sd).sum()
    found = pv.criticism.loo(model, num_inner=80)
    assert found.elpd == pytest.approx(exact, abs=1.0)
    assert found.n_bad == 0
    conditional = model.log_likelihood(num_samples=500)["X"].values
    weights, khat = psis(-conditional)
    assert np.log(np.exp(weights + conditional).sum(0)).sum() - exact > 100
    assert np.mean(khat > 0.7) > 0.5


# 7 ---------------------------------------------------------------------- k-hats


def test_khat_of_cells_does_not_grow_with_their_number_and_the_joint_one_does() -> None:
    """Globals exact, encoder a little too wide: nothing is wrong that more cells could make so."""
    joint = []
    for n in (20, 800):
        X, W, sd = simulated(n)
        model = pv.from_pyro(SharedMean(X, W, sd, widen=1.1), annotated(X), FIELDS)
        assert (model.local_fit(num_inner=300)["khat"] < 0.5).all()

        # log weights of all latents together: exact evidence terms plus those of each cell
        # q(m) = p(m | X): what is left of the joint weights is p(x, z | m) / q(z | x, m) / p(x | m)
        terms = model.marginal_log_likelihood(num_samples=400, num_inner=1)["log_likelihood"]
        m = model.sample_posterior("m", num_samples=400)["m"].values
        joint.append(float(psis((terms.values - exact_conditional(X, W, sd, m)).sum(1))[1]))
    assert joint[0] < 0.7 < joint[1]


# 8 ---------------------------------------------------------------------- restarts


@pytest.mark.slow
def test_rhat_over_restarts_tells_identified_from_rotated_sites() -> None:
    """Of one fit by SVI there is no R-hat; of several it says what they agree on."""
    adata = factor_data()
    FactorModel.setup_anndata(adata)
    model = FactorModel(adata)
    model.train(
        400, lr=0.15, n_restarts=4, num_workers=2, batch_size=None, train_size=1.0,
        plan_kwargs={"lr_decay": 0.01, "n_epochs_kl_warmup": 0}, averaging=True, **QUIET,
    )  # fmt: skip
    parts = []
    for chain in range(num_chains(model)):
        with in_chain(model, chain):
            parts.append(model.sample_posterior(["s", "W"], num_samples=250, seed=chain))
    draws = {name: np.stack([part[name] for part in parts]) for name in ("s", "W")}
    assert rhat(draws["s"]).max() < 1.1
    assert np.median(rhat(draws["W"])) > 1.5
    invariant = np.einsum("cdkv,cdkw->cdvw", draws["W"], draws["W"])  # what does not turn
    assert np.median(rhat(invariant)) < 1.1
