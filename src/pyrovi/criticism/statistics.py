"""Statistics over observations, added up minibatch by minibatch for all draws at once.

A statistic sees the values of one minibatch after the other, as a tensor of shape ``(S, n, d)``:
draws, observations of the minibatch, variables. It keeps what it needs of them, which is never the
values themselves. The observed data are one more data set, with ``S = 1``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError

VARIABLE = "var"
"""Dimension of the checked site's variables; named as the site has it in results."""

OBSERVATION = "obs"
"""Dimension of the observations."""

_CHUNK = 2**20
"""Values that are looked at in one go: temporary copies stay small."""


@dataclass(frozen=True)
class CheckedData:
    """What statistics may know of the data before they see values.

    Attributes
    ----------
    adata
        AnnData or MuData; ``minibatch.indices`` are positions in it.
    site
        Name of the checked site.
    num_variables
        Number ``d`` of its variables.
    """

    adata: Any
    site: str
    num_variables: int


@dataclass(frozen=True)
class Summary:
    """Values of a statistic.

    Attributes
    ----------
    dims
        Names of the dimensions after the draws: :data:`VARIABLE`, :data:`OBSERVATION`, or others.
    values
        Tensor of shape ``(S, ...)``.
    coords
        Labels of the other dimensions.
    """

    dims: tuple[str, ...]
    values: Tensor
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Statistic(ABC):
    """A statistic that is added up over minibatches."""

    def prepare(self, data: CheckedData) -> None:  # noqa: B027  (most need nothing)
        """Learn about the data before the first values.

        Parameters
        ----------
        data
            What is checked.
        """

    @abstractmethod
    def update(self, values: Tensor, minibatch: Minibatch) -> None:
        """Take in the values of a minibatch.

        Parameters
        ----------
        values
            Tensor of shape ``(S, n, d)``. Do not keep or change it.
        minibatch
            The minibatch; its covariates and the positions of its observations.
        """

    @abstractmethod
    def result(self) -> dict[str, Summary]:
        """Name -> values, of everything taken in."""


StatisticSpec = str | Statistic | Callable[[Tensor, Minibatch], Tensor]


class Moments(Statistic):
    """Mean, variance and fraction of zeros of each variable, and the total of each observation.

    Means and sums of squared deviations of minibatches are merged pairwise, which does not lose the
    digits that a sum of squares would. The variance is that with ``n - 1``.

    References
    ----------
    Chan, Golub, LeVeque: Algorithms for computing the sample variance. The American Statistician
    37, 242-247 (1983).
    """

    def __init__(self) -> None:
        self._n = 0
        self._mean = self._squares = self._zeros = torch.zeros(())
        self._totals: list[Tensor] = []

    def update(self, values: Tensor, minibatch: Minibatch | None = None) -> None:
        parts = [_moments(part) for part in draw_chunks(values)]
        mean, squares, zeros, total = (torch.cat(each) for each in zip(*parts, strict=True))
        n, old = values.shape[1], self._n
        step = mean - self._mean
        self._n += n
        self._squares = self._squares + squares + step.square() * (old * n / self._n)
        self._mean = self._mean + step * (n / self._n)
        self._zeros = self._zeros + zeros
        self._totals.append(total)

    def result(self) -> dict[str, Summary]:
        by_variable = (VARIABLE,)
        return {
            "mean": Summary(by_variable, self._mean),
            "variance": Summary(by_variable, self._squares / max(1, self._n - 1)),
            "zero_fraction": Summary(by_variable, self._zeros.double() / self._n),
            "total": Summary((OBSERVATION,), torch.cat(self._totals, 1)),
        }


def _moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values = values.double()
    mean = values.mean(1)
    squares = (values - mean[:, None]).square_().sum(1)
    return mean.cpu(), squares.cpu(), (values == 0).sum(1).cpu(), values.sum(-1).cpu()


