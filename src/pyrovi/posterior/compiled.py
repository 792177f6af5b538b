"""Value and gradient of a potential at a flat vector, without the cost of running the story."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovi._rng import derive_seed
from pyrovi.errors import ModelError
from pyrovi.posterior.potential import Potential
from pyrovi.posterior.precision import in_precision
from pyrovi.posterior.simplify import simplify
from pyrovi.posterior.value_dependence import depends_on_values

RADII = (1.0, 1.5, 2.0, 3.0, 4.0)
"""Of the points that the record is made at and checked at, in unconstrained coordinates."""


class ValueAndGradient:
    """The potential and its gradient.

    A story is the same sequence of tensor operations wherever it is evaluated, unless it branches
    on values. So it is run once, the operations of its density and of the gradient are recorded,
    and from then on these are replayed without Python in between: small models are bound by that.
    The record is checked against the story at four other points, near and far. What branches on
    values, has shapes that depend on them, draws random numbers, or leaves what can be recorded, is
    evaluated by running the story each time.

    Parameters
    ----------
    potential
        The potential.
    compiled
        Whether to try and record.

    Attributes
    ----------
    is_compiled
        Whether the record is in use.
    evaluations
        Number of evaluations so far.
    """

    def __init__(self, potential: Potential, *, compiled: bool = True) -> None:
        self.potential = potential
        self.evaluations = 0
        self._replay = _recorded(potential) if compiled and potential.dim else None

    @property
    def is_compiled(self) -> bool:
        """Whether the record is in use."""
        return self._replay is not None

    def __call__(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Value (a scalar) and gradient ``(dim,)`` at a vector ``(dim,)``.

        Where the density cannot be evaluated at all (a matrix that is not positive definite), the
        value is infinite.
        """
        self.evaluations += 1
        try:
            if self._replay is not None:
                try:
                    with torch.no_grad():
                        return self._replay(vector)
                except RuntimeError as error:
                    if not _is_numerical(error):
                        self._replay = None  # the story does here what it did not where recorded
            return eager(self.potential, vector)
        except ModelError:
            raise
        except (RuntimeError, ValueError) as error:
            if not _is_numerical(error):
                raise
            return torch.full_like(vector.sum(), torch.inf), torch.zeros_like(vector)


def evaluate(
    function: ValueAndGradient, positions: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values ``(S,)`` and gradients ``(S, dim)`` at positions ``(S, dim)``."""
    device = function.potential.device
    found = [function(torch.from_numpy(position).to(device)) for position in positions]
    values = np.array([float(value) for value, _ in found])
    return values, np.stack([gradient.detach().cpu().double().numpy() for _, gradient in found])


def eager(potential: Potential, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient by running the story."""
    vector = vector.detach().requires_grad_()
    with torch.enable_grad():
        value = potential.at(vector)
        (gradient,) = torch.autograd.grad(value, vector)
    return value.detach(), gradient


def _is_numerical(error: Exception) -> bool:
    text = str(error)
    return "linalg." in text or "cholesky" in text


def _recorded(potential: Potential) -> Any:
    from torch.fx.experimental.proxy_tensor import make_fx

    points = [_point(potential, radius) for radius in RADII]
    try:
        if depends_on_values(lambda vector: eager(potential, vector), points[0]):
            return None
        # what is made without a type is made of the default one whenever it is replayed
        with warnings.catch_warnings(), in_precision(potential.dtype):
            warnings.simplefilter("ignore")  # the points of check say whether constants were right
            graph = make_fx(lambda vector: eager(potential, vector))(points[0])
            if any(_is_random(node) for node in graph.graph.nodes):
                return None
            simplify(graph)
            with torch.no_grad():
                traced = torch.jit.trace(graph, points[0], check_trace=False)
                replay = torch.jit.freeze(traced.eval())
                answers = [replay(point) for point in points[1:]]
        truths = [eager(potential, point) for point in points[1:]]
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError):
        return None  # what cannot be recorded has many ways to say so; running the story is exact
    return replay if all(map(_same, answers, truths)) else None


def _point(potential: Potential, radius: float) -> Tensor:
    seed = derive_seed("record", str(radius), seed=0)
    try:
        return potential.flatten(potential.initial(seed, radius=radius))
    except ModelError:  # far out a density may be zero everywhere
        return potential.flatten(potential.initial(seed))


def _is_random(node: Any) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


def _same(answer: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> bool:
    return all(
        torch.allclose(a, t, rtol=1e-9, atol=1e-9, equal_nan=True)
        for a, t in zip(answer, truth, strict=True)
    )
