"""``model.train(method=...)``: inference by other methods than SVI, on all data at once."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.nn import PyroModule

from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError, TrainingError
from pyrovi.module.ledger import Role
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.potential import Potential

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass

METHODS = {
    "nuts": "pyrovi.model.mcmc:fit_nuts",
    "laplace": "pyrovi.model.modes:fit_laplace",
    "map": "pyrovi.model.modes:fit_map",
    "pathfinder": "pyrovi.model.paths:fit_pathfinder",
}
"""Method -> function of a model that fits it."""

_FOR_ALL = {"enable_progress_bar"}
"""Options that methods without a bar accept."""


def train_by(model: BaseModelClass, method: str, options: Mapping[str, Any]) -> None:
    """Fit a model by one of :data:`METHODS`; queries then see the result in place of the guide.

    Parameters
    ----------
    model
        The model. What it held before is kept if the fit fails.
    method
        Name of the method.
    options
        Its options.

    Raises
    ------
    TrainingError
        If the method or an option is unknown.
    """
    if method not in METHODS:
        raise TrainingError(
            f"Unknown method {method!r}; train() knows 'svi', {', '.join(map(repr, METHODS))}."
        )
    where, _, name = METHODS[method].partition(":")
    function: Callable[..., tuple[PyroModule, np.ndarray]] = getattr(import_module(where), name)
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    if unknown := [option for option in options if option not in {*known, *_FOR_ALL}]:
        raise TrainingError(
            f"train(method={method!r}) does not take {', '.join(map(repr, unknown))}. Its options "
            f"are: {', '.join(known)}.{_instead(unknown, known)}"
        )
    model.adata_manager.validate()
    taken = {option: value for option, value in options.items() if option in known}
    with _guide_in_place(model):
        posterior, positions = function(model, **taken)
        _install(model, method, taken, posterior, positions)


def _instead(unknown: list[str], known: list[str]) -> str:
    """What to say of options that other methods have under another name."""
    several = [name for name in ("num_chains", "num_starts", "num_paths") if name in known]
    if "n_restarts" not in unknown or not several:
        return ""
    return f" In the place of n_restarts it has {several[0]}."


def changed_options(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call that differ from the function's defaults, keywords included."""
    changed: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            changed |= arguments[name]
        elif parameter.default is not parameter.empty and arguments[name] != parameter.default:
            changed[name] = arguments[name]
    return changed


@contextmanager
def _guide_in_place(model: BaseModelClass) -> Iterator[None]:
    """Let the guide draw inside; what was in its place returns after an error."""
    before = model.module.posterior
    model.module.use_posterior(None)
    try:
        yield
    except BaseException:
        model.module.use_posterior(before)
        raise


def _install(
    model: BaseModelClass,
    method: str,
    options: Mapping[str, Any],
    posterior: PyroModule,
    positions: np.ndarray,
) -> None:
    from pyrovi.model.training import TrainingRecord

    n = model.adata_manager.n_obs
    record = model._training or TrainingRecord(n)
    model._training = replace(
        record, n_obs=len(positions), method=method, options=dict(options), lost=()
    )
    model.train_indices = positions
    model.validation_indices = np.zeros(0, dtype=np.int64)
    model.test_indices = np.setdiff1d(np.arange(n), positions)
    model.is_trained = True
    posterior.to(model.device)
    model.module.use_posterior(posterior)


def is_fitted_by_svi(model: BaseModelClass) -> bool:
    """Whether the guide has been trained."""
    return model._training is not None and model._training.epochs > 0


def all_at_once(model: BaseModelClass, indices: Any = None) -> tuple[np.ndarray, Minibatch]:
    """Positions of the observations that a method is to use, and these as one minibatch.

    Raises
    ------
    TrainingError
        If there are none.
    """
    positions = resolve_indices(indices, model.adata_manager.n_obs)
    if not len(positions):
        raise TrainingError("indices= leaves no observations to fit the model to.")
    _, _, loader = model.loader(None, positions)
    return positions, next(iter(loader(len(positions)))).to(model.device)


def make_potential(
    model: BaseModelClass, minibatch: Minibatch, method: str, *, jacobian: bool = True
) -> Potential:
    """The potential of a model, with a warning of parameters that are not estimated."""
    potential = Potential(model.module, minibatch, jacobian=jacobian)
    if not potential.dim:
        raise ModelError(
            f"The model has no continuous latent sites, so method={method!r} has nothing to "
            "find. Observed sites and enumerated ones need no inference; parameters are trained by "
            "method='svi'."
        )
    if not is_fitted_by_svi(model) and (names := potential.trainable()):
        warnings.warn(
            f"The model depends on the parameters {', '.join(names)}, which method={method!r} does "
            "not estimate: they stay as they were initialised. Give them priors (pyro.sample "
            "instead of PyroParam or nn.Parameter), or train with method='svi' first.",
            stacklevel=6,
        )
    return potential


def refuse_locals(model: BaseModelClass, method: str) -> None:
    """Refuse a method that is made for global latents alone.

    Raises
    ------
    ModelError
        Naming the local sites and the alternatives.
    """
    if names := model.sites.names(Role.LOCAL):
        raise ModelError(
            f"method={method!r} is for models whose continuous latents are all global, but "
            f"{', '.join(map(repr, names))} has one value per observation: a normal approximation "
            "of thousands of coordinates at once, at the mode of the hierarchy, is no good one. "
            "Use method='nuts' (indices= takes a subset), or method='svi'."
        )


def stored(
    model: BaseModelClass,
    potential: Potential,
    minibatch: Minibatch,
    draws: np.ndarray,
    positions: np.ndarray,
    statistics: Mapping[str, np.ndarray] | None = None,
) -> StoredDraws:
    """Unconstrained draws ``(chain, draw, dim)`` as a posterior, in the precision of the model."""
    dtype = _precision(model, minibatch)
    values = potential.constrain(potential.unflatten(torch.as_tensor(draws)))
    axes = {name: model.sites[name].obs_axis for name in potential.names}
    local = {name: axis for name, axis in axes.items() if axis is not None}
    names = model.adata_manager.obs_names.astype(str)[positions] if local else ()
    return StoredDraws(
        {name: value.to(dtype) for name, value in values.items()},
        local,
        list(names),
        {name: torch.as_tensor(value) for name, value in (statistics or {}).items()},
    )


def _precision(model: BaseModelClass, minibatch: Minibatch) -> torch.dtype:
    """Floating-point type that the model computes in."""
    module = model.module
    tensors = [*module.parameters(), *module.buffers(), *minibatch.values()]
    floating = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    return next(floating, torch.get_default_dtype())
