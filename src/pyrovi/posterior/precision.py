"""Running a model in another precision than its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pyrovi.module.base import PyroBaseModule


def module_in_precision(module: PyroBaseModule, dtype: torch.dtype) -> PyroBaseModule:
    """A copy of a module, for its model alone, whose floating-point tensors have another type.

    Parameters
    ----------
    module
        The module. Its guide, if it is a module, and its posterior are not copied.
    dtype
        Floating-point type of the parameters, buffers and tensors that are plain attributes.

    Returns
    -------
    PyroBaseModule
        In evaluation mode, without gradients.
    """
    parts = dict(module.named_children())
    left_out: dict[int, Any] = {}
    if "guide" in parts:
        left_out[id(parts["guide"])] = _NoGuide(parts["guide"])
    if "posterior" in parts:
        left_out[id(parts["posterior"])] = None
    copied = copy.deepcopy(module, left_out)
    copied.to(dtype).eval().requires_grad_(False)
    for part in copied.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                vars(part)[name] = value.detach().to(dtype)
    return copied


class _NoGuide(torch.nn.Module):
    """In the place of a guide: what the model needs to know of it."""

    def __init__(self, guide: torch.nn.Module) -> None:
        super().__init__()
        self.enumerated_sites = getattr(guide, "enumerated_sites", ())


@contextmanager
def in_precision(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors of a type, let mixed ones work together, and do not validate arguments."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with pyro.validation_enabled(False), _Promote(dtype):
            yield
    finally:
        torch.set_default_dtype(before)


_UNPROMOTED = {
    torch.matmul,
    torch.mm,
    torch.mv,
    torch.bmm,
    torch.dot,
    torch.einsum,
    torch.tensordot,
    torch.addmm,
    torch.baddbmm,
    torch.cdist,
    torch.cholesky_solve,
    torch.linalg.solve,
    torch.linalg.solve_triangular,
    Tensor.matmul,
    Tensor.mm,
    Tensor.mv,
    Tensor.bmm,
    Tensor.dot,
    Tensor.__matmul__,
    Tensor.__rmatmul__,
    functional.linear,
}
"""Functions that refuse arguments of different floating-point types."""


class _Promote(TorchFunctionMode):
    """Linear algebra with tensors that a story holds in single precision (in closures)."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _UNPROMOTED:
            return self._call_promoted(func, args, kwargs)
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if not _is_of_types(error) or _changes_arguments(func, kwargs):
                raise
            return self._call_promoted(func, args, kwargs)

    def _call_promoted(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        promoted = {name: self._promoted(argument) for name, argument in kwargs.items()}
        return func(*map(self._promoted, args), **promoted)

    def _promoted(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return argument.to(self.dtype) if argument.is_floating_point() else argument
        if isinstance(argument, (list, tuple)):
            return type(argument)(map(self._promoted, argument))
        return argument


def _is_of_types(error: RuntimeError) -> bool:
    return "dtype" in str(error) or "scalar type" in str(error)


def _changes_arguments(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a function writes to its arguments: to promote them would write to copies."""
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name == "__setitem__" or "out" in kwargs
