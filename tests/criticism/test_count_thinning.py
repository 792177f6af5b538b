"""Count thinning against exact conditional distributions, by enumeration and closed forms."""

from __future__ import annotations

import anndata
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine import trace
from scipy import sparse, stats
from tests.module.stories import Pair, given

import pyrovi as pv
from pyrovi.criticism.count_thinning import thinned_density, thinning
from pyrovi.criticism.thinned_counts import held_out_log_prob, thin_counts
from pyrovi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyrovi.errors import DataError, ModelError
from pyrovi.module import obs_plate

SHARE = 0.3
RATIO = (1 - SHARE) / SHARE


def by_enumeration(pmf, kept: int, held: int) -> float:
    """log p(held | kept) when the sum has a given mass function: no model of the parts is used."""
    x = np.arange(3000)
    joint = pmf(kept + held) * stats.binom(kept + held, SHARE).pmf(kept)
    return float(np.log(joint / (pmf(x) * stats.binom(x, SHARE).pmf(kept)).sum()))


def found(fn, kept: int, held: int) -> float:
    """What the library says: ``fn`` is the distribution of the first part."""
    value = torch.full((1, 1), float(kept))

    def story() -> None:
        with pyro.plate("obs", 1, dim=-1):
            pyro.sample("X", fn.expand([1, 1]).to_event(1), obs=value)

    node = trace(story).get_trace().nodes["X"]
    return float(held_out_log_prob(node, torch.full((1, 1), float(held)), RATIO, 1))


def tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


PAIRS = [(0, 0), (0, 4), (1, 0), (2, 3), (7, 30), (12, 1)]


@pytest.mark.parametrize(("kept", "held"), PAIRS)
def test_second_part_given_the_first_is_exact(kept: int, held: int) -> None:
    mu, theta, gate = 9.0, 1.7, 0.25
    first = SHARE * mu

    poisson = by_enumeration(stats.poisson(mu).pmf, kept, held)
    for fn in (Poisson(rate=tensor(first)), dist.Poisson(tensor(first))):
        assert found(fn, kept, held) == pytest.approx(poisson, abs=2e-4)

    total = stats.nbinom(theta, theta / (theta + mu))
    binomial = by_enumeration(total.pmf, kept, held)
    for fn in (
        NegativeBinomial(mu=tensor(first), theta=tensor(theta)),
        dist.NegativeBinomial(tensor(theta), logits=(tensor(first) / theta).log()),
        dist.GammaPoisson(tensor(theta), tensor(theta / first)),
    ):
        assert found(fn, kept, held) == pytest.approx(binomial, abs=2e-4)

    def zero_inflated(x):
        return gate * (np.asarray(x) == 0) + (1 - gate) * total.pmf(x)

    logits = tensor(np.log(gate / (1 - gate)))
    fn = ZeroInflatedNegativeBinomial(mu=tensor(first), theta=tensor(theta), zi_logits=logits)
    exact = by_enumeration(zero_inflated, kept, held)
    assert found(fn, kept, held) == pytest.approx(exact, abs=2e-4)


def test_conditional_of_the_negative_binomial_sums_to_one() -> None:
    fn = NegativeBinomial(mu=tensor(3.0), theta=tensor(0.8))
    mass = sum(np.exp(found(fn, 4, held)) for held in range(300))
    assert mass == pytest.approx(1, abs=1e-4)


def test_other_likelihoods_are_refused() -> None:
    with pytest.raises(ModelError, match=r"'X' is Geometric; what one part.*use held_out"):
        found(dist.Geometric(tensor(0.3)), 1, 1)


# ---------------------------------------------------------------------- splitting


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, sparse.csc_array])
def test_parts_add_up_and_are_binomial(make) -> None:
    counts = np.random.default_rng(0).poisson(6.0, size=(400, 50)).astype(np.float32)
    given_ = make(counts)
    kept, held = thin_counts(given_, SHARE, seed=1)
    assert type(kept) is type(given_)
    dense = [p.toarray() if sparse.issparse(p) else p for p in (kept, held)]
    np.testing.assert_array_equal(dense[0] + dense[1], counts)
    assert dense[0].min() >= 0
    assert dense[1].min() >= 0
    assert dense[0].dtype == np.float32
    assert dense[0].mean() == pytest.approx(SHARE * 6, rel=0.02)
    # parts of a Poisson count are independent
    assert abs(np.corrcoef(dense[0].ravel(), dense[1].ravel())[0, 1]) < 0.02
    again = thin_counts(given_, SHARE, seed=1)[0]
    np.testing.assert_array_equal(again.toarray() if sparse.issparse(again) else again, dense[0])


def test_only_counts_can_be_split() -> None:
    with pytest.raises(DataError, match=r"non-negative integers, found 1\.5"):
        thin_counts(np.array([[1.0, 1.5]]), 0.5)
    with pytest.raises(DataError, match="found -2"):
        thin_counts(np.array([[1, -2]]), 0.5)
    for fraction in (0.0, 1.0, -3.0):
        with pytest.raises(DataError, match="fraction must be between 0 and 1"):
            thin_counts(np.array([[1]]), fraction)


# ---------------------------------------------------------------------- a whole model


def gamma_poisson(counts: np.ndarray) -> Pair:
    """r_n ~ Gamma(3, 1), x_ng ~ Poisson(SHARE r_n): the exact posterior of r is its guide."""

    def model(X: torch.Tensor) -> None:
        with obs_plate():
            rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
            mean = SHARE * rate[..., None].expand(*rate.shape, X.shape[-1])
            pyro.sample("X", Poisson(rate=mean).to_event(1), obs=X)

    def guide(X: torch.Tensor) -> None:
        with obs_plate():
            pyro.sample("rate", dist.Gamma(3.0 + X.sum(-1), 1.0 + SHARE * X.shape[-1]))

    return Pair(model, guide)


