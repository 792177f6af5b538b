"""Whether operations run one by one, as they are written."""

from __future__ import annotations

from typing import Any

import torch


def is_eager() -> bool:
    """Whether operations are neither traced, compiled, intercepted nor differentiated forwards."""
    return not (
        torch._C._is_tracing()
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )


def transforms() -> list[Any]:
    """The transforms of :mod:`torch.func` that are under way, outermost first."""
    return torch._C._functorch.get_interpreter_stack() or []
