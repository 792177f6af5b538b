"""Decisions on joint draws: against exact posteriors, and their error rates in simulation."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from tests.module.stories import Factors, Pair, given

from pyrovi.criticism.decisions import decide, decision_table
from pyrovi.errors import MissingKeyError, ModelError
from pyrovi.module import obs_plate

LOC = torch.tensor([[0.0, 1.0, -0.5], [0.4, 1.0, 0.7]])
SCALE = torch.tensor([[0.2, 0.3, 0.1], [0.2, 0.4, 0.1]])


def effects():
    """A site over batch (two labels) and var (three), whose posterior is the guide below."""

    def story(X: torch.Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2, 3), 2.0).to_event(2))
        pyro.deterministic("rate", beta.exp(), event_dim=2)
        with obs_plate():
            pyro.sample("X", dist.Normal(beta[0], 1.0).to_event(1), obs=X)

    def guide() -> None:
        pyro.sample("beta", dist.Normal(LOC, SCALE).to_event(2))

    pair = Pair(story, guide, {"beta": ("batch", "var"), "rate": ("batch", "var"), "X": ("var",)})
    return given(np.zeros((8, 3)), pair, batch=["ctrl", "stim"] * 4)


def factors(n: int = 40, **options):
    module = Factors(**options)
    X = module.simulate(n)
    groups = np.where(np.arange(n) % 4 == 0, "a", "b")
    donors = np.array([f"d{i % 3}" if i < n // 2 else "d3" for i in range(n)])
    return module, given(X, module, group=groups, donor=donors), X.astype(np.float32)


def test_contrast_along_a_dimension_is_the_exact_normal() -> None:
    found = decide(effects(), "beta", ("stim", "ctrl"), rope=0.3, num_samples=8000)
    assert list(found.index) == ["gene0", "gene1", "gene2"]
    loc = (LOC[1] - LOC[0]).numpy()
    exact = stats.norm(loc, SCALE.square().sum(0).sqrt().numpy())
    np.testing.assert_allclose(found["mean"], loc, atol=0.02)
    np.testing.assert_allclose(found["sd"], exact.std(), rtol=0.04)
    np.testing.assert_allclose(found["p_above"], exact.sf(0.3), atol=0.02)
    np.testing.assert_allclose(found["p_below"], exact.cdf(-0.3), atol=0.02)
    np.testing.assert_allclose(found["p_positive"], exact.sf(0), atol=0.02)
    np.testing.assert_allclose(found["lower"], exact.ppf(0.025), atol=0.04)
    np.testing.assert_allclose(found[["p_above", "p_rope", "p_below"]].sum(axis=1), 1)
    assert list(found["called"]) == [False, False, True]
    assert found["direction"]["gene2"] == 1
    turned = decide(effects(), "beta", ("ctrl", "stim"), rope=0.3, num_samples=8000)
    np.testing.assert_allclose(turned["mean"], -found["mean"])
    assert turned["direction"]["gene2"] == -1


def test_fold_change_of_a_deterministic_site_is_the_difference_of_logarithms() -> None:
    options = {"num_samples": 300, "dim": "batch", "seed": 4}
    ratio = decide(effects(), "rate", ("stim", "ctrl"), change="log2_ratio", **options)
    beta = decide(effects(), "beta", ("stim", "ctrl"), **options)
    np.testing.assert_allclose(ratio["mean"], beta["mean"] / math.log(2), rtol=1e-4, atol=1e-5)
    shrunk = decide(
        effects(), "rate", ("stim", "ctrl"), change="log2_ratio", pseudocount=10.0, **options
    )
    assert (shrunk["mean"].abs() < ratio["mean"].abs()).all()


def test_a_site_alone_is_tested_against_zero_under_all_its_names() -> None:
    found = decide(effects(), "beta", num_samples=4000)
    assert found.index.names == ["batch", "var"]
    row = found.loc["stim", "gene2"]
    assert row["mean"] == pytest.approx(0.7, abs=0.01)
    assert row["probability"] == pytest.approx(1.0)
    assert row["called"]
    assert not found.loc["ctrl", "gene0"]["called"]


def test_group_means_of_a_local_site_are_exact() -> None:
    module, model, X = factors()
    loc, covariance = (t.numpy() for t in module.moments(torch.as_tensor(X)))
    first = (model.adata.obs["group"] == "a").to_numpy()
    exact = loc[first].mean(0) - loc[~first].mean(0)
    sd = np.sqrt(np.diag(covariance) * (1 / first.sum() + 1 / (~first).sum()))
    for size in (7, 100):
        found = decide(model, "z", ("a", "b"), groupby="group", num_samples=3000, batch_size=size)
        np.testing.assert_allclose(found["mean"], exact, atol=4 * sd.max() / np.sqrt(3000))
        np.testing.assert_allclose(found["sd"], sd, rtol=0.06)
    assert found.index.name == "factor"
    genes = decide(model, "loc", ("a", "b"), groupby="group", num_samples=50)
    assert list(genes.index) == [f"gene{i}" for i in range(4)]


def test_donors_count_equally_however_many_cells_they_have() -> None:
    module, model, X = factors()
    loc, covariance = (t.numpy() for t in module.moments(torch.as_tensor(X)))
    obs = model.adata.obs
    means, variances = [], []
    for group in ("a", "b"):
        kept = [(obs["group"] == group) & (obs["donor"] == d) for d in sorted(set(obs["donor"]))]
        kept = [k.to_numpy() for k in kept if k.any()]
        means.append(np.mean([loc[k].mean(0) for k in kept], 0))
        variances.append(sum(np.diag(covariance) / k.sum() for k in kept) / len(kept) ** 2)
    found = decide(model, "z", ("a", "b"), groupby="group", by="donor", num_samples=3000)
    np.testing.assert_allclose(found["mean"], means[0] - means[1], atol=0.03)
    np.testing.assert_allclose(found["sd"], np.sqrt(variances[0] + variances[1]), rtol=0.06)


def test_population_contrast_has_the_variance_of_the_bayesian_bootstrap() -> None:
    def story(X: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with obs_plate():
            pyro.deterministic("level", X[:, 0] + 0 * mu)
            pyro.sample("X", dist.Normal(mu, 1.0).expand([1]).to_event(1), obs=X)

    values = np.array([1.0, 2.0, 4.0, 7.0, 0.0, 0.5, -1.0, 2.0])
    pair = Pair(story, lambda: pyro.sample("mu", dist.Normal(0.0, 1.0)))
    model = given(values[:, None], pair, group=["a"] * 4 + ["b"] * 4, donor=list("pqrsuvwx"))
    options = {"groupby": "group", "by": "donor", "num_samples": 6000}
    found = decide(model, "level", ("a", "b"), population=True, **options).loc["level"]
    a, b = values[:4], values[4:]
    assert found["mean"] == pytest.approx(a.mean() - b.mean(), abs=0.06)
    variance = (a.var() + b.var()) / 5  # s^2 / (n + 1) each, with s^2 the variance over n
    assert found["sd"] == pytest.approx(math.sqrt(variance), rel=0.05)
    fixed = decide(model, "level", ("a", "b"), **options).loc["level"]
    assert fixed["sd"] == pytest.approx(0, abs=1e-6)


def test_importance_weights_correct_a_wrong_encoder() -> None:
    module, model, X = factors()

    def shifted(X: torch.Tensor, batch: torch.Tensor) -> None:  # one group, or it would cancel
        loc, covariance = module.moments(X)
        with obs_plate():
            fn = dist.MultivariateNormal(loc + 0.5 * (batch == 0), covariance * 2)
            pyro.sample("z", fn)

    groups = model.adata.obs["group"].to_numpy()
    wrong = given(X, Pair(module.model, shifted, module.site_dims), batch=groups)
    loc, _ = (t.numpy() for t in module.moments(torch.as_tensor(X)))
    first = (model.adata.obs["group"] == "a").to_numpy()
    exact = loc[first].mean(0) - loc[~first].mean(0)
    options = {"groupby": "batch", "num_samples": 300, "batch_size": 40}
    plain = decide(wrong, "z", ("a", "b"), **options)["mean"] - exact
    better = decide(wrong, "z", ("a", "b"), weights="importance", **options)["mean"] - exact
    np.testing.assert_allclose(plain, 0.5, atol=0.08)
    assert better.abs().max() < 0.15


def test_calls_keep_the_false_discovery_rate_under_the_exact_posterior() -> None:
    """Truths from the prior, draws from the exact posterior: the expected rate is the true one."""
    rng = np.random.default_rng(0)
    rates, powers = [], []
    for _ in range(60):
        truth = rng.normal(0, 1, 200)
        data = truth + rng.normal(0, 0.8, 200)
        variance = 1 / (1 + 1 / 0.64)
        draws = data / 0.64 * variance + math.sqrt(variance) * rng.normal(size=(500, 200))
        table = decision_table(draws, list(range(200)), -0.3, 0.3, 0.1)
        called = table["called"].to_numpy()
        right = truth * table["direction"].to_numpy() > 0.3  # beyond the region, and of that sign
        rates.append(np.mean(~right[called]) if called.any() else 0.0)
        powers.append(called.mean())
    assert np.mean(rates) == pytest.approx(0.1, abs=0.015)
    assert np.mean(powers) > 0.2


def test_the_same_seed_gives_the_same_table() -> None:
    _, model, _ = factors()
    options = {"groupby": "group", "num_samples": 20}
    one, two = (decide(model, "z", ("a", "b"), seed=1, **options) for _ in range(2))
    assert one.equals(two)
    assert not one.equals(decide(model, "z", ("a", "b"), seed=2, **options))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("z",), {}, ModelError, "name two groups of observations"),
        (("z", ("a", "b")), {"groupby": "sex"}, MissingKeyError, "'sex' is no column"),
        (("z", ("a", "c")), {"groupby": "group"}, MissingKeyError, "no observation of group 'c'"),
        (("z", ("a", "a")), {"groupby": "group"}, ModelError, "two different groups"),
        (("z", ("a", "b")), {"groupby": "group", "rope": (1, 0)}, ModelError, "is empty"),
        (("z", ("a", "b")), {"groupby": "group", "population": True}, ModelError, "needs by="),
        (
            ("z", ("a", "b")),
            {"groupby": "group", "change": "log2_ratio"},
            ModelError,
            "needs positive values",
        ),
        (("z", ("a", "b")), {"groupby": "group", "pseudocount": 1.0}, ModelError, "cancels"),
        (("z", ("a", "b")), {"groupby": "group", "weights": "psis"}, ModelError, "weights must be"),
    ],
)
def test_wrong_questions_are_explained(arguments, options, error, message) -> None:
    _, model, _ = factors()
    with pytest.raises(error, match=message):
        decide(model, *arguments, num_samples=5, **options)


def test_wrong_questions_about_dimensions_are_explained() -> None:
    model = effects()
    with pytest.raises(MissingKeyError, match="no dimension 'donor'"):
        decide(model, "beta", ("stim", "ctrl"), dim="donor", num_samples=5)
    with pytest.raises(MissingKeyError, match="Its labels are: batch: ctrl, stim"):
        decide(model, "beta", ("stim", "control"), num_samples=5)
    with pytest.raises(ModelError, match="no groups of observations"):
        decide(model, "beta", ("stim", "ctrl"), groupby="batch", num_samples=5)
