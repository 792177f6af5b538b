r"""Log masses of counts with gradients, by compiled loops.

Most counts are zero: for those the negative binomial needs one logarithm and no gamma function.
With :math:`r = \mu / \theta`,

.. math::
    \log p(x) = -\theta \log(1 + r)
    + \Big[ \sum_{k < x} \log(\theta + k) - \log x! + x \log \frac{r}{1 + r} \Big]_{x > 0}.

Values and derivatives are computed in one go (:mod:`pyrovi.distributions.count_loops`). They are
those of :mod:`pyrovi.distributions.log_pmf`, which is what runs where this module does not apply
(:func:`applies`): on accelerators, under tracing and the transforms of :mod:`torch.func` (but for
values of many draws by ``vmap``), for few values. Gradients of gradients are taken of those
formulas, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from pyrovi._eager import is_eager, transforms
from pyrovi.distributions.log_pmf import log_nb_positive, log_poisson, log_zinb_positive

SMALLEST = 2**14
"""Number of values from which the loops are faster than the formula."""

_NANOSECONDS = 4.0
"""About how long a value takes, with its derivatives."""


def applies(
    x: Tensor, mu: Tensor, theta: Tensor | None = None, zi_logits: Tensor | None = None
) -> bool:
    """Whether the loops take these arguments, and are the faster way.

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
    """Log mass of counts with given means, by the loops where they apply (:func:`applies`).

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
        return _compiled(x, mu, theta, zi_logits)
    return _plain(x, mu, theta, zi_logits)


def _compiled(x: Tensor, mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None) -> Tensor:
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
        size = info.batch_size
        moved = [_first(part, dim, size) for part, dim in zip(given, in_dims, strict=True)]
        x, mu, theta, zi_logits = moved
        counts = given[0]
        assert counts is not None
        assert x is not None
        assert mu is not None
        if theta is None or in_dims[2] is None or theta.shape == mu.shape:
            if in_dims[0] is None and not is_batchedtensor(counts):
                x = counts  # the loops repeat it
            own = given[2]
            if in_dims[2] is None and own is not None and own.numel() == own.shape[-1]:
                theta = own
            return _compiled(x, mu, theta, zi_logits), 0  # type: ignore[arg-type]
        zi = [None] * size if zi_logits is None else zi_logits
        return torch.stack([_compiled(*draw) for draw in zip(x, mu, theta, zi, strict=True)]), 0


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
    from pyrovi._loops import run
    from pyrovi.distributions import count_loops

    loop = count_loops.inflated_negative_binomial
    if zi_logits is None:
        loop = count_loops.poisson if theta is None else count_loops.negative_binomial
    wanted = [True, *(gradients and t is not None for t in (mu, theta, zi_logits))]
    out = [
        torch.empty(mu.shape, dtype=mu.dtype, device=mu.device) if want else None for want in wanted
    ]
    columns = mu.shape[-1]
    matrices = [_rows(t, columns) for t in (x, mu, theta, zi_logits, *out)]
    run(loop, mu.numel() // columns, _NANOSECONDS * mu.numel(), *matrices)
    return [t for t in out if t is not None]


def _rows(tensor: Tensor | None, columns: int) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().reshape(-1, columns).contiguous().numpy()
