"""The compiled loops of counts against the plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyrovi.distributions import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    compiled_counts,
)
from pyrovi.distributions.log_pmf import log_nb_positive, log_poisson, log_zinb_positive

Arguments = list[Tensor]


def arguments(
    dtype: torch.dtype = torch.float64, shared: bool = True, inflated: bool = True
) -> Arguments:
    """Counts from none to thousands, means and dispersions over ten orders of magnitude."""
    rng = np.random.default_rng(0)
    n, g = 200, 100
    theta = 10 ** rng.uniform(-5, 5, g if shared else (n, g))
    mu = 10 ** rng.uniform(-6, 4, (n, g))
    x = rng.poisson(np.where(rng.random((n, g)) < 0.7, 0.0, np.minimum(mu, 5000.0)))
    x[:3] = rng.integers(0, 20, (3, g))  # also where they are unlikely
    zi = rng.normal(0, 8, (n, g))
    values = [x, mu, theta, *([zi] if inflated else [])]
    return [torch.as_tensor(v, dtype=dtype) for v in values]


def plain(x: Tensor, mu: Tensor, *more: Tensor) -> Tensor:
    if not more:
        return log_poisson(x, mu)
    theta, *zi = more
    return log_zinb_positive(x, mu, theta, *zi) if zi else log_nb_positive(x, mu, theta)


def gradients(function: object, x: Tensor, *parameters: Tensor) -> Arguments:
    leaves = [p.detach().clone().requires_grad_() for p in parameters]
    weights = torch.linspace(0.5, 2, len(x), dtype=x.dtype)
    value = function(x, *leaves)  # type: ignore[operator]
    (value.sum(-1) * weights).sum().backward()
    return [value.detach(), *(leaf.grad for leaf in leaves)]  # type: ignore[misc]


@pytest.mark.parametrize("inflated", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_values_and_gradients_over_the_whole_range(shared: bool, inflated: bool) -> None:
    given = arguments(shared=shared, inflated=inflated)
    assert compiled_counts.applies(*given)
    for found, wanted in zip(gradients(compiled_counts.log_mass, *given), gradients(plain, *given),
                             strict=True):  # fmt: skip
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("inflated", [False, True])
def test_single_precision_is_as_good_as_that_of_the_formula(inflated: bool) -> None:
    given = arguments(torch.float32, inflated=inflated)
    exact = gradients(plain, *(t.detach().double() for t in given))
    ours, theirs = gradients(compiled_counts.log_mass, *given), gradients(plain, *given)
    for wanted, a, b in zip(exact, ours, theirs, strict=True):
        scale = wanted.abs().clamp_min(1)
        error, theirs_error = ((f.double() - wanted).abs() / scale for f in (a, b))
        assert error.mean() <= 1e-6
        assert error.max() <= max(1e-4, 3 * theirs_error.max())


def test_log_mass_is_that_of_scipy() -> None:
    x, mu, theta = arguments(inflated=False)
    wanted = stats.nbinom.logpmf(x.numpy(), theta.numpy(), 1 / (1 + (mu / theta).numpy()))
    found = compiled_counts.log_mass(x, mu, theta).numpy()
    usual = np.isfinite(wanted) & (theta.numpy() < 100) & (theta.numpy() > 1e-2)
    np.testing.assert_allclose(found[usual], wanted[usual], rtol=1e-7, atol=1e-8)


def test_means_of_zero_and_broken_counts() -> None:
    x, mu, theta, zi = arguments()
    mu[:50] = 0.0
    x[:20] = 0.0
    x[100:] += 0.5 * (x[100:] > 0)  # no count: the table of whole numbers is no use
    for given in ((x, mu, theta), (x, mu, theta, zi)):
        found, wanted = compiled_counts.log_mass(*given), plain(*given)
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)
    assert torch.isneginf(found[20:50][x[20:50] > 0]).all()
    inside = [x[:20].repeat(20, 1), mu[:20].repeat(20, 1), theta, zi[:20].repeat(20, 1)]
    for a, b in zip(gradients(compiled_counts.log_mass, *inside), gradients(plain, *inside),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


NO_NUMBERS = [np.nan, np.inf, -np.inf, -1.0, -17.0, -(2.0**31), -1e17]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [*NO_NUMBERS, -0.5])
@pytest.mark.parametrize("what", ["poisson", "nb", "zinb"])
def test_what_is_no_count_has_no_mass(what: str, wrong: float, dtype: torch.dtype) -> None:
    """Unchecked data must not reach beyond the tables, nor go on for ever."""
    x, mu, theta, zi = arguments(dtype)
    mu[:], theta[:] = 1.0, 1.5
    given = {"poisson": (mu,), "nb": (mu, theta), "zinb": (mu, theta, zi)}[what]
    wanted = compiled_counts.log_mass(x, *given)
    x[3, 4] = wrong
    found = compiled_counts.log_mass(x, *given)
    assert found[3, 4].isnan()
    found[3, 4] = wanted[3, 4]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", NO_NUMBERS)
@pytest.mark.parametrize(
    ("what", "place"), [("poisson", 0), ("nb", 0), ("nb", 1), ("zinb", 0), ("zinb", 1)]
)
def test_parameters_that_are_none_give_nan(
    what: str, place: int, wrong: float, dtype: torch.dtype
) -> None:
    n_parameters = {"poisson": 1, "nb": 2, "zinb": 3}[what]
    for count in (0.0, 3.0):
        x, *parameters = arguments(dtype)
        x[:], parameters[0][:], parameters[1][:] = count, 1.0, 1.5
        parameters[place].view(-1)[7] = wrong
        leaves = [p.requires_grad_() for p in parameters[:n_parameters]]
        found = compiled_counts.log_mass(x, *leaves)
        assert found.reshape(-1)[7].isnan()
        assert found.isnan().sum() == (len(x) if place == 1 else 1)


def test_log_odds_that_are_none_give_nan() -> None:
    x, mu, theta, zi = arguments(torch.float32)
    zi[3, :], x[3, :50] = np.nan, 0.0
    found = compiled_counts.log_mass(x, mu, theta, zi)
    assert found[3].isnan().all()
    assert not found[4:].isnan().any()


def test_poisson_masses_of_fractions() -> None:
    x, mu, *_ = arguments()
    x[:] = torch.rand(x.shape, dtype=x.dtype) * 3
    torch.testing.assert_close(compiled_counts.log_mass(x, mu), log_poisson(x, mu))


def test_counts_and_means_of_draws_within_draws() -> None:
    rates, data = torch.rand(5, 150) + 0.5, torch.poisson(torch.rand(3, 128, 150) * 3)

    def log_prob(x: Tensor, rate: Tensor) -> Tensor:
        theta, mu = torch.ones(150), rate.expand(128, 150)
        return NegativeBinomial(mu=mu, theta=theta, validate_args=False).log_prob(x)

    inner = torch.func.vmap(log_prob, (None, 0))
    with torch.no_grad():
        found = torch.func.vmap(inner, (0, None))(data, rates)
    wanted = torch.stack([torch.stack([log_prob(x, rate) for rate in rates]) for x in data])
    torch.testing.assert_close(found, wanted)


def test_poisson_distributions() -> None:
    x, mu, *_ = arguments()
    assert compiled_counts.applies(x, mu)
    for found, wanted in zip(gradients(compiled_counts.log_mass, x, mu), gradients(plain, x, mu),
                             strict=True):  # fmt: skip
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    wanted = stats.poisson.logpmf(x.numpy(), mu.numpy())
    np.testing.assert_allclose(Poisson(mu).log_prob(x), wanted, rtol=1e-9, atol=1e-9)
    many = torch.func.vmap(lambda rate: Poisson(rate, validate_args=False).log_prob(x))
    drawn = many(torch.stack([mu, 2 * mu]))
    np.testing.assert_allclose(drawn[1], stats.poisson.logpmf(x, 2 * mu), rtol=1e-9, atol=1e-9)


def test_general_weights_and_gradients_of_gradients() -> None:
    x, mu, theta, zi = arguments()
    x, mu, theta = x.clamp(max=50), mu.clamp(1e-2, 1e2), theta.clamp(1e-1, 1e2)
    weights = torch.randn_like(mu)
    second = []
    for function in (compiled_counts.log_mass, plain):
        leaves = [p.clone().requires_grad_() for p in (mu, theta, zi)]
        value = (function(x, *leaves) * weights).sum()
        first = torch.autograd.grad(value, leaves, create_graph=True)
        total = sum((g * g.detach().sin()).sum() for g in first)
        second.append([*first, *torch.autograd.grad(total, leaves)])
    for found, wanted in zip(*second, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    x, mu, theta, zi = arguments()
    theta.requires_grad_()
    value = compiled_counts.log_mass(x, mu, theta, zi)
    value.sum().backward()
    assert theta.grad is not None
    assert mu.grad is None
    with torch.no_grad():
        torch.testing.assert_close(compiled_counts.log_mass(x, mu, theta, zi), value.detach())


def test_where_it_does_not_apply() -> None:
    x, mu, theta, zi = arguments()
    assert not compiled_counts.applies(x[:9], mu[:9], theta)  # small
    assert not compiled_counts.applies(x, mu, theta[0])  # a number
    assert not compiled_counts.applies(x[:1], mu, theta)  # to be broadcast
    assert not compiled_counts.applies(x.float(), mu, theta)
    assert not compiled_counts.applies(x, mu, theta, zi[:1])
    seen = []

    def traced(mu: Tensor) -> Tensor:
        seen.append(compiled_counts.applies(x, mu, theta))
        return NegativeBinomial(mu=mu, theta=theta, validate_args=False).log_prob(x).sum()

    gradient = torch.func.vmap(torch.func.grad(traced))(torch.stack([mu, mu]))
    assert seen == [False]
    wanted = gradients(compiled_counts.log_mass, x, mu, theta)
    torch.testing.assert_close(gradient[0], wanted[1] / torch.linspace(0.5, 2, len(x))[:, None])


@pytest.mark.parametrize("inflated", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_values_of_many_draws(shared: bool, inflated: bool) -> None:
    x, mu, theta, *zi = arguments(shared=shared, inflated=inflated)
    outer, inner = 1 + torch.rand(2, 3, 1, 1, 1), 1 + torch.rand(1, 1, 4, 1, 1)
    shifts = outer[0, :, 0] * theta, outer[1] * inner[0]  # globals; of both: locals
    seen = []

    def density(theta: Tensor, shift: Tensor) -> Tensor:
        theta = theta.reshape(given[2].shape)
        seen.append(compiled_counts.applies(x, shift * mu, theta, *zi))
        if inflated:
            fn = ZeroInflatedNegativeBinomial(
                mu=shift * mu, theta=theta, zi_logits=zi[0], validate_args=False
            )
        else:
            fn = NegativeBinomial(mu=shift * mu, theta=theta, validate_args=False)
        return fn.log_prob(x)

    given = (x, mu, theta)
    per_global = torch.func.vmap(density, in_dims=(None, 0))
    found = torch.func.vmap(per_global)(*shifts)
    assert seen == [True]
    for s in range(3):
        for k in range(4):
            dispersion = shifts[0][s].reshape(theta.shape)
            wanted = plain(x, shifts[1][s, k] * mu, dispersion, *zi)
            torch.testing.assert_close(found[s, k], wanted, rtol=1e-7, atol=1e-7)


def test_distributions_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, mu, theta, zi = arguments()
    called = []

    def spy(*given: Tensor) -> Tensor:
        called.append(len(given))
        return log_mass(*given)

    log_mass = compiled_counts.log_mass
    monkeypatch.setattr(compiled_counts, "log_mass", spy)
    found = NegativeBinomial(mu=mu, theta=theta).to_event(1).log_prob(x)
    torch.testing.assert_close(found, plain(x, mu, theta).sum(-1), rtol=1e-7, atol=1e-7)
    found = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=zi).log_prob(x)
    torch.testing.assert_close(found, plain(x, mu, theta, zi), rtol=1e-7, atol=1e-7)
    assert called == [3, 4]


@pytest.mark.parametrize("inflated", [False, True])
def test_transposed_means(inflated: bool) -> None:
    x, mu, theta, *zi = arguments(inflated=inflated)
    turned = mu.T.contiguous().T
    assert not turned.is_contiguous()
    found = gradients(compiled_counts.log_mass, x, turned, theta, *zi)
    for one, other in zip(found, gradients(plain, x, mu, theta, *zi), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(compiled_counts.log_mass(x, turned), plain(x, mu))


def test_gradients_of_gradients_of_parameters_that_depend_on_one_another() -> None:
    x, *_ = arguments()
    x = x.clamp(max=50)
    found = []
    for function in (compiled_counts.log_mass, plain):
        count = torch.linspace(0.5, 3, x.shape[1], dtype=x.dtype).requires_grad_()
        odds = torch.linspace(0.1, 2, len(x), dtype=x.dtype)[:, None]
        value = function(x, count * odds, count).sum()
        (first,) = torch.autograd.grad(value, count, create_graph=True)
        found.append([first.detach(), *torch.autograd.grad(first.square().sum(), count)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
