"""Observations without a fitted row get one, with everything else frozen."""

import numpy as np
import pytest
import torch
from tests.train.toys import QUIET, Local, assert_same, normal_data, parameters, toy

from pyrovi.module.rows import RowMinibatch

EXACT_SD = 0.2**0.5


@pytest.fixture(scope="module")
def model():
    """Trained on 16 of 24 observations for a moment only: the other rows are fitted afterwards."""
    fitted = toy(Local)
    fitted.train(2, batch_size=8, train_size=16 / 24, validation_size=4 / 24, **QUIET)
    return fitted


def assert_exact(model, x, **query):
    z = model.sample_posterior("z", num_samples=1000, **query)["z"]
    assert np.allclose(z.mean("draw"), 0.8 * x, atol=0.2)
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
    new = normal_data(n, seed=9)
    before = parameters(model)
    assert_exact(model, new.X, adata=new, batch_size=16)
    assert_same(before, parameters(model))  # nothing of the model has moved
    assert isinstance(model.module.guide.locs.z, torch.nn.Parameter)


def test_evidence_of_new_observations(model):
    new = normal_data(9, seed=9)
    x = torch.as_tensor(new.X)
    evidence = torch.distributions.Normal(0, 1.25**0.5).log_prob(x).sum(-1).mean().item()
    assert model.get_elbo(new, num_samples=500) == pytest.approx(evidence, abs=0.15)
    assert model.get_marginal_ll(new, n_mc_samples=200) == pytest.approx(evidence, abs=0.1)


def test_queries_of_new_observations_are_repeatable_and_leave_random_state(model):
    new = normal_data(5, seed=9)
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
