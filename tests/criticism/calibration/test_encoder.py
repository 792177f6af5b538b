"""Encoder SBC: an exact encoder passes, wrong ones fail for the right reason."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from tests.module.stories import Factors, Hierarchy, Mean, Pair, given

from pyrovi.criticism.calibration.encoder import encoder_sbc
from pyrovi.criticism.calibration.simulator import JOINT, LIKELIHOOD, rank
from pyrovi.errors import MissingKeyError, ModelError
from pyrovi.module import PyroBaseModule, obs_plate


def factors(**wrong: float):
    module = Factors(**wrong)
    # real data that the model would never make: only their covariates may matter
    return given(np.full((40, 4), 50.0), module, batch=["a", "b"] * 20)


def test_exact_encoder_passes() -> None:
    found = encoder_sbc(factors(), num_simulations=600, seed=1)
    assert found.passed, found.summary()
    assert list(found.values) == ["z[factor=0]", "z[factor=1]", LIKELIHOOD, JOINT]
    assert found.values.shape == (600, 4)
    assert found.values.to_numpy().min() >= 0
    assert found.values.to_numpy().max() <= 99


@pytest.mark.parametrize(
    ("wrong", "reading"),
    [
        ({"widen": 0.7}, "too narrow"),
        ({"widen": 1.4}, "too wide"),
        ({"shift": 0.25}, "too high"),
        ({"shift": -0.25}, "too low"),
    ],
)
def test_wrong_encoders_fail_and_the_reading_says_how(wrong: dict, reading: str) -> None:
    found = encoder_sbc(factors(**wrong), "z", num_simulations=600, seed=1)
    assert not found.passed
    row = found.table.loc["z[factor=0]"]
    assert row["verdict"] == "fails"
    assert reading in row["reading"]
    assert reading in found.summary()


def test_a_guide_that_is_the_prior_is_revealed_by_the_likelihood_alone() -> None:
    """Ranks of the latents are uniform under the prior: Modrák et al. 2025."""

    class Ignorant(Factors):
        def guide(self, X: torch.Tensor) -> None:
            with self.obs_plate():
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    model = given(np.zeros((30, 4)), Ignorant())
    found = encoder_sbc(model, num_simulations=500)
    verdicts = found.table["verdict"]
    assert verdicts["z[factor=0]"] == verdicts["z[factor=1]"] == "passes"
    assert verdicts[LIKELIHOOD] == "fails"


def test_globals_are_drawn_anew_and_given_to_the_guide() -> None:
    X = np.random.default_rng(0).normal(1.0, 2.0, (30, 1))
    model = given(X, Hierarchy(X))  # q(z | x, g) is exact for every value of the global
    assert encoder_sbc(model, num_simulations=500).passed
    fixed = encoder_sbc(model, num_simulations=500, globals_={"mu": 30.0})
    assert fixed.passed


def test_a_guide_that_ignores_the_globals_is_judged_by_its_average() -> None:
    """q(z | x) with g integrated out is exact on average over g; only independent g show that."""

    class Marginal(PyroBaseModule):
        def model(self, X: torch.Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
            with self.obs_plate():
                z = pyro.sample("z", dist.Normal(mu, 1.0))
                pyro.sample("X", dist.Normal(z[..., None], 0.5).to_event(1), obs=X)

        def guide(self, X: torch.Tensor) -> None:
            pyro.sample("mu", dist.Normal(0.0, 2.0))
            precision = 1 / 5.0 + 1 / 0.25
            with self.obs_plate():
                pyro.sample("z", dist.Normal(X[:, 0] / 0.25 / precision, precision**-0.5))

    model = given(np.zeros((30, 1)), Marginal())
    found = encoder_sbc(model, num_simulations=600)
    assert found.table.loc["z", "verdict"] == "passes"


def test_strata_show_where_an_encoder_is_wrong() -> None:
    class Biased(Factors):
        def model(self, X: torch.Tensor, batch: torch.Tensor) -> None:
            super().model(X)

        def guide(self, X: torch.Tensor, batch: torch.Tensor) -> None:
            loc, covariance = self.moments(X)
            with self.obs_plate():
                shifted = loc + 0.3 * (batch == 1)
                pyro.sample("z", dist.MultivariateNormal(shifted, covariance))

    model = given(np.zeros((40, 4)), Biased(), batch=["a", "b"] * 20)
    found = encoder_sbc(model, num_simulations=800, strata="batch")
    table = found.table.set_index("stratum", append=True)["verdict"]
    assert table["z[factor=0]", "a"] == "passes"
    assert table["z[factor=0]", "b"] == "fails"
    with pytest.raises(MissingKeyError, match="'sex' is no column"):
        encoder_sbc(model, num_simulations=20, strata="sex")


def test_enumerated_latents_have_their_exact_posterior() -> None:
    def story(X: torch.Tensor) -> None:
        with obs_plate():
            prior = dist.Categorical(torch.tensor([0.7, 0.3]))
            k = pyro.sample("k", prior, infer={"enumerate": "parallel"})
            loc = torch.tensor([-1.0, 1.0])[k]
            pyro.sample("X", dist.Normal(loc[..., None], 1.0).to_event(1), obs=X)

    model = given(np.zeros((30, 1)), Pair(story))
    found = encoder_sbc(model, num_simulations=500, seed=2)
    assert found.passed, found.summary()


def test_the_same_seed_gives_the_same_ranks_and_disturbs_nobody() -> None:
    model = factors()
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    one = encoder_sbc(model, num_simulations=50, seed=3)
    assert torch.equal(torch.rand(1), before)
    two = encoder_sbc(model, num_simulations=50, seed=3)
    assert one.values.equals(two.values)
    assert not one.values.equals(encoder_sbc(model, num_simulations=50, seed=4).values)


def test_models_without_an_amortised_posterior_are_refused() -> None:
    with pytest.raises(ModelError, match="no local latents"):
        encoder_sbc(given(np.zeros((5, 1)), Mean()))

    def story(X: torch.Tensor) -> None:
        with obs_plate():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("X", dist.Normal(z[..., None], 1.0).to_event(1), obs=X)

    with pytest.raises(ModelError, match="parameters of each observation"):
        encoder_sbc(given(np.zeros((5, 1)), Pair(story, AutoNormal(story))))
    with pytest.raises(ModelError, match="'X' is observed"):
        encoder_sbc(factors(), "X")


def test_data_that_cannot_be_simulated_are_refused() -> None:
    def transformed(X: torch.Tensor) -> None:
        with obs_plate():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("Y", dist.Normal(z[..., None], 1.0).to_event(1), obs=X.exp())

    def guide(X: torch.Tensor) -> None:
        with obs_plate():
            pyro.sample("z", dist.Normal(X[:, 0], 1.0))

    with pytest.raises(ModelError, match="no registered tensor"):
        encoder_sbc(given(np.ones((5, 1)), Pair(transformed, guide)))


def test_rank_breaks_ties_at_random() -> None:
    truth, draws = torch.zeros(4000), torch.zeros(4000, 3)
    found = rank(truth, draws, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(found) / 4000, 0.25, atol=0.03)


def test_stories_that_read_their_own_data_are_refused() -> None:
    def story(X: torch.Tensor) -> None:
        with obs_plate():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            before = torch.cat([torch.zeros_like(X[..., :1]), X[..., :-1]], -1)
            pyro.sample("X", dist.Normal(z[..., None] * before, 1.0).to_event(1), obs=X)

    def guide(X: torch.Tensor) -> None:
        with obs_plate():
            pyro.sample("z", dist.Normal(X[:, 0], 1.0))

    data = np.random.default_rng(0).normal(size=(5, 4))
    with pytest.raises(ModelError, match="'X' changes with the observed data"):
        encoder_sbc(given(data, Pair(story, guide)))


def test_nothing_is_simulated_from_an_improper_prior() -> None:
    def story(X: torch.Tensor) -> None:
        with obs_plate():
            z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
            pyro.sample("X", dist.Normal(z[..., None], 1.0).to_event(1), obs=X)

    def guide(X: torch.Tensor) -> None:
        with obs_plate():
            pyro.sample("z", dist.Normal(X[:, 0], 1.0))

    with pytest.raises(ModelError, match="'z' has an improper prior"):
        encoder_sbc(given(np.zeros((5, 1)), Pair(story, guide)))
