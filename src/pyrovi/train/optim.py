"""Optimisers: Pyro's as specifications, torch's as they are, one torch optimiser as the result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrovi.errors import TrainingError

OptimizerSpec = PyroOptim | type[Optimizer] | Callable[..., Optimizer]
NamedParameters = Iterable[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class OptimizerPlan:
    """A torch optimiser, what makes its scheduler, and how single gradients are clipped."""

    optimizer: Optimizer
    make_scheduler: Callable[[Optimizer], LRScheduler] | None
    clipping: Sequence[tuple[nn.Parameter, Mapping[str, float]]]

    def clip(self) -> None:
        """Clip the gradient of each parameter by itself, as Pyro's optimisers do."""
        for parameter, options in self.clipping:
            if "clip_norm" in options:
                nn.utils.clip_grad_norm_(parameter, options["clip_norm"])
            if "clip_value" in options:
                nn.utils.clip_grad_value_(parameter, options["clip_value"])


def build_optimizer(
    spec: OptimizerSpec | None,
    named_parameters: NamedParameters,
    defaults: Mapping[str, Any],
) -> OptimizerPlan:
    """Translate an optimiser specification into one torch optimiser with parameter groups.

    Parameters
    ----------
    spec
        ``None`` (torch's Adam), a torch optimiser class (or a function of the parameters), or a
        ``pyro.optim`` object. Of a Pyro optimiser the class, the arguments (a dict, or a callable of
        the parameter's name for per-parameter options), the clipping arguments and, for a
        ``PyroLRScheduler``, the scheduler are taken over; its own state is not used.
    named_parameters
        Names (as in ``state_dict``) and parameters.
    defaults
        Keyword arguments of the torch optimiser where ``spec`` has none of its own.

    Returns
    -------
    OptimizerPlan
        The optimiser, its scheduler (if any) and the clipping of each parameter.

    Raises
    ------
    TrainingError
        If nothing can be trained, or the specification is of another kind.
    """
    parameters = [(name, p) for name, p in named_parameters if p.requires_grad]
    if not parameters:
        raise TrainingError("There is nothing to train: no parameter requires a gradient.")
    if spec is None:
        spec = torch.optim.Adam
    if not isinstance(spec, PyroOptim):
        if not callable(spec):
            raise TrainingError(
                f"optim must be a torch optimiser class or a pyro.optim object, got {spec!r} "
                f"({type(spec).__name__})."
            )
        return OptimizerPlan(spec([p for _, p in parameters], **defaults), None, [])

    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    clipping = []
    for name, parameter in parameters:
        options = _options(spec.pt_optim_args, name)
        key = tuple(sorted((k, repr(v)) for k, v in options.items()))
        groups.setdefault(key, {"params": [], **options})["params"].append(parameter)
        if clip := _options(spec.pt_clip_args, name):
            clipping.append((parameter, clip))
    optimizer = spec.pt_optim_constructor(list(groups.values()))
    return OptimizerPlan(optimizer, _scheduler_maker(spec), clipping)


def _scheduler_maker(spec: PyroOptim) -> Callable[[Optimizer], LRScheduler] | None:
    if not isinstance(spec, PyroLRScheduler):
        return None
    constructor, keywords = spec.pt_scheduler_constructor, dict(spec.kwargs)
    return lambda optimizer: constructor(optimizer, **keywords)


def _options(arguments: Any, name: str) -> dict[str, Any]:
    """Options of one parameter: a dict for all, or a callable of its (module and) name."""
    if not callable(arguments):
        return dict(arguments)
    name = name.removesuffix(
        "_unconstrained"
    )  # users know constrained parameters by their own name
    if len(inspect.signature(arguments).parameters) == 1:
        return dict(arguments(name))
    module, _, parameter = name.partition(".")
    return dict(arguments(module if parameter else "", parameter or module))
