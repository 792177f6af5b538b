r"""Log masses of counts that are mostly zero, with gradients by hand, in plain torch operations.

For a count of zero the negative binomial needs one logarithm and no gamma function; what a count
above zero adds is computed where there is one. With :math:`r = \mu / \theta`,

.. math::
    \log p(x) = -\theta \log(1 + r)
    + \Big[ \sum_{k < x} \log(\theta + k) - \log x! + x \log \frac{r}{1 + r} \Big]_{x > 0}.

The gradients are computed along with the values, block by block, while a block is in the cache.
Values and gradients are those of :mod:`pyrovi.distributions.log_pmf`, which is what runs where this
module does not apply (:func:`applies`): on accelerators, under tracing and the transforms of
:mod:`torch.func` (but for values of many draws by ``vmap``), for few values. Gradients of gradients
are taken of those formulas, too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovi.distributions.log_pmf import log1pexp, log_nb_positive, log_zinb_positive

SMALLEST = 2**14
"""Number of values from which the sparse form is faster than the plain one."""

_BLOCK = 2**16
"""Values per block: a few blocks of them fit into the cache of a core."""

_TABLE = 8
"""Counts up to this one take their sums of logarithms from a table with a row per count."""

_UNLIKELY = math.log(0.1)
"""Zeros less likely than this are computed by the formula that keeps its digits there."""


def applies(x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor | None = None) -> bool:
    """Whether :func:`log_nb` takes these arguments, and is the faster way.

    Parameters
    ----------
    x, mu, theta, zi_logits
        As in :func:`~pyrovi.distributions.log_pmf.log_zinb_positive`.
    """
    tensors = [t for t in (x, mu, theta, zi_logits) if t is not None]
    return (
        mu.numel() >= SMALLEST
        and mu.device.type == "cpu"
        and all(t.device == mu.device and t.dtype == mu.dtype for t in tensors)
        and mu.dtype in (torch.float32, torch.float64)
        and mu.dim() > 0
        and x.shape == mu.shape
        and (zi_logits is None or zi_logits.shape == mu.shape)
        and (theta.shape == mu.shape or theta.numel() == mu.shape[-1] == theta.shape[-1])
        and not x.requires_grad
        and _is_eager()
        and (not _transforms() or _only_vectorised())
    )


def _is_eager() -> bool:
    """Whether operations run as they are written: not traced or compiled."""
    return not (
        torch._C._is_tracing()
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )


def _transforms() -> list[Any]:
    """The transforms of :mod:`torch.func` that are under way."""
    return torch._C._functorch.get_interpreter_stack() or []


def _only_vectorised() -> bool:
    """Whether they do no more than to take many draws, of values without gradients."""
    vmap = torch._C._functorch.TransformType.Vmap
    return not torch.is_grad_enabled() and all(level.key() == vmap for level in _transforms())


def log_nb(x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor | None = None) -> Tensor:
    """Log mass of the negative binomial, zero-inflated where ``zi_logits`` are given.

    Parameters
    ----------
    x, mu, theta, zi_logits
        As in :func:`~pyrovi.distributions.log_pmf.log_zinb_positive`, of arguments to which this
        module :func:`applies`.
    """
    parameters = [p for p in (mu, theta, zi_logits) if p is not None]
    if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
        value: Tensor = _LogNB.apply(x, mu, theta, zi_logits)  # type: ignore[no-untyped-call]
        return value
    if _transforms():
        values: Tensor = _DrawsOfLogNB.apply(x, mu, theta, zi_logits)  # type: ignore[no-untyped-call]
        return values
    return _evaluate(x, mu, theta, zi_logits, gradients=False)[0]


class _DrawsOfLogNB(torch.autograd.Function):
    """Values of many draws: further leading dimensions, but for those of a shared ``theta``."""

    @staticmethod
    def forward(x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor | None) -> Tensor:
        return _evaluate(x, mu, theta, zi_logits, gradients=False)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept: there are no gradients."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        mu: Tensor,
        theta: Tensor,
        zi_logits: Tensor | None,
    ) -> tuple[Tensor, int]:
        parts = [x, mu, theta, *([] if zi_logits is None else [zi_logits])]
        moved = [
            part.expand(info.batch_size, *part.shape) if dim is None else part.movedim(dim, 0)
            for part, dim in zip(parts, in_dims, strict=False)
        ]
        if in_dims[2] is None and theta.numel() == theta.shape[-1]:
            moved[2] = theta
        elif moved[2].shape != moved[1].shape:  # a row for each draw
            return torch.stack([log_nb(*draw) for draw in zip(*moved, strict=True)]), 0
        return log_nb(*moved), 0


class _LogNB(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor | None) -> Tensor:
        value, *derivatives = _evaluate(x, mu, theta, zi_logits, gradients=True)
        ctx.save_for_backward(x, mu, theta, zi_logits, *derivatives)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, mu, theta, zi_logits, *derivatives = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants gradients of this gradient
            return _plain_backward(x, mu, theta, zi_logits, upstream, ctx.needs_input_grad)
        by_mu, by_theta, *by_zi = derivatives
        _, want_mu, want_theta, want_zi = ctx.needs_input_grad
        return (
            None,
            upstream * by_mu if want_mu else None,
            _summed(upstream, by_theta, theta) if want_theta else None,
            upstream * by_zi[0] if want_zi else None,
        )


def _summed(upstream: Tensor, derivative: Tensor, theta: Tensor) -> Tensor:
    """Product, summed over the values that share an inverse dispersion."""
    if theta.shape == derivative.shape:
        return upstream * derivative
    rows = derivative.reshape(-1, derivative.shape[-1])
    if upstream.stride(-1) == 0:  # the same for all variables, as a sum over them makes it
        return (upstream[..., 0].reshape(-1) @ rows).view(theta.shape)
    return (upstream.reshape(rows.shape) * rows).sum(0).view(theta.shape)


def _plain_backward(
    x: Tensor,
    mu: Tensor,
    theta: Tensor,
    zi_logits: Tensor | None,
    upstream: Tensor,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    if zi_logits is None:
        value = log_nb_positive(x, mu, theta)
    else:
        value = log_zinb_positive(x, mu, theta, zi_logits)
    given = (x, mu, theta, zi_logits)
    inputs = [t for t, want in zip(given, wanted, strict=True) if want and t is not None]
    found = iter(torch.autograd.grad(value, inputs, upstream, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)


@torch.no_grad()
def _evaluate(
    x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor | None, *, gradients: bool
) -> list[Tensor]:
    """Values and, if wanted, derivatives by mu, theta and zi_logits; of the shape of the means."""
    shape, columns = mu.shape, mu.shape[-1]
    shared = theta.shape != shape
    x, mu, theta = (t.reshape(-1, columns) for t in (x, mu, theta))
    zi = None if zi_logits is None else zi_logits.reshape(-1, columns)
    size = 1 if not gradients else 3 if zi is None else 4
    out = [torch.empty(mu.shape, dtype=mu.dtype) for _ in range(size)]
    rows = max(1, _BLOCK // columns)
    for start in range(0, len(mu), rows):
        block = slice(start, start + rows)
        dispersion, parts = theta if shared else theta[block], [o[block] for o in out]
        if zi is None:
            _zeros(mu[block], dispersion, parts)
        else:
            _inflated_zeros(mu[block], dispersion, zi[block], parts)
    _counts(x, mu, theta, zi, out)
    return [o.view(shape) for o in out]


def _zeros(mu: Tensor, theta: Tensor, out: list[Tensor]) -> None:
    r"""Of a count of zero, for which :math:`\log p = -\theta \log(1 + r)`."""
    r = mu / theta
    t = torch.log1p(r)
    torch.mul(t, theta, out=out[0]).neg_()
    if len(out) > 1:
        g = r.add_(1).reciprocal_()
        torch.neg(g, out=out[1])
        torch.add(t, g, out=out[2]).neg_().add_(1)


def _inflated_zeros(mu: Tensor, theta: Tensor, zi_logits: Tensor, out: list[Tensor]) -> None:
    r"""Of a count of zero, whose probability is :math:`1 + y`, :math:`y = (1-\pi)(e^{nb} - 1)`."""
    r = mu / theta
    t = torch.log1p(r)
    rest = torch.mul(t, theta).neg_().expm1_()
    kept = torch.neg(zi_logits).sigmoid_()  # 1 - pi
    y = rest * kept
    torch.log1p(y, out=out[0])
    if len(out) > 1:
        inverse = (1 + y).reciprocal_()
        weight = rest.add_(1).mul_(kept).mul_(inverse)  # of the negative binomial, given a zero
        g = r.add_(1).reciprocal_()
        torch.mul(weight, g, out=out[1]).neg_()
        torch.add(t, g, out=out[2]).neg_().add_(1).mul_(weight)
        torch.sub(kept, 1, out=out[3]).mul_(y).mul_(inverse)


def _counts(x: Tensor, mu: Tensor, theta: Tensor, zi: Tensor | None, out: list[Tensor]) -> None:
    """Put in place what is not a count of zero, or an unlikely one."""
    chosen = x != 0
    if zi is not None:
        chosen |= out[0] < _UNLIKELY
    index = torch.from_numpy(np.flatnonzero(chosen.numpy()))  # many times faster than torch's own
    if len(index) == 0:
        return
    count, mean = x.reshape(-1).index_select(0, index), mu.reshape(-1).index_select(0, index)
    if theta.shape == mu.shape:
        own = theta.reshape(-1).index_select(0, index)
        log_gamma, digamma = _gamma_terms(count, own)
    else:
        column = index % mu.shape[1]
        own = theta[0].index_select(0, column)
        log_gamma, digamma = _tabled_gamma_terms(count, theta[0], own, column)
    total, t = mean + own, torch.log1p(mean / own)
    parts = [log_gamma - own * t + torch.xlogy(count, mean / total)]
    if len(out) > 1:
        g = own / total
        ratio = count / (mean + (count == 0))
        parts += [g * (ratio - 1), 1 - g - t + digamma - count / total]
    if zi is not None:
        _inflate(count, zi.reshape(-1).index_select(0, index), parts)
    for where, values in zip(out, parts, strict=True):
        where.view(-1).scatter_(0, index, values)


def _inflate(count: Tensor, zi_logits: Tensor, parts: list[Tensor]) -> None:
    """Mix values and derivatives of negative binomials with an extra zero."""
    empty, log_mass = count == 0, parts[0]
    parts[0] = torch.where(empty, torch.logaddexp(zi_logits, log_mass), log_mass)
    parts[0] -= log1pexp(zi_logits)
    if len(parts) > 1:
        weight = torch.sigmoid(log_mass - zi_logits).masked_fill_(~empty, 1)
        parts[1] *= weight
        parts[2] *= weight
        extra = torch.sigmoid(zi_logits - log_mass).masked_fill_(~empty, 0)
        parts.append(extra - torch.sigmoid(zi_logits))


def _gamma_terms(count: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of log-gamma (less the log factorial) and digamma functions over the counts."""
    total = count + theta
    log_gamma = torch.lgamma(total) - torch.lgamma(theta) - torch.lgamma(count + 1)
    return log_gamma, torch.digamma(total) - torch.digamma(theta)


def _tabled_gamma_terms(
    count: Tensor, theta: Tensor, own: Tensor, column: Tensor
) -> tuple[Tensor, Tensor]:
    """The same for few values of ``theta``: sums over 0, 1, ..., x - 1 for small whole counts."""
    numbers = torch.arange(_TABLE + 1, dtype=theta.dtype)[:, None]
    steps = numbers[:-1] + theta
    first = theta.new_zeros(1, len(theta))
    logs = torch.cat([first, steps.log().cumsum_(0)]).sub_(torch.lgamma(numbers + 1))
    inverses = torch.cat([first, steps.reciprocal().cumsum_(0)])
    row = count.clamp(max=_TABLE).long()
    position = row * len(theta) + column
    log_gamma = logs.view(-1).index_select(0, position)
    digamma = inverses.view(-1).index_select(0, position)
    large = torch.from_numpy(np.flatnonzero((row != count).numpy()))
    if len(large):
        exact = _gamma_terms(count[large], own[large])
        log_gamma.scatter_(0, large, exact[0])
        digamma.scatter_(0, large, exact[1])
    return log_gamma, digamma
