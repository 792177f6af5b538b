"""Multinomial distribution of counts whose total differs from row to row."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints

from pyrovi.distributions._base import Constraints, ParameterLike, nonnegative
from pyrovi.errors import ModelError


class _CountsOf(constraints.Constraint):
    """Vectors of nonnegative integers with given sums."""

    is_discrete = True
    event_dim = 1

    def __init__(self, total_count: Tensor) -> None:
        self.total_count = total_count

    def check(self, value: Tensor) -> Tensor:
        counts = ((value >= 0) & (value == value.floor())).all(-1)
        return counts & (value.sum(-1) == self.total_count)

    def __repr__(self) -> str:
        return "counts that sum to total_count"


class Multinomial(TorchDistribution):
    r"""Multinomial distribution, with a total count for each row.

    .. math::
        p(x) = \frac{n!}{\prod_g x_g!} \prod_g p_g^{x_g}, \qquad \sum_g x_g = n.

    Pyro's and torch's ``Multinomial`` want one total for all rows; that of a cell or a document is
    its own.

    Parameters
    ----------
    total_count
        Number of draws :math:`n`, nonnegative integers of shape ``(...)``.
    probs
        Probabilities of shape ``(..., n_vars)``, not negative; they are divided by their sum.
    validate_args
        Whether to check parameters and values; ``None`` follows Pyro's setting.

    Raises
    ------
    ModelError
        If the shapes do not broadcast, or (validating) a parameter is out of range.
    """

    arg_constraints: ClassVar[Constraints] = {
        "total_count": constraints.nonnegative_integer,
        "probs": constraints.independent(nonnegative, 1),
    }

    def __init__(
        self, total_count: ParameterLike, probs: Tensor, validate_args: bool | None = None
    ) -> None:
        if probs.dim() < 1:
            raise ModelError("Multinomial: probs needs a last dimension, of the variables.")
        total = torch.as_tensor(total_count, dtype=probs.dtype, device=probs.device)
        try:
            batch_shape = torch.Size(broadcast_shape(total.shape, probs.shape[:-1]))
        except ValueError as error:
            raise ModelError(
                f"Multinomial: total_count of shape {tuple(total.shape)} does not broadcast with "
                f"probs of shape {tuple(probs.shape)}; expected (...) and (..., n_vars)."
            ) from error
        self._total_count, self._probs = total, probs
        super().__init__(batch_shape, probs.shape[-1:], validate_args=False)
        if validate_args is None:
            del self._validate_args
        else:
            self._validate_args = validate_args
        if self._validate_args:
            self._check("total_count", total)
            self._check("probs", probs)

    def _check(self, name: str, value: Tensor) -> None:
        valid = self.arg_constraints[name].check(value)
        if not bool(valid.all()):
            index = tuple((~valid).nonzero()[0].tolist())
            raise ModelError(
                f"Multinomial: `{name}` must satisfy {self.arg_constraints[name]}, but is "
                f"{value[index].tolist()} at index {index} of shape {tuple(value.shape)}."
            )

    def expand(self, batch_shape: Any, _instance: Self | None = None) -> Self:
        """Return the same distribution with a larger batch shape; no parameter is copied."""
        new = self._get_checked_instance(type(self), _instance)
        batch_shape = torch.Size(batch_shape)
        new._total_count = self._total_count
        new._probs = self._probs.expand(*batch_shape, self._probs.shape[-1])
        super(Multinomial, new).__init__(batch_shape, self.event_shape, validate_args=False)
        if "_validate_args" in self.__dict__:
            new._validate_args = self._validate_args
        else:
            del new._validate_args
        return new

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Nonnegative integers that sum to ``total_count``."""
        return _CountsOf(self.total_count)

    @property
    def total_count(self) -> Tensor:
        """Number of draws of each row."""
        return self._total_count.expand(self.batch_shape)

    @property
    def probs(self) -> Tensor:
        """Probabilities, which sum to one."""
        normalised = self._probs / self._probs.sum(-1, keepdim=True)
        return normalised.expand(self._extended_shape())

    @property
    def mean(self) -> Tensor:
        """Mean of the counts."""
        return self.total_count[..., None] * self.probs

    @property
    def variance(self) -> Tensor:
        """Variance of each count."""
        return self.mean * (1 - self.probs)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass of counts of shape ``(..., n_vars)``; the result has shape ``(...)``."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.to(self._probs.dtype)
        # where a softmax has underflowed, a count of zero has a gradient of zero, not 0 / 0
        log_p = self._probs.clamp(min=torch.finfo(self._probs.dtype).tiny).log()
        log_total = self._total_count * self._probs.sum(-1).log()
        ordered = (value * log_p).sum(-1) - log_total
        result: Tensor = ordered + log_multinomial_coefficient(value)
        return result.expand(broadcast_shape(value.shape[:-1], self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw counts of shape ``sample_shape + batch_shape + (n_vars,)``, without gradients.

        Totals are halved again and again: how many of the draws fall into the first half of the
        variables is binomial, and so on within each half. The cost does not grow with the totals.
        """
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            p = self._probs.expand(shape)
            levels = [p]
            while levels[-1].shape[-1] > 1:
                p = levels[-1]
                p = torch.nn.functional.pad(p, (0, p.shape[-1] % 2))
                levels[-1] = p
                levels.append(p[..., 0::2] + p[..., 1::2])
            counts = torch.zeros_like(levels.pop()) + self._total_count[..., None]
            for p in reversed(levels):
                first, both = p[..., 0::2], p[..., 0::2] + p[..., 1::2]
                share = torch.where(both > 0, first / both, 0.0).clamp(max=1.0)
                left = torch.binomial(counts[..., : share.shape[-1]].contiguous(), share)
                right = counts[..., : share.shape[-1]] - left
                counts = torch.stack([left, right], -1).flatten(-2)
            return counts[..., : shape[-1]]

    def __repr__(self) -> str:
        total, probs = tuple(self._total_count.shape), tuple(self._probs.shape)
        return f"Multinomial(total_count: {total}, probs: {probs})"


def log_multinomial_coefficient(counts: Tensor) -> Tensor:
    r"""Logarithm of the number of orders of the single draws, :math:`\log(n! / \prod_g x_g!)`.

    Parameters
    ----------
    counts
        Shape ``(..., n_vars)``.

    Returns
    -------
    Tensor
        Shape ``(...)``.
    """
    return (counts.sum(-1) + 1).lgamma() - (counts + 1).lgamma().sum(-1)
