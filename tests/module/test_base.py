"""PyroBaseModule: the data contract, its own parameters, and training to exact posteriors."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroParam, PyroSample
from tests.module.stories import Factors, Mean, example, given
from torch import Tensor
from torch.distributions import constraints

from pyrovi.dataloaders import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module import PyroBaseModule, Role
from pyrovi.module.base import evaluation_mode


class Regression(PyroBaseModule):
    """Weights and noise as attributes: PyroSample is a site, PyroParam a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = pyro.nn.PyroModule[torch.nn.Linear](3, 1, bias=False)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.sd = PyroParam(torch.tensor(0.5), constraints.positive)
        self.loc = torch.nn.Parameter(torch.zeros(1, 3))

    def model(self, X: Tensor) -> None:
        mean = self.linear(X)
        with self.obs_plate():
            pyro.sample("y", dist.Normal(mean, self.sd).to_event(1), obs=X[:, :1])

    def guide(self) -> None:
        pyro.sample("linear.weight", dist.Normal(self.loc, 0.1).to_event(2))


def test_attributes_that_are_sites_and_parameters() -> None:
    module = Regression()
    module.materialise(example())
    assert module.ledger["linear.weight"].role is Role.GLOBAL
    assert set(module.state_dict()) == {"loc", "sd_unconstrained"}
    model = given(np.ones((4, 3)), module)
    draws = model.sample_posterior("linear.weight", num_samples=2_000)["linear.weight"].values
    assert draws.shape == (2_000, 1, 3)
    assert draws.std() == pytest.approx(0.1, rel=0.1)
    assert not list(pyro.get_param_store())


def test_two_modules_share_nothing() -> None:
    first, second = Regression(), Regression()
    for module in (first, second):
        module.materialise(example())
    loss = Trace_ELBO()(first.run_model, first.run_guide)(example()(3))
    loss.backward()
    assert first.loc.grad is not None
    assert first.sd_unconstrained.grad is not None
    assert second.loc.grad is None
    assert not list(pyro.get_param_store())


def test_classic_pyro_beside_is_untouched() -> None:
    module = Regression()
    module.materialise(example())
    assert pyro.settings.get("module_local_params") is False
    module.run_guide(example()(2))
    assert pyro.settings.get("module_local_params") is False


class Asks(PyroBaseModule):
    def model(self, X: Tensor, proteins: Tensor) -> None:
        pass

    def guide(self) -> None:
        pass


def test_a_field_that_is_not_registered() -> None:
    with pytest.raises(ModelError, match=r"asks for 'proteins'.*Registered are: X, batch"):
        Asks().materialise(example())


def test_a_module_needs_both_functions() -> None:
    class NoGuide(PyroBaseModule):
        def model(self) -> None:
            pass

    with pytest.raises(ModelError, match="NoGuide has no `guide`"):
        NoGuide().materialise(example())
    with pytest.raises(ModelError, match="not been materialised"):
        _ = Mean().ledger
    with pytest.raises(ModelError, match="not been materialised"):
        Mean().run_model(example(1)(2))


def test_initialisation_is_repeatable_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    first, second = Regression(), Regression()
    first.materialise(example())
    assert torch.equal(state, torch.get_rng_state())
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_evaluation_mode_gives_every_part_its_mode_back() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(2))
    module[1].eval()
    with evaluation_mode(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, True, False]


def test_minibatch_elbo_is_unbiased() -> None:
    """With the same noise, the mean over a partition into equal parts is the full-data ELBO."""
    module = Factors()
    X = torch.as_tensor(module.simulate(12)).float()
    module.materialise(example(4, 12))
    elbo = Trace_ELBO()
    full = Minibatch({"X": X}, torch.arange(12), 12)

    def mean_loss(size: int) -> float:
        losses = []
        for rows in torch.arange(12).split(size):
            part = full.replace(tensors={"X": X[rows]}, indices=rows)
            losses.append(elbo.loss(module.run_model, module.run_guide, part))
        return float(np.mean(losses))

    # the exact guide: the integrand is the log evidence for any noise
    exact = -module.log_marginal(X.numpy()).sum()
    for size in (1, 3, 4, 12):
        assert mean_loss(size) == pytest.approx(exact, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [40, 10, 7, None])
def test_training_finds_the_exact_posterior(batch_size: int | None) -> None:
    X = np.random.default_rng(1).normal(1.0, 2.0, size=(40, 1)).astype(np.float32)
    model = given(X, Mean())
    loc, scale = Mean.exact_posterior(X)
    optimizer = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.96}
    )
    model.train(
        max_epochs=110, batch_size=batch_size, train_size=1.0, enable_progress_bar=False,
        plan_kwargs={"optim": optimizer, "loss_fn": Trace_ELBO(num_particles=4)},
    )  # fmt: skip
    module = model.module
    assert module.loc.item() == pytest.approx(loc, abs=0.15 * scale)
    assert module.log_scale.exp().item() == pytest.approx(scale, rel=0.15)
    bound = model.get_elbo(num_samples=4_000) * 40
    assert bound == pytest.approx(Mean.log_evidence(X), abs=0.08)


def test_attributes_may_not_hide_properties() -> None:
    class Hiding(PyroBaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.posterior = torch.nn.Linear(2, 2)

    with pytest.raises(ModelError, match=r"Hiding\.posterior cannot be assigned.*another name"):
        Hiding()
