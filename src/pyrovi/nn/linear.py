"""Linear layers whose products of single-precision matrices are oneDNN's, on x86 processors.

torch multiplies such matrices by MKL, which leaves the widest vectors of processors that are not
Intel's unused. The results are the same but for rounding.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrovi._eager import is_eager, transforms

_SMALLEST = 2**20
"""Number of multiplications from which the call is worth its overhead."""

_AVAILABLE = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


class Linear(nn.Linear):
    """:class:`torch.nn.Linear`, by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear`, by the faster library.

    Parameters
    ----------
    x
        Features, shape ``(..., n_in)``.
    weight
        Shape ``(n_out, n_in)``.
    bias
        Shape ``(n_out,)``, or ``None``.
    """
    if not _applies(x, weight, bias):
        return functional.linear(x, weight, bias)
    result: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


def _applies(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return bool(
        _AVAILABLE
        and x.dim() == weight.dim() == 2
        and x.shape[1] == weight.shape[1]
        and (bias is None or (bias.is_contiguous() and bias.shape == weight.shape[:1]))
        and (bias is None or bias.dtype == x.dtype)
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and len(x) * weight.numel() >= _SMALLEST
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and is_eager()
        and not transforms()
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight = _dense(x), _dense(weight)
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        want_x, want_weight, want_bias = ctx.needs_input_grad
        if torch.is_grad_enabled():  # somebody wants gradients of this gradient
            return (
                upstream @ weight if want_x else None,
                upstream.mT @ x if want_weight else None,
                upstream.sum(0) if want_bias else None,
            )
        upstream = upstream.contiguous()
        return (
            _product(upstream, weight.mT) if want_x else None,
            _outer(upstream, x) if want_weight else None,
            upstream.sum(0) if want_bias else None,
        )


def _dense(matrix: Tensor) -> Tensor:
    """The matrix without gaps between its rows or columns.

    A slice of columns, which has them, would be multiplied by oneDNN's reference implementation:
    a thousand times slower.
    """
    return matrix if matrix.is_contiguous() or matrix.mT.is_contiguous() else matrix.contiguous()


def _outer(upstream: Tensor, x: Tensor) -> Tensor:
    """Gradient by the weight; the second factor is the wide one, which is faster."""
    if x.shape[1] >= upstream.shape[1]:
        return _product(upstream.mT, x.mT)
    return _product(x.mT, upstream.mT).mT


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
