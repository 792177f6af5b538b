"""Observations without a fitted row get one, with everything else frozen."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from tests.train.toys import QUIET, Local, _Toy, assert_same, normal_data, parameters, toy

from pyrovi.errors import TrainingError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.rows import RowMinibatch

EXACT_SD = 0.2**0.5


@pytest.fixture(scope="module")
def model():
    """Trained on 16 of 24 observations for a moment only: the other rows are fitted afterwards."""
    fitted = toy(Local)
    fitted.train(2, batch_size=8, train_size=16 / 24, validation_size=4 / 24, **QUIET)
    return fitted


def unknown(n):
    new = normal_data(n, seed=9)
    new.obs_names = [f"new{i}" for i in range(n)]
    return new


def assert_exact(model, x, **query):
    z = model.sample_posterior("z", num_samples=1000, **query)["z"]
    assert np.allclose(z.mean("draw"), 0.8 * x, atol=0.15)
    assert np.allclose(z.std("draw"), EXACT_SD, atol=0.12)


def test_held_out_rows_are_the_exact_posterior(model):
    for indices in (model.validation_indices, model.test_indices):
        assert len(indices) == 4
        assert_exact(model, model.adata.X[indices], indices=indices)


def test_validation_elbo_is_near_the_evidence(model):
    """log p(x) = log N(x; 0, 1.25), which the exact posterior attains."""
    x = torch.as_tensor(model.adata.X[model.validation_indices])
    evidence = torch.distributions.Normal(0, 1.25**0.5).log_prob(x).sum(-1).mean().item()
    assert -model.history["elbo_validation"].iloc[-1, 0] == pytest.approx(evidence, abs=0.6)
    elbo = model.get_elbo(indices=model.validation_indices, num_samples=500)
    assert evidence - 0.15 < elbo <= evidence + 0.05


@pytest.mark.parametrize("n", [1, 7, 40])
def test_new_observations_of_any_number(model, n):
    new = unknown(n)
    before = parameters(model)
    assert_exact(model, new.X, adata=new, batch_size=16)
    assert_same(before, parameters(model))  # nothing of the model has moved
    assert isinstance(model.module.guide.locs.z, torch.nn.Parameter)


def test_evidence_of_new_observations(model):
    new = unknown(9)
    x = torch.as_tensor(new.X)
    evidence = torch.distributions.Normal(0, 1.25**0.5).log_prob(x).sum(-1).mean().item()
    assert model.get_elbo(new, num_samples=500) == pytest.approx(evidence, abs=0.15)
    assert model.get_marginal_ll(new, n_mc_samples=200) == pytest.approx(evidence, abs=0.1)


def test_queries_of_new_observations_are_repeatable_and_leave_random_state(model):
    new = unknown(5)
    state = torch.get_rng_state()
    first = model.sample_posterior("z", num_samples=3, adata=new)["z"].values
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(first, model.sample_posterior("z", num_samples=3, adata=new)["z"].values)


def test_row_minibatch_keeps_its_rows():
    batch = RowMinibatch({"X": torch.ones(3, 2)}, 10, {"rows": torch.arange(3.0)}, 3)
    changed = batch.to("cpu").replace(tensors={"X": torch.zeros(3, 2)})
    assert isinstance(changed, RowMinibatch)
    assert torch.equal(changed.rows["rows"], batch.rows["rows"])
    assert changed.indices.tolist() == [0, 1, 2]
    assert (changed.n, changed.n_obs) == (3, 10)


# ---------------------------------------------------------------------- convergence


class WideModule(PyroBaseModule):
    """z_n ~ N(0, sd), x_n ~ N(z_n, noise)."""

    def __init__(self, sd, noise, guide):
        super().__init__()
        self.sd, self.noise = sd, noise
        self.guide = {"normal": AutoNormal, "delta": AutoDelta}[guide](self.model)

    def model(self, X):
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_zeros(X.shape[-1]), self.sd).to_event(1))
            pyro.sample("X", dist.Normal(z, self.noise).to_event(1), obs=X)


class Wide(_Toy):
    def __init__(self, adata, sd, noise, guide):
        super().__init__(adata)
        self.module = WideModule(sd, noise, guide)


def wide(sd, noise, guide="normal"):
    return toy(Wide, 4, sd=sd, noise=noise, guide=guide)


@pytest.mark.parametrize("guide", ["normal", "delta"])
@pytest.mark.parametrize(
    ("sd", "noise", "x"), [(1000.0, 1.0, 100.0), (1000.0, 1000.0, 1000.0), (1.0, 0.01, 1.0)]
)
def test_rows_of_any_scale_are_found(sd, noise, x, guide):
    """Far away, wide and narrow posteriors: errors in units of the posterior's deviation."""
    model, new = wide(sd, noise, guide), unknown(3)
    new.X = np.float32(x) + np.float32(noise) * new.X
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*converged.*")
        z = model.sample_posterior("z", num_samples=1000, adata=new)["z"]
    weight = sd**2 / (sd**2 + noise**2)
    deviation = weight**0.5 * noise
    assert np.abs(z.mean("draw") - weight * new.X).max() < 0.3 * deviation
    if guide == "normal":
        assert np.allclose(z.std("draw") / deviation, 1, atol=0.3)


def test_rows_that_do_not_converge_are_told(monkeypatch):
    monkeypatch.setattr("pyrovi.train.rows.MAX_ROUNDS", 0)
    monkeypatch.setattr("pyrovi.train.rows._REPEATS", ())
    model, new = wide(1000.0, 1.0), unknown(3)
    new.X[1:] += 200
    with pytest.warns(UserWarning, match="2 of 3 observations have not converged"):
        model.sample_posterior("z", num_samples=2, adata=new)


def test_values_that_overflow_are_told():
    model, new = wide(1e-20, 1e-20), unknown(3)
    new.X[1] = 1e30
    with pytest.raises(TrainingError, match="gradient became NaN or infinite"):
        model.sample_posterior("z", num_samples=2, adata=new)
