"""The base of pyrovi's distributions: parameters stay as small as they were given."""

from __future__ import annotations

import numbers
from typing import Any, Self, overload

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints

from pyrovi.errors import ModelError

ParameterLike = Tensor | float
Constraints = dict[str, constraints.Constraint]

nonnegative = constraints.greater_than_eq(0.0)


class Parameter:
    """Descriptor that reads one stored parameter, broadcast (as a view) to the batch shape.

    Reading gives ``None`` if the distribution was constructed without that parameter.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, obj: None, owner: type) -> Parameter: ...

    @overload
    def __get__(self, obj: CompactDistribution, owner: type) -> Tensor: ...

    def __get__(self, obj: CompactDistribution | None, owner: type) -> Parameter | Tensor | None:
        if obj is None:
            return self
        value = obj._parameters.get(self.name)
        return None if value is None else value.expand(obj.batch_shape)


class CompactDistribution(TorchDistribution):
    """A univariate Pyro distribution whose parameters are never materialised at the batch shape.

    A dispersion of shape ``(n_vars,)`` next to means of shape ``(n_obs, n_vars)`` stays of shape
    ``(n_vars,)``: the special functions of it in :meth:`log_prob` are evaluated ``n_vars`` times
    only, and :meth:`expand` costs nothing. Subclasses implement ``_log_prob`` and ``_sample`` on
    the stored parameters (``self._parameters``).

    Parameters
    ----------
    parameters
        Name to tensor or number, or to ``None`` for one that was not given; any shapes that
        broadcast together. Their broadcast shape is the batch shape.
    validate_args
        Whether to check parameters now and values in :meth:`log_prob`; ``None`` follows Pyro's
        global setting. Switch it off under :func:`torch.func.vmap`, where no check can branch on
        data (this holds for Pyro's own distributions too).

    Raises
    ------
    ModelError
        If shapes do not broadcast, a parameter is no number or tensor, or (validating) a parameter
        is outside its constraint.
    """

    def __init__(
        self,
        parameters: dict[str, ParameterLike | None],
        *,
        validate_args: bool | None = None,
    ) -> None:
        name = type(self).__name__
        self._parameters = _as_tensors(name, parameters)
        shapes = {key: value.shape for key, value in self._parameters.items()}
        try:
            batch_shape = torch.Size(broadcast_shape(*shapes.values()))
        except ValueError as error:
            listed = ", ".join(f"{key} {tuple(shape)}" for key, shape in shapes.items())
            raise ModelError(
                f"{name}: the shapes of its parameters do not broadcast together: {listed}. "
                "Give shapes that agree from the right, or contain 1 where they differ."
            ) from error
        # torch's own validation reads broadcast attributes; ours looks at the stored tensors.
        super().__init__(batch_shape, validate_args=False)
        if validate_args is None:
            del self._validate_args
        else:
            self._validate_args = validate_args
        if self._validate_args:
            self._validate_parameters()

    def _validate_parameters(self) -> None:
        for key, value in self._parameters.items():
            constraint = self.arg_constraints[key]
            valid = constraint.check(value)
            if not bool(valid.all()):
                index = tuple((~valid).nonzero()[0].tolist())
                raise ModelError(
                    f"{type(self).__name__}: parameter `{key}` must satisfy {constraint}, but is "
                    f"{value[index].item()} at index {index} of a tensor of shape "
                    f"{tuple(value.shape)}."
                )

    def expand(self, batch_shape: Any, _instance: Self | None = None) -> Self:
        """Return the same distribution with a larger batch shape; no parameter is copied."""
        new = self._get_checked_instance(type(self), _instance)
        batch_shape = torch.Size(batch_shape)
        pairs = zip(reversed(self.batch_shape), reversed(batch_shape), strict=False)
        if len(batch_shape) < len(self.batch_shape) or any(old not in (1, n) for old, n in pairs):
            raise ModelError(
                f"{type(self).__name__}: cannot expand from batch shape {tuple(self.batch_shape)} "
                f"to {tuple(batch_shape)}."
            )
        new._parameters = self._parameters
        super(CompactDistribution, new).__init__(batch_shape, validate_args=False)
        if "_validate_args" in self.__dict__:
            new._validate_args = self._validate_args
        else:
            del new._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density (or log mass) of ``value``.

        Parameters
        ----------
        value
            Tensor whose shape broadcasts with the batch shape.

        Returns
        -------
        Tensor
            Of the broadcast shape of ``value`` and the batch shape.
        """
        if self._validate_args:
            self._validate_sample(value)
        if not value.is_floating_point():
            value = value.to(next(iter(self._parameters.values())).dtype)
        result = self._log_prob(value)
        shape = torch.Size(broadcast_shape(value.shape, self.batch_shape))
        return result if result.shape == shape else result.expand(shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw independent values of shape ``sample_shape + batch_shape``, without gradients."""
        with torch.no_grad():
            return self._sample(self._extended_shape(sample_shape))

    def get_normalized(self, key: str) -> Tensor:
        """Return the expected count (``"mu"``) or the normalised expression (``"scale"``).

        Raises
        ------
        ModelError
            If ``key`` is neither, or the distribution does not carry that quantity.
        """
        value = self._normalized().get(key)
        if value is None:
            carried = [name for name, tensor in self._normalized().items() if tensor is not None]
            raise ModelError(
                f"{type(self).__name__} carries no normalised quantity {key!r}; it has {carried}."
            )
        return value

    def _normalized(self) -> dict[str, Tensor | None]:
        return {"mu": self.mean, "scale": getattr(self, "scale", None)}

    def _log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def _sample(self, shape: torch.Size) -> Tensor:
        raise NotImplementedError

    def __repr__(self) -> str:
        parts = (
            f"{key}: {value.item() if value.numel() == 1 else tuple(value.shape)}"
            for key, value in self._parameters.items()
        )
        return f"{type(self).__name__}({', '.join(parts)})"


def _as_tensors(owner: str, parameters: dict[str, ParameterLike | None]) -> dict[str, Tensor]:
    """Turn numbers and integer tensors into the floating type (and device) of the others."""
    given = {key: value for key, value in parameters.items() if value is not None}
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    floating = next((t for t in tensors if t.is_floating_point()), None)
    dtype = torch.get_default_dtype() if floating is None else floating.dtype
    device = tensors[0].device if tensors else None
    result = {}
    for key, value in given.items():
        if isinstance(value, Tensor):
            result[key] = value if value.is_floating_point() else value.to(dtype)
        elif isinstance(value, numbers.Number):
            result[key] = torch.tensor(value, dtype=dtype, device=device)
        else:
            raise ModelError(
                f"{owner}: parameter `{key}` must be a tensor or a number, "
                f"but is {type(value).__name__}. Convert it with torch.as_tensor."
            )
    return result
