"""Discrete sites whose values the guide goes through: the exact expectation over them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from tests.train.toys import QUIET, _Toy, toy

from pyrovi.dataloaders import AnnDataLoader
from pyrovi.module.base import PyroBaseModule
from pyrovi.train import SVITrainingPlan


class TwoKindsModule(PyroBaseModule):
    """y ~ Cat(p), z | y ~ N(m_y, 1), x ~ N(z, 1); the guide has q(y | x) and q(z | x, y)."""

    def __init__(self, masked=False):
        super().__init__()
        self.masked = masked
        self.prior = torch.nn.Parameter(torch.tensor([0.2, 0.3, 0.5]).log())
        self.centre = torch.nn.Parameter(torch.tensor([-1.0, 0.0, 2.0]))
        self.slope = torch.nn.Parameter(torch.tensor([0.4, -0.1, 0.3]))
        self.shift = torch.nn.Parameter(torch.tensor([0.3, 0.1, -0.2]))

    def _mask(self, X):
        return X[:, 0] > (1.0 if self.masked else -torch.inf)

    def model(self, X):
        with self.obs_plate():
            with poutine.mask(mask=self._mask(X)):
                y = pyro.sample("y", dist.Categorical(logits=self.prior))
            z = pyro.sample("z", dist.Normal(self.centre[y], 1.0))
            pyro.sample("X", dist.Normal(z[..., None], 1.0).to_event(1), obs=X[:, :1])

    def guide(self, X):
        with self.obs_plate():
            logits = self.slope * X[:, :1] + self.shift
            with poutine.mask(mask=self._mask(X)):
                y = pyro.sample(
                    "y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"}
                )
            pyro.sample("z", dist.Normal(0.5 * X[:, 0] + self.shift[y], 0.7))


class TwoKinds(_Toy):
    def __init__(self, adata, masked=False):
        super().__init__(adata)
        self.module = TwoKindsModule(masked)


def by_hand(module, x, weight=1.0):
    """The ELBO per observation in closed form: all expectations are of normals."""
    q = (module.slope * x[:, None] + module.shift).log_softmax(-1)
    kl_y = (q.exp() * (q - module.prior.log_softmax(-1))).sum(-1) * module._mask(x[:, None])
    mean = 0.5 * x[:, None] + module.shift
    kl_z = 0.5 * ((mean - module.centre) ** 2 + 0.49 - 1) - torch.log(torch.tensor(0.7))
    likelihood = -0.5 * ((x[:, None] - mean) ** 2 + 0.49) - 0.5 * torch.log(
        torch.tensor(2 * torch.pi)
    )
    kl = kl_y + (q.exp() * kl_z).sum(-1)
    return (q.exp() * likelihood).sum(-1).mean() - weight * kl.mean()


def estimate(plan, batch, weight, number):
    torch.manual_seed(0)
    losses = [plan.objective(batch, weight)[0] for _ in range(number)]
    return torch.stack(losses)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, Trace_ELBO, TraceEnum_ELBO])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_objective_and_gradient_are_the_exact_expectation(elbo, weight, masked):
    module = toy(TwoKinds, 5, 1, masked=masked)
    (batch,) = AnnDataLoader(module.adata_manager, batch_size=5)
    module = module.module
    assert module.summed_by_guide == ("y",)
    plan = SVITrainingPlan(module, loss_fn=elbo())
    number = 400
    losses = estimate(plan, batch, weight, number)
    exact = -by_hand(module, batch["X"][:, 0], weight)
    error = losses.std() / number**0.5
    assert abs(losses.mean() - exact) < 4 * error
    found = torch.autograd.grad(losses.mean(), list(module.parameters()))
    right = torch.autograd.grad(exact, list(module.parameters()))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=0.06, rtol=0.1)


def test_only_the_continuous_draw_is_random():
    """Without noise in z two evaluations are equal: y is summed over, not drawn."""
    module = toy(TwoKinds, 5, 1)
    (batch,) = AnnDataLoader(module.adata_manager, batch_size=5)
    plan = SVITrainingPlan(module.module, loss_fn=TraceMeanField_ELBO())
    parts = [plan.objective(batch, 1.0)[1] for _ in range(2)]
    assert torch.equal(parts[0]["kl_local"], parts[1]["kl_local"])  # closed forms alone
    assert not torch.equal(parts[0]["elbo"], parts[1]["elbo"])


def test_trained_and_queried_like_any_model():
    model = toy(TwoKinds, 40, 1)
    before = model.get_elbo(num_samples=200)
    model.train(150, lr=0.05, **QUIET, plan_kwargs={"n_epochs_kl_warmup": 0})
    assert model.get_elbo(num_samples=200) > before + 0.05
    draws = model.sample_posterior(["y", "z"], num_samples=50)
    assert draws["y"].shape == (50, 40)
    assert set(draws["y"].values.ravel()) <= {0, 1, 2}
