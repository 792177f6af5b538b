"""Statistics over observations, added up minibatch by minibatch for all draws at once."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean, variance and fraction of zeros of each variable, and the total of each observation.

    Values arrive as tensors of shape ``(S, n, d)``: draws, observations of a minibatch, variables.
    Means and sums of squared deviations of minibatches are merged pairwise, which does not lose the
    digits that a sum of squares would.

    References
    ----------
    Chan, Golub, LeVeque: Algorithms for computing the sample variance. The American Statistician
    37, 242-247 (1983).
    """

    def __init__(self) -> None:
        self._n = 0
        self._mean: Tensor | None = None
        self._squares = torch.zeros(())
        self._zeros = torch.zeros(())
        self._totals: list[Tensor] = []

    def update(self, values: Tensor) -> None:
        """Take in the values of a minibatch, shape ``(S, n, d)``."""
        values = values.double()
        n = values.shape[1]
        mean = values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        zeros = (values == 0).sum(1)
        if self._mean is None:
            self._n, self._mean, self._squares, self._zeros = n, mean, squares, zeros
        else:
            both = self._n + n
            step = mean - self._mean
            self._squares = self._squares + squares + step.square() * (self._n * n / both)
            self._mean = self._mean + step * (n / both)
            self._zeros = self._zeros + zeros
            self._n = both
        self._totals.append(values.sum(-1).cpu())

    def result(self) -> dict[str, Tensor]:
        """Statistics of everything taken in.

        Returns
        -------
        dict
            ``mean``, ``variance`` (with ``n - 1``) and ``zero_fraction``, shape ``(S, d)``, and
            ``total``, shape ``(S, n)``.
        """
        assert self._mean is not None
        return {
            "mean": self._mean.cpu(),
            "variance": (self._squares / max(1, self._n - 1)).cpu(),
            "zero_fraction": (self._zeros.double() / self._n).cpu(),
            "total": torch.cat(self._totals, 1),
        }
