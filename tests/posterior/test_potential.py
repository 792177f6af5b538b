"""The potential against densities written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from tests.module.stories import Hierarchy, given
from torch import Tensor

from pyrovi.errors import ModelError
from pyrovi.module import PyroBaseModule
from pyrovi.posterior.compiled import ValueAndGradient, eager
from pyrovi.posterior.potential import Potential
from pyrovi.posterior.precision import in_precision


def potential_of(X: np.ndarray, module: PyroBaseModule, **options: Any) -> Potential:
    model = given(X, module)
    _, _, loader = model.loader()
    return Potential(model.module, next(iter(loader(len(X)))), **options)


class Mixture(PyroBaseModule):
    def model(self, X: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 3.0).to_event(1))
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with self.obs_plate():
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("X", dist.Normal(loc[k], scale), obs=X[:, 0])

    def guide(self, X: Tensor) -> None:
        pyro.sample("loc", dist.Normal(torch.zeros(3), 3.0).to_event(1))
        pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
        pyro.sample("scale", dist.HalfNormal(1.0))


class Markov(PyroBaseModule):
    """A chain of two hidden states."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.register_buffer("y", y)

    def model(self) -> None:
        theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        mu = pyro.sample("mu", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).to_event(1))
        state: Any = None
        for t in pyro.markov(range(len(self.y))):
            row = torch.full((2,), 0.5) if t == 0 else theta[state]
            state = pyro.sample(f"x{t}", dist.Categorical(row), infer={"enumerate": "parallel"})
            pyro.sample(f"y{t}", dist.Normal(mu[state], 1.0), obs=self.y[t])

    def guide(self) -> None:
        pyro.sample("theta", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        pyro.sample("mu", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).to_event(1))


class Scales(PyroBaseModule):
    """Sites of many supports and no data."""

    def model(self) -> None:
        pyro.sample("positive", dist.Gamma(2.0, 3.0))
        pyro.sample("unit", dist.Beta(2.0, 3.0))
        pyro.sample("between", dist.Uniform(-1.0, 4.0))
        pyro.sample("flat", dist.ImproperUniform(dist.constraints.greater_than(1.0), (), ()))

    def guide(self) -> None:
        for name, value in {"positive": 1.0, "unit": 0.5, "between": 0.0, "flat": 2.0}.items():
            pyro.sample(name, dist.Delta(torch.tensor(value)))


def test_hierarchy_against_scipy() -> None:
    X = np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32)
    potential = potential_of(X, Hierarchy(X))
    point = potential.initial(3)
    mu, z = point["mu"].item(), point["z"].numpy()
    exact = stats.norm(0, 2).logpdf(mu) + stats.norm(mu, 1).logpdf(z).sum()
    exact += stats.norm(z, 0.5).logpdf(X[:, 0].astype(float)).sum()
    assert potential(point).item() == pytest.approx(-exact, rel=1e-12)
    assert potential.dim == 21


def test_a_subset_is_not_scaled_up() -> None:
    X = np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32)
    model = given(X, Hierarchy(X))
    _, _, loader = model.loader(None, [4, 7])
    potential = Potential(model.module, next(iter(loader(2))))
    z = np.array([0.1, -0.2])
    values = {"mu": torch.tensor(0.3, dtype=torch.float64), "z": torch.as_tensor(z)}
    exact = stats.norm(0, 2).logpdf(0.3) + stats.norm(0.3, 1).logpdf(z).sum()
    exact += stats.norm(z, 0.5).logpdf(X[[4, 7], 0].astype(float)).sum()
    assert potential.log_joint(values).item() == pytest.approx(exact, rel=1e-12)


def test_enumerated_mixture_against_logsumexp() -> None:
    X = np.random.default_rng(1).normal(size=(15, 1)).astype(np.float32)
    potential = potential_of(X, Mixture())
    values = potential.constrain(potential.initial(1))
    loc, weights, scale = values["loc"], values["weights"], values["scale"]
    x = torch.as_tensor(X).double()
    marginal = (weights.log() + torch.distributions.Normal(loc, scale).log_prob(x)).logsumexp(-1)
    prior = stats.norm(0, 3).logpdf(loc.numpy()).sum() + stats.halfnorm().logpdf(scale.item())
    prior += stats.dirichlet([2.0] * 3).logpdf(weights.numpy())
    exact = marginal.sum().item() + prior
    assert potential.log_joint(values).item() == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("length", [12])