class Extremes(Statistic):
    """Largest value of each variable (``maximum``), and of all (``largest``)."""

    def __init__(self) -> None:
        self._maximum: Tensor | None = None

    def update(self, values: Tensor, minibatch: Minibatch) -> None:
        maximum = values.amax(1).cpu()
        if self._maximum is not None:
            maximum = torch.maximum(maximum, self._maximum)
        self._maximum = maximum

    def result(self) -> dict[str, Summary]:
        assert self._maximum is not None
        return {
            "maximum": Summary((VARIABLE,), self._maximum),
            "largest": Summary((), self._maximum.amax(-1)),
        }


class ObservationZeros(Statistic):
    """Fraction of the variables that are zero in each observation (``zeros_per_observation``)."""

    def __init__(self) -> None:
        self._fractions: list[Tensor] = []

    def update(self, values: Tensor, minibatch: Minibatch) -> None:
        zeros = [(part == 0).sum(-1) for part in draw_chunks(values)]
        self._fractions.append((torch.cat(zeros).float() / values.shape[-1]).cpu())

    def result(self) -> dict[str, Summary]:
        return {"zeros_per_observation": Summary((OBSERVATION,), torch.cat(self._fractions, 1))}


class Dropout(Statistic):
    """Fraction of zeros of each variable in each group of observations (``dropout``).

    Parameters
    ----------
    key
        Categorical column of ``obs`` that names the groups.

    Raises
    ------
    ModelError
        If there is no such column.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._groups: list[str] = []
        self._codes = torch.zeros(0, dtype=torch.int64)
        self._zeros: Tensor | None = None
        self._sizes = torch.zeros(0)

    def prepare(self, data: CheckedData) -> None:
        import pandas as pd

        obs = data.adata.obs
        if self.key not in obs:
            raise ModelError(
                f"Dropout by {self.key!r} needs this column of obs; there are: "
                f"{', '.join(map(str, obs)) or 'none'}."
            )
        codes, groups = pd.factorize(obs[self.key], sort=True)
        if (codes < 0).any():
            raise ModelError(
                f"obs[{self.key!r}] has missing values ({int((codes < 0).sum())} observations). "
                "Expected a group for each observation: fill them, or leave these out (indices=)."
            )
        self._codes, self._groups = torch.as_tensor(codes), [str(group) for group in groups]
        self._sizes = torch.zeros(len(groups), dtype=torch.float64)

    def update(self, values: Tensor, minibatch: Minibatch) -> None:
        member = torch.nn.functional.one_hot(
            self._codes[minibatch.indices.cpu()], len(self._groups)
        ).to(torch.float32)
        weights = member.T.to(values.device)
        parts = [weights @ (part == 0).float() for part in draw_chunks(values)]
        zeros = torch.cat(parts).double().cpu()
        self._zeros = zeros if self._zeros is None else self._zeros + zeros
        self._sizes = self._sizes + member.sum(0).double()

    def result(self) -> dict[str, Summary]:
        assert self._zeros is not None
        dims = (self.key, VARIABLE)
        present = self._sizes > 0
        groups = [g for g, keep in zip(self._groups, present.tolist(), strict=True) if keep]
        fractions = self._zeros[:, present] / self._sizes[present, None]
        return {"dropout": Summary(dims, fractions, {self.key: groups})}


class Frequencies(Statistic):
    """How often each count occurs, over all observations and variables (``frequency``).

    Parameters
    ----------
    largest
        Counts above it are left out (they are few; their number is what is missing to the total).
    variables
        Positions of the variables to look at; ``None`` for all.
    """

    def __init__(self, largest: int = 30, variables: Sequence[int] | None = None) -> None:
        self.largest = largest
        self.variables = variables
        self._site = ""
        self._counts: Tensor | None = None

    def prepare(self, data: CheckedData) -> None:
        self._site = data.site

    def update(self, values: Tensor, minibatch: Minibatch) -> None:
        if self.variables is not None:
            values = values[..., list(self.variables)]
        refuse_other_than_counts(values, self._site, "How often values occur")
        counts = torch.cat([_frequencies(part, self.largest) for part in draw_chunks(values)])
        self._counts = counts if self._counts is None else self._counts + counts

    def result(self) -> dict[str, Summary]:
        assert self._counts is not None
        counts = list(range(self.largest + 1))
        return {"frequency": Summary(("count",), self._counts, {"count": counts})}


def _frequencies(values: Tensor, largest: int) -> Tensor:
    draws, bins = len(values), largest + 2
    capped = values.reshape(draws, -1).clamp(max=largest + 1).long()
    offset = torch.arange(draws, device=values.device)[:, None] * bins
    counts = torch.bincount((capped + offset).ravel(), minlength=draws * bins)
    return counts.reshape(draws, bins)[:, :-1].cpu()


class Additive(Statistic):
    """A user's function of the values of a minibatch, summed over minibatches.

    Parameters
    ----------
    name
        Name of the statistic.
    function
        From values of shape ``(S, n, d)`` and the minibatch to a tensor of shape ``(S, ...)``. Its
        sum over all minibatches is the statistic.
    """

    def __init__(self, name: str, function: Callable[[Tensor, Minibatch], Tensor]) -> None:
        self.name, self.function = name, function
        self._sum: Tensor | None = None
        self._checked = False

    def update(self, values: Tensor, minibatch: Minibatch) -> None:
        found = self._evaluate(values, minibatch)
        # of one minibatch alone a statistic may be anything
        if self._sum is not None and minibatch.n > 1 and not self._checked:
            self._check_additive(found, values, minibatch)
            self._checked = True
        found = found.double().cpu()
        self._sum = found if self._sum is None else self._sum + found

    def _check_additive(self, whole: Tensor, values: Tensor, minibatch: Minibatch) -> None:
        """A mean or a range of a minibatch, summed over minibatches, would be nonsense."""
        half = minibatch.n // 2
        parts = [
            self._evaluate(values[:, rows], _rows(minibatch, rows))
            for rows in (slice(None, half), slice(half, None))
        ]
        total = parts[0].double() + parts[1].double()
        if total.shape != whole.shape or not torch.allclose(
            total, whole.double(), rtol=1e-3, atol=1e-6, equal_nan=True
        ):
            raise ModelError(
                f"The statistic {self.name!r} of {minibatch.n} observations is not the sum of "
                f"those of the first {half} and of the others, so it cannot be added up over "
                "minibatches. Give a batch_size of all observations, return sums over them (and "
                "divide afterwards), or write a subclass of pyrovi.criticism.Statistic, whose "
                "result() is computed when all have been seen."
            )

    def _evaluate(self, values: Tensor, minibatch: Minibatch) -> Tensor:
        found = torch.as_tensor(self.function(values, minibatch))
        if found.ndim == 0 or len(found) != len(values):
            raise ModelError(
                f"The statistic {self.name!r} returned shape {tuple(found.shape)} for "
                f"{len(values)} draws. Expected one value, or one array, per draw: shape "
                f"({len(values)}, ...). The values have shape (draws, observations, variables)."
            )
        return found

    def result(self) -> dict[str, Summary]:
        assert self._sum is not None
        dims = tuple(f"{self.name}_dim_{i}" for i in range(self._sum.ndim - 1))
        return {self.name: Summary(dims, self._sum)}


def _rows(minibatch: Minibatch, rows: slice) -> Minibatch:
    """Some of the observations of a minibatch."""
    tensors = {
        name: tensor[rows] if tensor.shape[:1] == (minibatch.n,) else tensor
        for name, tensor in minibatch.tensors.items()
    }
    return minibatch.replace(tensors=tensors, indices=minibatch.indices[rows])


def draw_chunks(values: Tensor) -> Iterator[Tensor]:
    """Values of a few draws at a time, so that temporary copies stay small."""
    per_draw = max(1, values[0].numel())
    return iter(values.split(max(1, _CHUNK // per_draw)))


def refuse_other_than_counts(values: Tensor, site: str, what: str) -> None:
    """Raise :class:`ModelError` for values that are not whole and not negative."""
    for part in draw_chunks(values):
        wrong = (part < 0) | (part != part.round())
        if wrong.any():
            raise ModelError(
                f"{what} is for counts; {site!r} has the value {part[wrong][0].item():.4g}."
            )


def as_numpy(summary: Summary) -> np.ndarray:
    """Values of a summary as an array."""
    return summary.values.cpu().numpy()