def test_score_of_an_exact_model_is_the_exact_predictive_density() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(3.0, 1.0, size=(50, 1)) * np.ones((1, 4)))
    kept, held = thin_counts(counts, SHARE)
    model = given(kept, gamma_poisson(kept))
    result = thinned_density(model, held, fraction=SHARE, num_samples=4000)
    shape, scale = 3.0 + kept.sum(1), 1.0 + SHARE * 4
    # integral over the rate: negative multinomial
    total = held.sum(1)
    rate = (1 - SHARE) * 4
    exact = stats.nbinom(shape, scale / (scale + rate)).logpmf(total)
    split = [
        stats.multinomial(t, np.full(4, 0.25)).logpmf(h) for t, h in zip(total, held, strict=True)
    ]
    np.testing.assert_allclose(result.pointwise["elpd"], exact + split, atol=0.12)
    assert result.elpd == pytest.approx((exact + split).sum(), abs=0.4)
    assert result.n_bad == 0
    assert result.kind == "thinning"
    sparse_result = thinned_density(
        model, sparse.csr_matrix(held), fraction=SHARE, num_samples=4000, batch_size=50
    )
    assert sparse_result.elpd == pytest.approx(result.elpd, abs=0.4)


def test_shape_of_the_second_part_is_checked() -> None:
    counts = np.ones((6, 4))
    model = given(counts, gamma_poisson(counts))
    with pytest.raises(DataError, match=r"held has shape \(6, 3\), expected.*\(6, 4\)"):
        thinned_density(model, np.ones((6, 3)))


def test_thinning_refits_on_the_first_part_only(trained, monkeypatch) -> None:
    seen = {}

    def train(self, **kwargs) -> None:
        seen["X"], seen["kwargs"] = np.asarray(self.adata.X), kwargs

    monkeypatch.setattr(type(trained), "train", train)
    before = np.asarray(trained.adata.X).copy()
    with pytest.warns(UserWarning, match="not trained"):
        result = thinning(trained, fraction=0.4, num_samples=20, train_kwargs={"max_epochs": 3})
    # the rest as the model itself was trained
    assert seen["kwargs"] == {"train_size": 1.0, "max_epochs": 3, "accelerator": "cpu"}
    assert (seen["X"] <= before).all()
    assert seen["X"].sum() == pytest.approx(0.4 * before.sum(), rel=0.1)
    np.testing.assert_array_equal(trained.adata.X, before)
    assert result.n_obs == trained.adata.n_obs
    assert np.isfinite(result.elpd)


def rates(X, library, *, n_vars):
    with pv.plate("var", n_vars, dim=-1):
        r = pyro.sample("r", dist.Gamma(2.0, 1.0))
    with pv.obs_plate():
        pyro.sample("X", dist.Poisson(library * r).to_event(1), obs=X)


@pytest.mark.parametrize(
    ("guide", "training"),
    [
        ("laplace", {}),
        ("normal", {"method": "nuts", "num_chains": 1, "num_samples": 300, "num_warmup": 100}),
        ("normal", {"method": "pathfinder"}),
    ],
    ids=["laplace", "nuts", "pathfinder"],
)
def test_other_methods_are_refitted_too(guide: str, training: dict) -> None:
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(rng.poisson(3.0, size=(30, 3)).astype(np.float32))
    fields = {"X": pv.fields.layer(None), "library": pv.fields.total(None)}
    model = pv.from_pyro(rates, adata, fields=fields, guide=guide)
    result = thinning(model, train_kwargs=training, num_samples=300, seed=1)
    kept, held = thin_counts(adata.X, 0.5, seed=1)
    # the parts are independent, and a gamma posterior makes the second negative binomial
    shape, rate = 2 + kept.sum(0), 1 + kept.sum()
    library = kept.sum(1, keepdims=True)
    exact = stats.nbinom(shape, rate / (rate + library)).logpmf(held).sum(1)
    np.testing.assert_allclose(result.pointwise["elpd"], exact, atol=0.15)


def test_totals_of_simulated_data_are_thinned_with_them(monkeypatch) -> None:
    adata = anndata.AnnData(np.full((6, 3), 40.0, dtype=np.float32))
    fields = {"X": pv.fields.layer(None), "library": pv.fields.total(None)}
    model = pv.from_pyro(rates, adata, fields=fields)
    made = pv.from_pyro(rates, model.simulate(seed=1), fields=fields)
    seen = {}

    def train(self, **_) -> None:
        seen["library"] = self.adata_manager.get_from_registry("library")

    monkeypatch.setattr(type(made), "train", train)
    with pytest.warns(UserWarning, match="not trained"):
        thinning(made, fraction=0.25, num_samples=4)
    np.testing.assert_allclose(seen["library"], 0.25 * 120)


def test_thinning_tells_the_dimension_of_a_factor_model() -> None:
    """Two real factors: one is too few; the score sees it."""
    from docs.guide.factor_model import FactorModel

    rng = np.random.default_rng(0)
    z, W = rng.normal(size=(200, 2)), rng.normal(size=(2, 20))
    rate = np.exp(z @ W)
    counts = rng.poisson(400 * rate / rate.sum(1, keepdims=True)).astype(np.float32)
    adata = anndata.AnnData(counts)
    adata.obs_names = [f"c{i}" for i in range(200)]
    FactorModel.setup_anndata(adata)
    options = {"max_epochs": 60, "lr": 0.02, "batch_size": 50, "enable_progress_bar": False}
    options["accelerator"] = "cpu"
    score = {
        k: thinning(FactorModel(adata, n_factors=k), train_kwargs=options, num_samples=50).elpd
        for k in (1, 2)
    }
    assert score[2] > score[1] + 200
