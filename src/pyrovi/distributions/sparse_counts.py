r"""Log masses of counts that are mostly zero, with gradients by hand, in plain torch operations.

For a count of zero the negative binomial needs one logarithm and no gamma function, the Poisson
distribution nothing at all; what a count above zero adds is computed where there is one. With
:math:`r = \mu / \theta`,

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

from pyrovi._eager import is_eager, transforms
from pyrovi.distributions.log_pmf import (
    log1pexp,
    log_nb_positive,
    log_poisson,
    log_zinb_positive,
)

SMALLEST = 2**14
"""Number of values from which the sparse form is faster than the plain one."""

_BLOCK = 2**16
"""Values per block: a few blocks of them fit into the cache of a core."""

_TABLE = 8
"""Counts up to this one take their sums of logarithms from a table with a row per count."""

_UNLIKELY = math.log(1e-15)
"""Log mass of an inflated zero below which sums of probabilities may underflow."""


def applies(
    x: Tensor, mu: Tensor, theta: Tensor | None = None, zi_logits: Tensor | None = None
) -> bool:
    """Whether the sparse form takes these arguments, and is the faster way.

    Parameters
    ----------
    x, mu, theta, zi_logits
        As in :func:`log_mass`.
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
        and (theta is None or theta.shape == mu.shape or _is_row(theta, mu))
        and not x.requires_grad
        and is_eager()
        and (not transforms() or _only_vectorised())
    )


def _is_row(theta: Tensor, mu: Tensor) -> bool:
    """Whether all observations share the inverse dispersions of the variables."""
    return theta.dim() > 0 and theta.numel() == mu.shape[-1] == theta.shape[-1]


def _only_vectorised() -> bool:
    """Whether they do no more than to take many draws, of values without gradients."""
    vmap = torch._C._functorch.TransformType.Vmap
    return not torch.is_grad_enabled() and all(level.key() == vmap for level in transforms())


def log_mass(
    x: Tensor, mu: Tensor, theta: Tensor | None = None, zi_logits: Tensor | None = None
) -> Tensor:
    """Log mass of counts with given means, by the sparse form where it :func:`applies`.

    Parameters
    ----------
    x
        Counts.
    mu
        Means (of the distribution without extra zeros).
    theta
        Inverse dispersions of negative binomials, of the shape of ``mu`` or one for each variable;
        ``None``: Poisson distributions.
    zi_logits
        Log-odds of an extra zero; ``None``: none.
    """
    if applies(x, mu, theta, zi_logits):
        return _sparse(x, mu, theta, zi_logits)
    return _plain(x, mu, theta, zi_logits)


def _sparse(x: Tensor, mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None) -> Tensor:
    given = x, mu, theta, zi_logits
    if torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in given):
        value: Tensor = _LogMass.apply(*given)  # type: ignore[no-untyped-call]
    elif transforms():
        value = _DrawsOfLogMass.apply(*given)  # type: ignore[no-untyped-call]
    else:
        value = _evaluate(*given, gradients=False)[0]
    return value


def _plain(
    x: Tensor, mu: Tensor, theta: Tensor | None = None, zi_logits: Tensor | None = None
) -> Tensor:
    """The formulas of :mod:`pyrovi.distributions.log_pmf`."""
    if theta is None:
        return log_poisson(x, mu)
    if zi_logits is None:
        return log_nb_positive(x, mu, theta)
    return log_zinb_positive(x, mu, theta, zi_logits)


class _DrawsOfLogMass(torch.autograd.Function):
    """Values of many draws: further leading dimensions, but for those of a shared ``theta``."""

    @staticmethod
    def forward(x: Tensor, mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None) -> Tensor:
        return _evaluate(x, mu, theta, zi_logits, gradients=False)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept: there are no gradients."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *given: Tensor | None
    ) -> tuple[Tensor, int]:
        moved = [
            _first(part, dim, info.batch_size) for part, dim in zip(given, in_dims, strict=True)
        ]
        x, mu, theta, zi_logits = moved
        assert x is not None
        assert mu is not None
        if theta is None or (in_dims[2] is not None and theta.shape == mu.shape):
            return _sparse(x, mu, theta, zi_logits), 0
        if in_dims[2] is None:  # all draws share it, or have copies of each value
            own = given[2]
            assert own is not None
            shared = own.numel() == own.shape[-1]
            return _sparse(x, mu, own if shared else theta, zi_logits), 0
        zi = [None] * len(x) if zi_logits is None else zi_logits
        return torch.stack([_sparse(*draw) for draw in zip(x, mu, theta, zi, strict=True)]), 0


