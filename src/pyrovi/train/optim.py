"""Optimisers: Pyro's as specifications, torch's as they are, one torch optimiser as the result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """A torch optimiser, what makes its scheduler, and what happens to gradients before a step.

    Parameters
    ----------
    optimizer
        The optimiser.
    make_scheduler
        Makes the scheduler of a ``PyroLRScheduler``.
    sums_over_observations
        Whether the optimiser is to see the gradient of the ELBO of all observations, not per
        observation: the learning rates, clipping bounds and ``eps`` of a Pyro optimiser are meant
        for that one.
    clipping
        Parameters and the options by which Pyro clips the gradient of each by itself.
    """

    optimizer: Optimizer
    make_scheduler: Callable[[Optimizer], LRScheduler] | None = None
    sums_over_observations: bool = False
    clipping: Sequence[tuple[nn.Parameter, Mapping[str, float]]] = field(default=())

    def prepare_gradients(self, n_obs: int) -> None:
        """Turn the gradients of the objective per observation into those the optimiser takes."""
        if self.sums_over_observations:
            gradients = [
                p.grad
                for group in self.optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            ]
            torch._foreach_mul_(gradients, float(n_obs))
        for parameter, options in self.clipping:
            if "clip_norm" in options:
                nn.utils.clip_grad_norm_(parameter, options["clip_norm"])
            if "clip_value" in options:
                nn.utils.clip_grad_value_(parameter, options["clip_value"])

    def learning_rates(self) -> dict[str, float]:
        """Present learning rates; ``lr-Adam``, or ``lr-Adam/pg1``, ... with several groups."""
        name, groups = f"lr-{type(self.optimizer).__name__}", self.optimizer.param_groups
        if len(groups) == 1:
            return {name: float(groups[0]["lr"])}
        return {f"{name}/pg{i}": float(group["lr"]) for i, group in enumerate(groups, 1)}


_FUSED: dict[Any, tuple[str, ...]] = {
    torch.optim.Adam: ("cpu", "cuda"),
    torch.optim.AdamW: ("cpu", "cuda"),
    torch.optim.SGD: ("cpu", "cuda"),
    torch.optim.Adagrad: ("cpu",),
}
"""Optimisers that update all parameters in one pass if told so, and the devices where they do."""

_WAYS = {"fused", "foreach", "differentiable"}
"""Arguments by which a caller says how the parameters are updated."""


def build_optimizer(
    spec: OptimizerSpec | None,
    named_parameters: NamedParameters,
    defaults: Mapping[str, Any],
    options: Mapping[str, Any],
) -> OptimizerPlan:
    """Translate an optimiser specification into one torch optimiser with parameter groups.

    Parameters
    ----------
    spec
        ``None`` (torch's Adam), a torch optimiser class (or a function of the parameters), or a
        ``pyro.optim`` object. Of a Pyro optimiser the class, the arguments (a dict, or a callable
        of the parameter's name for per-parameter options), the clipping arguments and, for a
        ``PyroLRScheduler``, the scheduler are taken over; its own state is not used.
    named_parameters
        Names (as in ``state_dict``) and parameters.
    defaults
        Keyword arguments of a torch optimiser, as far as it takes them.
    options
        Keyword arguments of a torch optimiser that the caller asked for.

    Returns
    -------
    OptimizerPlan
        The optimiser and what belongs to it.

    Raises
    ------
    TrainingError
        If nothing can be trained, the specification is of another kind, or the optimiser does not
        take the arguments.
    """
    parameters = [(name, p) for name, p in named_parameters if p.requires_grad]
    if not parameters:
        raise TrainingError("There is nothing to train: no parameter requires a gradient.")
    if isinstance(spec, PyroOptim):
        return _from_pyro(spec, parameters)
    make: Any = torch.optim.Adam if spec is None else spec
    if not callable(make):
        raise TrainingError(
            f"optim must be a torch optimiser class or a pyro.optim object, got {spec!r} "
            f"({type(spec).__name__})."
        )
    known = inspect.signature(make).parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known)
    accepted = {k: v for k, v in defaults.items() if takes_any or k in {p.name for p in known}}
    if not _WAYS & options.keys():
        accepted |= _fused(make, parameters)
    try:
        given = parameters if getattr(make, "takes_names", False) else [p for _, p in parameters]
        optimizer = make(given, **{**accepted, **options})
    except TypeError as error:
        raise TrainingError(f"The optimiser {make!r} cannot be made: {error}.") from error
    return OptimizerPlan(optimizer)


def _fused(make: Any, parameters: list[tuple[str, nn.Parameter]]) -> dict[str, bool]:
    """The argument that makes an optimiser update all parameters in one pass, if it can."""
    if not isinstance(make, type) or make not in _FUSED:
        return {}
    return {"fused": all(p.device.type in _FUSED[make] for _, p in parameters)}


def _from_pyro(spec: PyroOptim, parameters: list[tuple[str, nn.Parameter]]) -> OptimizerPlan:
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    clipping = []
    for name, parameter in parameters:
        options = _options_of(spec.pt_optim_args, name)
        key = tuple(sorted((k, repr(v)) for k, v in options.items()))
        groups.setdefault(key, {"params": [], **options})["params"].append(parameter)
        if clip := _options_of(spec.pt_clip_args or {}, name):
            clipping.append((parameter, clip))
    constructor: Any = spec.pt_optim_constructor
    keywords = _required(spec, groups)
    # fused ones get gradients that mixed precision has scaled, whose norm is not to be clipped
    if not clipping and not any(_WAYS & group.keys() for group in groups.values()):
        keywords |= _fused(constructor, parameters)
    try:
        optimizer = constructor(list(groups.values()), **keywords)
    except TypeError as error:
        raise TrainingError(f"The Pyro optimiser cannot be made: {error}.") from error
    return OptimizerPlan(optimizer, _scheduler_maker(spec), True, clipping)


def _required(spec: PyroOptim, groups: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """Arguments without a default, such as the learning rate of some optimisers."""
    first = next(iter(groups.values()))
    constructor: Any = spec.pt_optim_constructor
    known = inspect.signature(constructor).parameters
    return {
        name: first[name]
        for name, parameter in known.items()
        if name != "params" and parameter.default is parameter.empty and name in first
    }


def _scheduler_maker(spec: PyroOptim) -> Callable[[Optimizer], LRScheduler] | None:
    if not isinstance(spec, PyroLRScheduler):
        return None
    constructor, keywords = spec.pt_scheduler_constructor, dict(spec.kwargs)
    return lambda optimizer: constructor(optimizer, **keywords)


def _options_of(arguments: Any, name: str) -> dict[str, Any]:
    """Options of one parameter: a dict for all, or a callable of its (module and) name."""
    if not callable(arguments):
        return dict(arguments)
    name = name.removesuffix("_unconstrained")  # the name under which its author knows it
    if len(inspect.signature(arguments).parameters) == 1:
        return dict(arguments(name))
    module, _, parameter = name.partition(".")
    return dict(arguments(module if parameter else "", parameter or module))


def same_options(one: Any, other: Any) -> bool:
    """Whether options of a plan mean the same: Pyro's optimisers are read, the rest is compared.

    Parameters
    ----------
    one, other
        Mappings of options, or values of them. Two optimisers of Pyro (or schedulers) are the same
        if their classes, constructors and arguments are, whatever their own state; callables are if
        they are one object.
    """
    if isinstance(one, PyroOptim) and isinstance(other, PyroOptim):
        return type(one) is type(other) and same_options(_specification(one), _specification(other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_options(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_options, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and bool((one.cpu() == other.cpu()).all())
    return one is other or bool(one == other)


def _specification(spec: PyroOptim) -> dict[str, Any]:
    found = {
        "constructor": spec.pt_optim_constructor,
        "arguments": spec.pt_optim_args,
        "clipping": spec.pt_clip_args,
    }
    if isinstance(spec, PyroLRScheduler):
        found |= {"scheduler": spec.pt_scheduler_constructor, "options": spec.kwargs}
    return found
