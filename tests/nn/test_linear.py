"""Linear layers by oneDNN against torch's own."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pyrovi.nn import linear as module
from pyrovi.nn.linear import Linear, linear

pytestmark = pytest.mark.skipif(not module._AVAILABLE, reason="oneDNN is for x86 processors")


def given(n: int, n_in: int, n_out: int, wider: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, n_in, generator=generator)
    weight = torch.randn(n_out, n_in + wider, generator=generator)[:, :n_in]
    return x, weight, torch.randn(n_out, generator=generator)


@pytest.mark.parametrize(("n_in", "n_out"), [(500, 60), (60, 500)])
@pytest.mark.parametrize("wider", [0, 3])  # columns of covariates are left out
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients(n_in: int, n_out: int, wider: int, biased: bool) -> None:
    x, weight, bias = given(40, n_in, n_out, wider)
    found = []
    for function, dtype in ((linear, torch.float32), (functional.linear, torch.float64)):
        leaves = [t.to(dtype).detach().requires_grad_() for t in (x, weight, bias)]
        arguments = leaves if biased else leaves[:2]
        assert module._applies(*arguments[:2]) == (function is linear)
        value = function(*arguments)
        (value * torch.linspace(0, 1, n_out, dtype=dtype)).square().sum().backward()
        found.append([value.detach(), *(leaf.grad for leaf in arguments)])
    for ours, exact in zip(*found, strict=True):
        assert ours is not None
        assert exact is not None
        error = (ours.double() - exact).abs().max() / exact.abs().max()
        assert error < 1e-6


def test_sums_of_rows_as_gradient() -> None:
    """Upstream gradients without memory of their own."""
    x, weight, bias = (t.requires_grad_() for t in given(40, 500, 60))
    linear(x, weight, bias).sum().backward()
    np.testing.assert_allclose(bias.grad, 40.0)
    np.testing.assert_allclose(weight.grad, x.detach().sum(0).expand(60, -1), rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients() -> None:
    x, weight, bias = given(40, 500, 60)
    second = []
    for function in (linear, functional.linear):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        value = function(*leaves, bias).mul(0.01).tanh().sum()
        first = torch.autograd.grad(value, leaves, create_graph=True)
        total = sum(g.square().sum() for g in first)
        second.append([*first, *torch.autograd.grad(total, leaves)])
    for ours, theirs in zip(*second, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    x, weight, bias = given(40, 500, 60)
    bias.requires_grad_()
    linear(x, weight, bias).sum().backward()
    np.testing.assert_allclose(bias.grad, 40.0)


def test_where_it_does_not_apply() -> None:
    x, weight, _ = given(40, 500, 60)
    assert module._applies(x, weight)
    assert not module._applies(x[:5], weight)  # small
    assert not module._applies(x.double(), weight.double())
    assert not module._applies(x[None], weight)
    strided = torch.arange(120.0)[::2]
    assert not module._applies(x, weight, strided)
    torch.testing.assert_close(linear(x, weight, strided), functional.linear(x, weight, strided))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(x[:, :-1], weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not module._applies(x, weight)
    draws = torch.func.vmap(lambda w: linear(x, w))(torch.stack([weight, 2 * weight]))
    torch.testing.assert_close(draws[1], 2 * functional.linear(x, weight))


def test_layers_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = given(40, 500, 60)
    layer = Linear(500, 60)
    layer.load_state_dict({"weight": weight, "bias": bias})
    called = []
    product = module._product

    def spy(*arguments: Tensor) -> Tensor:
        called.append(len(arguments))
        return product(*arguments)

    monkeypatch.setattr(module, "_product", spy)
    torch.testing.assert_close(layer(x), functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    assert called == [3]


def test_columns_left_out_cost_no_time() -> None:
    """oneDNN multiplies matrices with gaps a thousand times more slowly."""

    def seconds(weight: Tensor) -> float:
        def once() -> float:
            start = time.process_time()
            linear(x, weight, bias)
            return time.process_time() - start

        return min(once() for _ in range(3))

    x, weight, bias = given(256, 500, 256, wider=2)
    assert seconds(weight) < 20 * seconds(weight.contiguous()) + 0.01