def test_hidden_markov_chain_against_forward_algorithm(length: int) -> None:
    y = torch.as_tensor(np.random.default_rng(2).normal(5, 3, size=length)).float()
    potential = potential_of(np.zeros((3, 1)), Markov(y))
    values = potential.constrain(potential.initial(1))
    emissions = torch.distributions.Normal(values["mu"], 1.0)
    alpha = torch.full((2,), 0.5).double().log() + emissions.log_prob(y[0].double())
    for t in range(1, length):
        alpha = (alpha[:, None] + values["theta"].log()).logsumexp(0)
        alpha = alpha + emissions.log_prob(y[t].double())
    prior = stats.norm([3, 10], 1).logpdf(values["mu"].numpy()).sum()
    exact = alpha.logsumexp(0).item() + prior
    assert potential.log_joint(values).item() == pytest.approx(exact, rel=1e-9)
    function = ValueAndGradient(potential)
    assert function.is_compiled
    point = potential.flatten(potential.initial(7))
    for fast, slow in zip(function(point), eager(potential, point), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)


def test_jacobians_by_change_of_variables() -> None:
    potential = potential_of(np.zeros((3, 1)), Scales())
    u = {"positive": 0.4, "unit": -0.3, "between": 1.2, "flat": -0.7}
    point = {name: torch.tensor(value, dtype=torch.float64) for name, value in u.items()}
    values = potential.constrain(point)
    expit = 1 / (1 + np.exp(-np.array([u["unit"], u["between"]])))
    assert values["between"].item() == pytest.approx(-1 + 5 * expit[1])
    density = stats.gamma(2, scale=1 / 3).logpdf(np.exp(0.4)) + 0.4
    density += stats.beta(2, 3).logpdf(expit[0]) + np.log(expit[0] * (1 - expit[0]))
    density += -np.log(5) + np.log(5 * expit[1] * (1 - expit[1]))
    density += u["flat"]
    assert potential(point).item() == pytest.approx(-density, rel=1e-12)
    without = potential_of(np.zeros((3, 1)), Scales(), jacobian=False)
    assert without(point).item() == pytest.approx(-potential.log_joint(values).item())


def test_coordinates_go_there_and_back() -> None:
    X = np.zeros((4, 1), dtype=np.float32)
    potential = potential_of(X, Mixture())
    flat = torch.randn(5, 7, potential.dim, generator=torch.manual_seed(0), dtype=torch.float64)
    values = potential.constrain(potential.unflatten(flat))
    assert values["weights"].shape == (5, 7, 3)
    torch.testing.assert_close(values["weights"].sum(-1), torch.ones(5, 7).double())
    torch.testing.assert_close(potential.flatten(potential.unconstrain(values)), flat)


def test_works_under_functional_transforms() -> None:
    X = np.random.default_rng(0).normal(size=(6, 1)).astype(np.float32)
    potential = potential_of(X, Hierarchy(X))
    points = torch.randn(3, potential.dim, generator=torch.manual_seed(0), dtype=torch.float64)
    values = torch.func.vmap(potential.at)(points)
    for value, point in zip(values, points, strict=True):
        torch.testing.assert_close(value, potential.at(point))
    curvature = torch.func.hessian(potential.at)(points[0])
    precision = np.diag([1 / 4 + 6] + [1 + 4.0] * 6)
    precision[0, 1:] = precision[1:, 0] = -1.0
    np.testing.assert_allclose(curvature.numpy(), precision, atol=1e-10)


def test_branches_on_values_are_not_recorded() -> None:
    class Branch(PyroBaseModule):
        def model(self) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            scale = 1.0 if mu > 0 else 2.0
            pyro.factor("more", -(mu**2) / scale)

        def guide(self) -> None:
            pyro.sample("mu", dist.Normal(0.0, 1.0))

    potential = potential_of(np.zeros((3, 1)), Branch())
    function = ValueAndGradient(potential)
    assert not function.is_compiled
    for mu, scale in ((0.5, 1.0), (-0.5, 2.0)):
        value, gradient = function(torch.tensor([mu]).double())
        assert value.item() == pytest.approx(-stats.norm.logpdf(mu) + mu**2 / scale)
        assert gradient.item() == pytest.approx(mu + 2 * mu / scale)


