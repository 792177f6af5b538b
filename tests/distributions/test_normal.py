from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine

from pyrovi.distributions import Log1pNormal, Normal
from pyrovi.errors import ModelError


def test_normal_is_pyros_and_carries_the_normalised_expression():
    carried = torch.tensor([0.2, 0.8])
    d = Normal(torch.zeros(2), 2.0, normal_mu=carried)
    assert isinstance(d, pyro.distributions.Normal)
    wide = d.expand((3, 2))
    torch.testing.assert_close(wide.normal_mu, carried.expand(3, 2))
    torch.testing.assert_close(wide.get_normalized("scale"), carried.expand(3, 2))
    torch.testing.assert_close(wide.get_normalized("mu"), torch.zeros(3, 2))
    assert Normal(0.0, 1.0).expand((2,)).normal_mu is None
    with pytest.raises(ModelError, match="normal_mu"):
        Normal(0.0, 1.0).get_normalized("scale")
    other = pyro.distributions.Normal(1.0, 1.0)
    torch.testing.assert_close(
        torch.distributions.kl_divergence(Normal(torch.tensor(0.0), torch.tensor(1.0)), other),
        torch.tensor(0.5),
    )


@pytest.mark.parametrize("make", [Normal, Log1pNormal])
def test_draws_are_reparametrised(make):
    loc = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def draw(loc, sigma):
        torch.manual_seed(1)
        return make(loc, sigma).rsample((4,))

    with torch.random.fork_rng():
        assert torch.autograd.gradcheck(draw, (loc, sigma))
        assert not make(loc, sigma).sample().requires_grad
        trace = poutine.trace(lambda: pyro.sample("x", make(loc, sigma))).get_trace()
    assert trace.nodes["x"]["value"].requires_grad
