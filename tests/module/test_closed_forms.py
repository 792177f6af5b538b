"""Closed forms of the KL are taken only where the order of the guide allows them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from tests.train.toys import _Toy, scvi, toy

from pyrovi.dataloaders import AnnDataLoader
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.closed_forms import closed_form_sites
from pyrovi.train import SVITrainingPlan


class HierarchyModule(PyroBaseModule):
    """a ~ N(0, 1), b ~ N(a, 1), x ~ N(b, 1); the guide has q(b | x) q(a | b)."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.7))
        self.v = torch.nn.Parameter(torch.tensor(0.6))
        self.log_s = torch.nn.Parameter(torch.tensor(-0.3))
        self.log_t = torch.nn.Parameter(torch.tensor(-0.2))

    def model(self, X):
        with self.obs_plate():
            a = pyro.sample("a", dist.Normal(X.new_zeros(()), 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("X", dist.Normal(b[..., None], 1.0).to_event(1), obs=X)

    def guide(self, X):
        with self.obs_plate():
            b = pyro.sample("b", dist.Normal(self.w * X[:, 0], self.log_s.exp()))
            pyro.sample("a", dist.Normal(self.v * b, self.log_t.exp()))

    def default_elbo(self):
        return TraceMeanField_ELBO()


class Hierarchy(_Toy):
    def __init__(self, adata):
        super().__init__(adata)
        self.module = HierarchyModule()


def by_hand(module, x):
    m, s, t, v = module.w * x, module.log_s.exp(), module.log_t.exp(), module.v
    second = m**2 + s**2
    log_p = -1.5 * math.log(2 * math.pi) - 0.5 * (t**2 + v**2 * second)
    log_p = log_p - 0.5 * ((1 - v) ** 2 * second + t**2) - 0.5 * ((x - m) ** 2 + s**2)
    entropy = math.log(2 * math.pi * math.e) + module.log_s + module.log_t
    return (log_p + entropy).mean()


def traces(module, batch):
    guide = poutine.trace(module.run_guide).get_trace(batch)
    return poutine.trace(poutine.replay(module.run_model, trace=guide)).get_trace(batch), guide


def test_a_hierarchy_that_the_guide_draws_backwards():
    model = toy(Hierarchy, 300, 1)
    (batch,) = AnnDataLoader(model.adata_manager, batch_size=300)
    assert closed_form_sites(*traces(model.module, batch)) == {"a"}
    exact = -by_hand(model.module, batch["X"][:, 0])
    plan = SVITrainingPlan(model.module, loss_fn=TraceMeanField_ELBO())
    torch.manual_seed(0)
    losses = torch.stack([plan.objective(batch, 1.0)[0] for _ in range(100)])
    error = losses.std() / 100**0.5
    bias = model.module.v * model.module.log_s.exp() ** 2  # of the closed form of b
    assert abs(losses.mean() - exact) < 4 * error < bias / 4
    found = torch.autograd.grad(losses.mean(), list(model.module.parameters()))
    right = torch.autograd.grad(exact, list(model.module.parameters()))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)
    model.is_trained = True
    assert model.get_elbo(num_samples=100) == pytest.approx(-exact.item(), abs=4 * error.item())


def test_the_same_order_allows_all():
    model = scvi(use_observed_lib_size=False)
    (batch,) = AnnDataLoader(model.adata_manager, batch_size=80)
    assert closed_form_sites(*traces(model.module, batch)) == {"z", "l"}
