"""The normal distribution above a bound, against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import biject_to

from pyrovi.distributions import TruncatedNormal
from pyrovi.errors import ModelError

LOW = 0.7
LOC = torch.tensor([-8.0, -0.5, 0.7, 3.0], dtype=torch.float64)
SCALE = torch.tensor([0.8, 1.0, 0.3, 0.5], dtype=torch.float64)


def scipy() -> object:
    loc, scale = LOC.numpy(), SCALE.numpy()
    return stats.truncnorm((LOW - loc) / scale, np.inf, loc, scale)


def test_density_and_moments_are_scipys() -> None:
    made = TruncatedNormal(LOC, SCALE, LOW)
    x = torch.tensor([[0.71], [1.0], [2.5], [4.0]], dtype=torch.float64)
    np.testing.assert_allclose(made.log_prob(x), scipy().logpdf(x), rtol=1e-9)
    np.testing.assert_allclose(made.mean, scipy().mean(), rtol=1e-8)
    np.testing.assert_allclose(made.variance, scipy().var(), rtol=1e-4)


def test_draws_have_the_distribution() -> None:
    torch.manual_seed(0)
    draws = TruncatedNormal(LOC.float(), SCALE.float(), LOW).sample((4_000,))
    assert draws.shape == (4_000, 4)
    assert (draws > LOW).all()
    u = scipy().cdf(draws.double().numpy())
    assert all(stats.kstest(column, "uniform").pvalue > 1e-3 for column in u.T)


def test_draws_have_gradients() -> None:
    loc = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    for shift in (0.0, 1e-6):
        torch.manual_seed(1)
        value = TruncatedNormal(loc + shift, torch.tensor(1.0).double(), LOW).rsample()
        if not shift:
            (slope,) = torch.autograd.grad(value, loc)
            first = value.item()
    assert slope.item() == pytest.approx((value.item() - first) / 1e-6, rel=1e-4)


def test_gradient_of_the_density() -> None:
    parameters = (LOC.clone().requires_grad_(), SCALE.clone().requires_grad_())
    x = torch.tensor(1.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *p: TruncatedNormal(*p, LOW).log_prob(x), parameters)


def test_map_from_the_real_line_keeps_its_tails() -> None:
    made = TruncatedNormal(torch.tensor(1.0), 1.0, LOW).expand((3,))
    transform = biject_to(made.support)
    real = torch.tensor([-5.0, 0.0, 30.0])
    value = transform(real)
    assert made.support.check(value).all()
    assert value[2].item() == pytest.approx(30 + LOW)
    torch.testing.assert_close(transform.inv(value), real, rtol=1e-4, atol=1e-4)


def test_parameters_are_checked() -> None:
    with pytest.raises(ModelError, match="`scale` must satisfy"):
        TruncatedNormal(0.0, -1.0, LOW, validate_args=True)