def _first(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Draws along the first axis."""
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


class _LogMass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None
    ) -> Tensor:
        value, *derivatives = _evaluate(x, mu, theta, zi_logits, gradients=True)
        ctx.save_for_backward(x, mu, theta, zi_logits, *derivatives)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors[:4]
        if torch.is_grad_enabled():  # somebody wants gradients of this gradient
            return _plain_backward(x, parameters, upstream, ctx.needs_input_grad)
        derivatives = iter(ctx.saved_tensors[4:])
        found = [None if p is None else (p, next(derivatives)) for p in parameters]
        wanted = zip(found, ctx.needs_input_grad[1:], strict=True)
        return None, *(
            _product(upstream, *pair) if pair and want else None for pair, want in wanted
        )


def _product(upstream: Tensor, parameter: Tensor, derivative: Tensor) -> Tensor:
    """Product, summed over the values that share a parameter."""
    if parameter.shape == derivative.shape:
        return upstream * derivative
    rows = derivative.reshape(-1, derivative.shape[-1])
    if upstream.stride(-1) == 0:  # the same for all variables, as a sum over them makes it
        return (upstream[..., 0].reshape(-1) @ rows).view(parameter.shape)
    return (upstream.reshape(rows.shape) * rows).sum(0).view(parameter.shape)


def _plain_backward(
    x: Tensor, parameters: list[Tensor | None], upstream: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    # aliases: parameters may depend on one another, and gradients are partial ones
    given = (x, *(None if p is None else p.view_as(p) for p in parameters))
    value = _plain(*given)  # type: ignore[arg-type]
    inputs = [t for t, want in zip(given, wanted, strict=True) if want and t is not None]
    found = iter(torch.autograd.grad(value, inputs, upstream, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)


@torch.no_grad()
def _evaluate(
    x: Tensor,
    mu: Tensor,
    theta: Tensor | None,
    zi_logits: Tensor | None,
    *,
    gradients: bool,
) -> list[Tensor]:
    """Values and, if wanted, derivatives by the parameters given; of the shape of the means."""
    shape, columns = mu.shape, mu.shape[-1]
    parameters = [p for p in (mu, theta, zi_logits) if p is not None]
    flat = mu.numel() // columns, columns
    out = [torch.empty(flat, dtype=mu.dtype) for _ in range(1 + gradients * len(parameters))]
    x, mu = x.reshape(-1, columns), mu.reshape(-1, columns)
    theta = None if theta is None else theta.reshape(-1, columns)
    zi = None if zi_logits is None else zi_logits.reshape(-1, columns)
    rows = max(1, _BLOCK // columns)
    for start in range(0, len(mu), rows):
        block = slice(start, start + rows)
        parts = [o[block] for o in out]
        if theta is None:
            torch.neg(mu[block], out=parts[0])
            for derivative in parts[1:]:
                derivative.fill_(-1)
            continue
        dispersion = theta if len(theta) == 1 else theta[block]
        if zi is None:
            _zeros(mu[block], dispersion, parts)
        else:
            _inflated_zeros(mu[block], dispersion, zi[block], parts)
    _counts(x, mu, theta, zi, out)
    return [o.view(shape) for o in out]


def _zeros(mu: Tensor, theta: Tensor, out: list[Tensor]) -> None:
    r"""Of a count of zero, for which :math:`\log p = -\theta \log(1 + r)`."""
    t = torch.div(mu, theta).log1p_()
    minus_theta = -theta
    torch.mul(t, minus_theta, out=out[0])
    if len(out) > 1:
        minus_g = torch.div(minus_theta, mu + theta, out=out[1])
        torch.sub(minus_g, t, out=out[2]).add_(1)


def _inflated_zeros(mu: Tensor, theta: Tensor, zi_logits: Tensor, out: list[Tensor]) -> None:
    r"""Of a count of zero, for which :math:`p = \pi + (1 - \pi) (1 + r)^{-\theta}`."""
    t = torch.div(mu, theta).log1p_()
    minus_theta = -theta
    inflation = torch.sigmoid(zi_logits)
    mass = torch.mul(t, minus_theta).exp_()
    mass = torch.lerp(mass, mass.new_ones(()), inflation)
    torch.log(mass, out=out[0])
    if len(out) > 1:
        extra = mass.reciprocal_().mul_(inflation)  # probability that it is an extra zero
        torch.sub(extra, inflation, out=out[3])
        weight = extra.neg_().add_(1)
        minus_g = torch.div(minus_theta, mu + theta)
        torch.mul(weight, minus_g, out=out[1])
        torch.sub(minus_g, t, out=out[2]).add_(1).mul_(weight)


def _counts(
    x: Tensor, mu: Tensor, theta: Tensor | None, zi: Tensor | None, out: list[Tensor]
) -> None:
    """Put in place what is not a count of zero, or too unlikely a zero for the product form."""
    counted = x.numpy() != 0  # NumPy finds positions many times faster than torch
    gradients = len(out) > 1
    if zi is not None and theta is not None and out[0].min() < _UNLIKELY:
        index = _where(~counted & (out[0] < _UNLIKELY).numpy())
        own = (theta.expand(mu.shape) if len(theta) == 1 else theta).reshape(-1)
        mean, own, logits = _chosen(index, mu, own, zi)
        _put(out, index, _unlikely_zeros(mean, own, logits, gradients))
    index = _where(counted)
    if len(index) == 0:
        return
    count, mean = _chosen(index, x, mu)
    if theta is None:
        parts = _poisson(count, mean, gradients)
    else:
        parts = _negative_binomial(count, mean, theta, index, gradients)
    if zi is not None:
        (logits,) = _chosen(index, zi)
        parts[0] -= log1pexp(logits)
        if gradients:
            parts.append(logits.sigmoid_().neg_())
    _put(out, index, parts)


def _where(chosen: np.ndarray) -> Tensor:
    return torch.from_numpy(np.flatnonzero(chosen))


def _chosen(index: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [tensor.reshape(-1).index_select(0, index) for tensor in tensors]


def _put(out: list[Tensor], index: Tensor, parts: list[Tensor]) -> None:
    for where, values in zip(out, parts, strict=True):
        where.view(-1).scatter_(0, index, values)


def _poisson(count: Tensor, mean: Tensor, gradients: bool) -> list[Tensor]:
    value = count * mean.log() - mean - torch.lgamma(count + 1)
    return [value, count / mean - 1] if gradients else [value]


def _negative_binomial(
    count: Tensor, mean: Tensor, theta: Tensor, index: Tensor, gradients: bool
) -> list[Tensor]:
    if len(theta) > 1:
        (own,) = _chosen(index, theta)
        log_gamma, digamma = _gamma_terms(count, own)
    else:
        column = _columns(index, theta.shape[1])
        (own,) = _chosen(column, theta)
        log_gamma, digamma = _tabled_gamma_terms(count, theta[0], own, column)
    t = torch.div(mean, own).log1p_()
    shrunk = torch.add(mean, own).reciprocal_()
    value = log_gamma.sub_(own * t).add_(torch.mul(mean, shrunk).log_().mul_(count))
    if not gradients:
        return [value]
    g = own.mul_(shrunk)
    by_theta = digamma.sub_(g).sub_(t).sub_(shrunk.mul_(count)).add_(1)
    by_mu = torch.div(count, mean).sub_(1).mul_(g)
    return [value, by_mu, by_theta]


def _unlikely_zeros(
    mean: Tensor, theta: Tensor, zi_logits: Tensor, gradients: bool
) -> list[Tensor]:
    """Counts of zero of which neither part may underflow."""
    t = torch.log1p(mean / theta)
    log_mass = -theta * t
    value = torch.logaddexp(zi_logits, log_mass) - log1pexp(zi_logits)
    if not gradients:
        return [value]
    g = theta / (mean + theta)
    weight = torch.sigmoid(log_mass - zi_logits)
    by_zi = torch.sigmoid(zi_logits - log_mass) - torch.sigmoid(zi_logits)
    return [value, -g * weight, (1 - t - g) * weight, by_zi]


def _columns(index: Tensor, columns: int) -> Tensor:
    """Columns of sorted positions in a matrix, without a division for each."""
    positions = index.numpy()
    firsts = np.arange(0, positions[-1] + 1, columns)
    counts = np.diff(np.append(np.searchsorted(positions, firsts), len(positions)))
    return torch.from_numpy(positions - np.repeat(firsts, counts))


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
    inverses = torch.cat([first, steps.reciprocal_().cumsum_(0)])
    row = count.clamp(max=_TABLE)
    position = row.long().mul_(len(theta)).add_(column)
    log_gamma = logs.view(-1).index_select(0, position)
    digamma = inverses.view(-1).index_select(0, position)
    large = _where((row.trunc() != count).numpy())
    if len(large):
        exact = _gamma_terms(count.index_select(0, large), own.index_select(0, large))
        log_gamma.scatter_(0, large, exact[0])
        digamma.scatter_(0, large, exact[1])
    return log_gamma, digamma