@pytest.mark.parametrize("how", ["nonzero", "mask", "unique", "masked_select"])
def test_shapes_that_depend_on_values_are_not_recorded(how: str) -> None:
    # rare near 0, so that points of check would not show it
    def count(u: Tensor) -> Any:
        if how == "nonzero":
            return (u > 2.2).nonzero().shape[0]
        if how == "mask":
            return u[u > 2.2].shape[0]
        if how == "unique":
            return torch.unique(u.clamp(2.2)).shape[0] - 1
        return torch.masked_select(u, u > 2.2).shape[0]

    class Counts(PyroBaseModule):
        def model(self) -> None:
            u = pyro.sample("u", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.factor("more", -1.5 * count(u) * torch.ones(()))

        def guide(self) -> None:
            pyro.sample("u", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    function = ValueAndGradient(potential_of(np.zeros((3, 1)), Counts()))
    assert not function.is_compiled
    for u, above in (([0.0, 0.1, 0.2, 0.3], 0), ([3.0, 0.1, 2.5, 0.0], 2)):
        value, gradient = function(torch.tensor(u).double())
        assert value.item() == pytest.approx(-stats.norm.logpdf(u).sum() + 1.5 * above)
        np.testing.assert_allclose(gradient, u, rtol=1e-6)


def test_masks_of_the_data_are_recorded() -> None:
    class Masked(PyroBaseModule):
        def model(self, X: Tensor) -> None:
            u = pyro.sample("u", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            kept = torch.tensor([True, False, True, False])
            pyro.factor("more", u[kept].sum())

        def guide(self, X: Tensor) -> None:
            pyro.sample("u", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    function = ValueAndGradient(potential_of(np.zeros((3, 1)), Masked()))
    assert function.is_compiled
    u = np.array([1.0, 2.0, 3.0, 4.0])
    assert function(torch.as_tensor(u))[0].item() == pytest.approx(-stats.norm.logpdf(u).sum() - 4)


def test_a_record_that_fails_is_given_up() -> None:
    potential = potential_of(np.zeros((3, 1), dtype=np.float32), Scales())
    function = ValueAndGradient(potential)
    assert function.is_compiled
    point = torch.zeros(potential.dim, dtype=torch.float64)

    def broken(_: Tensor) -> Any:
        raise RuntimeError("The following operation failed in the TorchScript interpreter.")

    function._replay = broken
    torch.testing.assert_close(function(point)[0], eager(potential, point)[0])
    assert not function.is_compiled


def test_closures_in_single_precision_work_together() -> None:
    W = torch.randn(2, 3, generator=torch.manual_seed(0))

    class Closure(PyroBaseModule):
        def model(self, X: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with self.obs_plate():
                pyro.sample("X", dist.Normal(z @ W, 1.0).to_event(1), obs=X)

        def guide(self, X: Tensor) -> None:
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    X = np.ones((2, 3), dtype=np.float32)
    potential = potential_of(X, Closure())
    z = np.array([0.3, -0.4])
    exact = stats.norm.logpdf(z).sum() + stats.norm(z @ W.double().numpy(), 1).logpdf(X).sum()
    point = {"z": torch.as_tensor(z)}
    assert potential(point).item() == pytest.approx(-exact, rel=1e-12)
    assert potential(point).dtype == torch.float64


def test_functions_that_refuse_mixed_types_get_one() -> None:
    kernel, index = torch.ones(1, 1, 2), torch.tensor([0, 0, 1])
    matrix = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
    u = torch.tensor([0.3, -0.2, 0.7]).double()
    norm = torch.nn.LayerNorm(3)
    with in_precision(torch.float64):
        moved = torch.nn.functional.conv1d(u[None, None], kernel)[0, 0]
        added = torch.zeros(2, dtype=torch.float32).index_add(0, index, u)
        solved = torch.linalg.solve(A=matrix, B=u[:, None])
        normed = norm(u)
    np.testing.assert_allclose(moved, [0.1, 0.5])
    np.testing.assert_allclose(added, [0.1, 0.7])
    np.testing.assert_allclose(matrix.double() @ solved, u[:, None])
    np.testing.assert_allclose(normed.detach().mean(), 0.0, atol=1e-12)
    with in_precision(torch.float64), pytest.raises(RuntimeError, match="scalar type"):
        torch.zeros(2, dtype=torch.float32).index_add_(0, index, u)


def test_what_has_no_gradient_is_refused() -> None:
    class Discrete(PyroBaseModule):
        def model(self) -> None:
            pyro.sample("k", dist.Poisson(3.0))

        guide = model

    with pytest.raises(ModelError, match="'k' is discrete"):
        potential_of(np.zeros((3, 1)), Discrete())

    class Varying(PyroBaseModule):
        def model(self) -> None:
            a = pyro.sample("a", dist.Uniform(0.0, 1.0))
            pyro.sample("b", dist.Uniform(0.0, 1.0 - a))

        guide = model

    with pytest.raises(ModelError, match="support of site 'b' depends"):
        potential_of(np.zeros((3, 1)), Varying())


def test_impossible_data_find_no_initial_point() -> None:
    class Impossible(PyroBaseModule):
        def model(self) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.factor("never", -torch.inf + 0 * mu)

        def guide(self) -> None:
            pyro.sample("mu", dist.Normal(0.0, 1.0))

    with pytest.raises(ModelError, match="No point of finite density"):
        potential_of(np.zeros((3, 1)), Impossible()).initial(0)
