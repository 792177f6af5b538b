"""Objectives that fit the model and the guide, and refusals of those that do not."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from tests.module.stories import Mean, Pair, given
from tests.train.toys import QUIET, Amortised, toy

from pyrovi.dataloaders import AnnDataLoader
from pyrovi.errors import TrainingError
from pyrovi.module import obs_plate
from pyrovi.train import ManualSVITrainingPlan, SVITrainingPlan


def mixture(X):
    """Two components of known weights; the means are positive."""
    m = pyro.sample("m", dist.LogNormal(torch.tensor([0.0, 1.0]), 0.5).to_event(1))
    with obs_plate():
        c = pyro.sample("c", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        pyro.sample("X", dist.Normal(m[c][..., None], 1.0).to_event(1), obs=X)


def written_by_hand():
    pair = Pair(mixture)
    pair.loc = torch.nn.Parameter(torch.tensor([1.0, 3.0]))
    pair.guide = lambda: pyro.sample("m", dist.LogNormal(pair.loc.log(), 0.1).to_event(1))
    return pair


def automatic():
    return Pair(mixture, AutoNormal(poutine.block(mixture, hide=["c"]), init_scale=0.1))


def data(n=40):
    rng = np.random.default_rng(0)
    return np.where(rng.random(n) < 0.5, 1.0, 3.0)[:, None] + rng.normal(size=(n, 1))


@pytest.mark.parametrize("make", [written_by_hand, automatic])
@pytest.mark.parametrize("options", [{}, {"early_stopping": True}], ids=["plain", "early_stopping"])
def test_enumerated_models_are_validated(make, options):
    model = given(data(), make())
    model.train(8, batch_size=10, lr=0.05, **options, **QUIET)
    history = model.history["elbo_validation"]["elbo_validation"].to_numpy()
    assert len(history) >= 8
    assert np.isfinite(history).all()
    held_out = model.get_elbo(indices=model.validation_indices, num_samples=500)
    assert history[-1] == pytest.approx(-held_out, abs=0.1)


def test_kl_of_global_sites_under_enumeration_is_exact():
    """KL of two normals: that of the log-normals, as both are transformed alike."""
    model = given(data(), automatic())
    with torch.no_grad():
        model.module.guide.locs.m_unconstrained.copy_(torch.tensor([0.5, -0.5]))
    scale = model.module.guide.scales.m.detach()
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(torch.tensor([0.5, -0.5]), scale),
        torch.distributions.Normal(torch.tensor([0.0, 1.0]), 0.5),
    ).sum()
    plan = SVITrainingPlan(model.module, loss_fn=TraceEnum_ELBO(num_particles=400))
    (batch,) = AnnDataLoader(model.adata_manager, batch_size=40)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        loss, parts = plan.objective(batch, 1.0)
    assert parts["kl_global"].item() * 40 == pytest.approx(exact.item(), rel=0.03)
    total = parts["reconstruction_loss"] + parts["kl_local"] + parts["kl_global"]
    assert total.item() == pytest.approx(loss.item(), rel=1e-5)


def test_closed_form_kl_is_refused_for_guides_with_auxiliary_sites():
    def story(X):
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with obs_plate():
            pyro.sample("X", dist.Normal(0.0, s).expand([1]).to_event(1), obs=X)

    module = given(data(), Pair(story, AutoNormal(story))).module
    assert module.auxiliary_sites == ("s_unconstrained",)
    with pytest.raises(TrainingError, match=r"auxiliary sites.*s_unconstrained.*Use Trace_ELBO"):
        SVITrainingPlan(module, loss_fn=TraceMeanField_ELBO())
    SVITrainingPlan(module, loss_fn=Trace_ELBO())
    point = given(data(), Pair(story, AutoDelta(story))).module
    for other in (point, toy(Amortised).module, given(data(), Mean()).module):
        SVITrainingPlan(other, loss_fn=TraceMeanField_ELBO())


def test_renyi_has_no_warmup():
    module = given(data(), Mean()).module
    elbo = RenyiELBO(alpha=0.5, num_particles=2)
    assert ManualSVITrainingPlan(module, loss_fn=elbo).warmup.planned(100).weight(0, 0) == 1
    for option in ({"n_epochs_kl_warmup": 3}, {"n_steps_kl_warmup": 3}, {"max_kl_weight": 0.5}):
        with pytest.raises(TrainingError, match=r"logarithm of RenyiELBO.*leave out"):
            ManualSVITrainingPlan(module, loss_fn=elbo, **option)
    model = given(data(), Mean())
    model.train(4, batch_size=None, plan_kwargs={"loss_fn": elbo}, **QUIET)
    assert (model.history["kl_weight"]["kl_weight"] == 1).all()
