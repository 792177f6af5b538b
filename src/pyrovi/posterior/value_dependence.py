"""Whether a computation depends on the values of its argument in ways that no record shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATEN: Any = torch.ops.aten

_INDEXING = {
    _ATEN.index.Tensor,
    _ATEN.index_put.default,
    _ATEN.index_put_.default,
    _ATEN._index_put_impl_.default,
    _ATEN._unsafe_index.Tensor,
}
"""Operations whose shapes depend on values only if an index is a mask."""

_TAGS = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)

_LEAVES_TORCH = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.item}


def depends_on_values(function: Callable[[Tensor], Any], argument: Tensor) -> bool:
    """Whether shapes, or Python and NumPy, see values that follow from the argument.

    A record of tensor operations has the shapes of the point that it was made at, and the numbers
    that Python saw there: ``nonzero``, ``unique``, ``masked_select``, an index that is a mask,
    ``item``, ``numpy``. Those of constants (a mask of the data) are no obstacle, so the operations
    are followed from the argument on.

    Parameters
    ----------
    function
        Any function of the tensor; it is called once.
    argument
        Where.
    """
    own = argument.detach().clone()
    with _Followed(own) as followed, _Leaving(followed):
        function(own)
    return followed.found


class _Followed(TorchDispatchMode):
    """Mark what is computed from a tensor; note operations whose shape or result are its values."""

    def __init__(self, argument: Tensor) -> None:
        super().__init__()
        self.found = False
        self._marked: set[int] = set()
        self._alive: list[Tensor] = []  # else the memory of one tensor becomes that of another
        self.mark(argument)

    def mark(self, tensor: Tensor) -> None:
        if storage := _storage(tensor):
            self._marked.add(storage)
        self._alive.append(tensor)

    def follows(self, arguments: Any) -> bool:
        return any(_storage(x) in self._marked for x in tree_leaves(arguments) if _is_tensor(x))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(result) if _is_tensor(x)]
        if not self.follows((args, kwargs)):
            self._alive += outputs
            return result
        changed = args[:1] if func._schema.is_mutable else ()
        for tensor in (*outputs, *filter(_is_tensor, changed)):
            self.mark(tensor)
        if func in _INDEXING:
            self.found |= self.follows([i for i in args[1] if i is not None and _is_mask(i)])
        elif any(tag in func.tags for tag in _TAGS):
            self.found = True
        return result


class _Leaving(TorchFunctionMode):
    """Note marked tensors that are handed to Python or NumPy without an operation."""

    def __init__(self, followed: _Followed) -> None:
        super().__init__()
        self.followed = followed

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _LEAVES_TORCH and self.followed.follows(args[:1]):
            self.followed.found = True
        return func(*args, **(kwargs or {}))


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
