"""PyroBaseModule: a model/guide pair whose parameters live in the module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.nn.module import _PyroModuleMeta
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovi._rng import stream
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.autoguides import (
    adopt,
    give_obs_plate,
    refuse_blind,
    refuse_unusable,
    refuse_varying_supports,
)
from pyrovi.module.guides.discrete import Enumerate
from pyrovi.module.handlers import is_enumerated, is_latent
from pyrovi.module.ledger import Role, SiteLedger
from pyrovi.module.minified import Minified, is_minified
from pyrovi.module.plates import OBS_PLATE, ObsPlate, minibatch_scope, obs_plate
from pyrovi.module.prototype import build_ledger, check_guide
from pyrovi.module.rows import RowMinibatch, rows_in_place
from pyrovi.module.shapes import SameShapes, check_shapes
from pyrovi.module.sites import PriorDraw, SameValues
from pyrovi.module.tracing import (
    on_made_up_observations,
    refuse_dependent_globals,
    refuse_dependent_rows,
)


@contextmanager
def local_params() -> Iterator[None]:
    """Pyro parameters belong to their modules inside; the process-wide setting returns on exit."""
    with pyro.settings.context(module_local_params=True):
        yield


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode; every part gets its own mode back on exit."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        module.train(modes[0][1])  # parts that were made meanwhile, too
        for part, training in modes:
            part.training = training


class _ModuleMeta(_PyroModuleMeta):
    """Constructs modules with module-local parameters and on the initialisation stream."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        with local_params(), stream("init"):
            return super().__call__(*args, **kwargs)


class PyroBaseModule(PyroModule, metaclass=_ModuleMeta):
    """A Pyro model/guide pair.

    Subclasses define ``model(self, X, ...)`` and ``guide(self, X, ...)``, or assign a Pyro guide to
    ``self.guide`` in ``__init__``. Both functions name the tensors they need: each argument is a
    registry key and receives that field of the minibatch. Arguments with a default are optional.

    Attributes
    ----------
    site_dims
        Site -> names of the dimensions of its value that are not plates. Names known to the data
        (``"var"``, ``"obs"``, ``"batch"``, ...) take their coordinates from the registry.
    dim_fields
        Name of a dimension -> registry key of the field whose columns (or categories) it is along.
    warmed_up
        Observed sites whose likelihood comes in with the KL terms during the warm-up, because
        latents without KL terms would explain them too well, and go on doing so.
    follows_interventions
        Local latent sites that the guide draws given covariates and latents before them, and that
        are to differ under other covariates. An intervention keeps all other latents, and draws
        these anew.

    Notes
    -----
    Parameters live in the module: Pyro's global parameter store is neither read nor written, and
    ``state_dict()`` is the single truth.
    """

    site_dims: Mapping[str, Sequence[str]] = MappingProxyType({})
    default_lr: float = 1e-3
    """Learning rate that training by SVI uses unless told otherwise."""
    dim_fields: Mapping[str, str] = MappingProxyType({})
    warmed_up: tuple[str, ...] = ()
    follows_interventions: tuple[str, ...] = ()
    _ledger: SiteLedger | None = None
    _needs_context = False
    minified_sites: tuple[str, ...] = ()
    """Local sites that stand for the counts of an observation in minified data: the latent ones
    that the guide draws from a normal of its own, and deterministic ones computed from the counts.
    """
    auxiliary_sites: tuple[str, ...] = ()
    """Names of the sites that only the guide has."""
    summed_by_guide: tuple[str, ...] = ()
    """Names of the discrete sites whose values the guide goes through, each with its probability
    (``infer={"enumerate": "parallel"}`` in the guide)."""
    _first_rows: Mapping[str, tuple[int, Tensor]] = MappingProxyType({})
    _names: Mapping[str, tuple[str, ...]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(getattr(PyroBaseModule, name, None), property):
            # torch would register a module or parameter of this name, and hide the property
            raise ModelError(
                f"{type(self).__name__}.{name} cannot be assigned: it is a property of every "
                "PyroBaseModule. Give the attribute another name."
            )
        if isinstance(value, PyroModule):
            adopt(value)
        super().__setattr__(name, value)

    @staticmethod
    def obs_plate(dim: int = -1) -> ObsPlate:
        """Open the observation plate of the minibatch in scope (see :func:`obs_plate`)."""
        return obs_plate(dim)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def ledger(self) -> SiteLedger:
        """The site ledger.

        Raises
        ------
        ModelError
            Before :meth:`materialise`.
        """
        if self._ledger is None:
            raise ModelError("The module has not been materialised yet; call module.materialise().")
        return self._ledger

    def name_dims(self, fields: Mapping[str, str]) -> None:
        """Let observed fields name dimensions that ``site_dims`` does not.

        Parameters
        ----------
        fields
            Field -> name of the dimension of its columns.
        """
        self._ledger = self.ledger.named_after(fields)

    def default_elbo(self) -> ELBO:
        """The ELBO that training uses unless told otherwise."""
        if self.ledger.names(Role.ENUMERATED):
            return TraceEnum_ELBO(max_plate_nesting=self.ledger.max_plate_nesting)
        return Trace_ELBO(max_plate_nesting=self.ledger.max_plate_nesting)

    # ------------------------------------------------------------------ running the pair

    def run_model(self, minibatch: Minibatch) -> Any:
        """Run ``model`` on a minibatch, with the minibatch in scope."""
        # what a guide by name leaves to summation, the model need not mark itself
        with Enumerate(getattr(self.guide, "enumerated_sites", ())), _stored_moments(minibatch):
            return self._run(self.model, "model", minibatch)

    def run_guide(self, minibatch: Minibatch) -> Any:
        """Run ``guide`` (or what :meth:`use_posterior` has put in its place) on a minibatch."""
        if self.posterior is not None:
            return self._run(self.posterior, "posterior", minibatch)
        with _stored_moments(minibatch):
            return self._run(self.guide, "guide", minibatch)

    @property
    def posterior(self) -> PyroModule | None:
        """What latents are drawn from in place of the guide; ``None`` for the guide itself."""
        return self._modules.get("posterior")  # type: ignore[return-value]

    def use_posterior(self, posterior: PyroModule | None) -> None:
        """Draw latents from the result of another method than SVI; ``None`` returns to the guide.

        Parameters
        ----------
        posterior
            Module that draws every latent site when it is called without arguments, like a guide.
        """
        if posterior is None:
            self._modules.pop("posterior", None)
        else:
            adopt(posterior)
            self._modules["posterior"] = posterior

    def run(self, which: str, minibatch: Minibatch) -> Any:
        """Call another method with the tensors that its signature names, as the pair is called.

        Parameters
        ----------
        which
            Name of the method.
        minibatch
            The observations.

        Raises
        ------
        ModelError
            If it asks for a tensor that is not registered.
        """
        if self._names is not None and which not in self._names:
            self._names = {**self._names, which: self._argument_names(which, minibatch)}
        with _stored_moments(minibatch):
            return self._run(getattr(self, which), which, minibatch)

    def _run(self, function: Callable[..., Any], which: str, minibatch: Minibatch) -> Any:
        if self._names is None:
            raise ModelError("The module has not been materialised yet; call module.materialise().")
        arguments = {name: minibatch[name] for name in self._names[which]}
        with ExitStack() as stack:
            stack.enter_context(local_params())
            stack.enter_context(minibatch_scope(minibatch))
            if isinstance(minibatch, RowMinibatch):
                stack.enter_context(rows_in_place(self, minibatch.rows))
            if self._needs_context:
                stack.enter_context(self._pyro_context)
            return function(**arguments)

    # ------------------------------------------------------------------ construction

    def materialise(self, example: Callable[[int], Minibatch]) -> None:
        """Create all parameters, build the site ledger and check the contracts.

        Parameters
        ----------
        example
            Function that makes an example minibatch of a given number of observations (from the
            registry's shapes: no data are needed).

        Raises
        ------
        ModelError
            If an argument of ``model`` or ``guide`` is not registered, if the guide does not fit
            the model, or if a site breaks the plate rules.
        """
        self._check_pair()
        refuse_unusable(self)
        give_obs_plate(self.guide)
        small, large = example(2), example(3)
        self._names = {
            "model": self._argument_names("model", small),
            "guide": self._argument_names("guide", small),
            "posterior": (),
        }
        self._needs_context = self._has_pyro_attributes()
        read = _RecordParameters()
        with ExitStack() as stack:
            for context in (torch.no_grad(), stream("materialise"), evaluation_mode(self)):
                stack.enter_context(context)
            stack.enter_context(pyro.get_param_store().scope())  # whatever goes in is gone on exit
            stack.enter_context(on_made_up_observations(small.tensors))
            stack.enter_context(read)
            guide = poutine.trace(self.run_guide).get_trace(small)
            self.summed_by_guide = _unmark_enumerated(guide)
            refuse_blind(self)
            first = self._prototype(guide, small)
            larger_guide = poutine.trace(self.run_guide).get_trace(large)
            _unmark_enumerated(larger_guide)
            with SameValues(first):  # what differs comes from the minibatch
                second = self._prototype(larger_guide, large)
            draws = self._prior_draws(first, small)
        self._refuse_global_params(read.global_names)
        with on_made_up_observations(small.tensors):
            self._ledger = build_ledger(first, second, self.site_dims, draws)
            check_shapes(first, second)
            check_guide(self._ledger, guide)
        self.auxiliary_sites = tuple(
            name
            for name, node in guide.nodes.items()
            if is_latent(node) and (node["infer"] or {}).get("is_auxiliary")
        )
        refuse_varying_supports(self, self._ledger)
        self._first_rows = self._find_rows(read.row_axes, small.n_obs)
        with torch.no_grad(), stream("materialise"), evaluation_mode(self):
            refuse_dependent_globals(self, small, large)
            refuse_dependent_rows(self, small, large)

    def _prototype(self, guide: poutine.Trace, minibatch: Minibatch) -> poutine.Trace:
        with SameShapes():
            return poutine.trace(poutine.replay(self.run_model, trace=guide)).get_trace(minibatch)

    def _prior_draws(self, first: poutine.Trace, minibatch: Minibatch) -> list[poutine.Trace]:
        """Two draws; with gradients, so that it shows which distributions are trained."""
        # Unusual draws from a wide prior must not stop the construction.
        with torch.enable_grad(), pyro.validation_enabled(False), PriorDraw(first):
            return [poutine.trace(self.run_model).get_trace(minibatch) for _ in range(2)]

    def _check_pair(self) -> None:
        for which in ("model", "guide"):
            if not callable(getattr(self, which, None)):
                raise ModelError(
                    f"{type(self).__name__} has no `{which}`: define `def {which}(self, X, ...)`"
                    + (" or assign a Pyro guide to self.guide." if which == "guide" else ".")
                )

    def _has_pyro_attributes(self) -> bool:
        guide = self.guide
        own = [
            m for m in self.modules() if not (isinstance(guide, AutoGuide) and _within(m, guide))
        ]
        return any(isinstance(m, PyroModule) and (m._pyro_params or m._pyro_samples) for m in own)

    def _argument_names(self, which: str, minibatch: Minibatch) -> tuple[str, ...]:
        function = getattr(self, which)
        if isinstance(function, AutoGuide):
            function = self.model
        if isinstance(function, torch.nn.Module):
            function = function.forward  # its __call__ takes anything
        names = []
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                return tuple(minibatch)
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
                raise ModelError(
                    f"`{which}` of {type(self).__name__} takes {parameter}; name the tensors it "
                    f"needs instead (registered: {', '.join(minibatch)})."
                )
            if name in minibatch:
                names.append(name)
            elif parameter.default is parameter.empty:
                raise ModelError(
                    f"`{which}` of {type(self).__name__} asks for {name!r}, which is not "
                    f"registered. Registered are: {', '.join(minibatch)}. Register it in "
                    f"setup_anndata with a field whose registry key is {name!r}, e.g. "
                    f"LayerField({name!r}, layer=...) or NumericalObsField({name!r}, 'column'), "
                    "or give the argument a default."
                )
        return tuple(names)

    @property
    def row_parameters(self) -> tuple[str, ...]:
        """Names (as in ``state_dict``) of the parameters that have one row per observation."""
        return tuple(self._first_rows)

    @property
    def row_axes(self) -> dict[str, int]:
        """Axis of the observations in each of them, counted from the right (negative)."""
        return {name: axis for name, (axis, _) in self._first_rows.items()}

    def initial_rows(self, n: int) -> dict[str, Tensor]:
        """Tables of ``n`` rows with the value that the first row had at construction."""
        return {
            name: row.to(self.device).repeat_interleave(n, dim=axis)
            for name, (axis, row) in self._first_rows.items()
        }

    def _find_rows(self, row_axes: Mapping[str, int], n_obs: int) -> dict[str, tuple[int, Tensor]]:
        parameters = dict(self.named_parameters())
        found = {}
        for fullname, axis in row_axes.items():
            for name in (fullname, f"{fullname}_unconstrained"):
                shape = parameters[name].shape if name in parameters else ()
                if len(shape) >= -axis and shape[axis] == n_obs:
                    first = parameters[name].detach().narrow(axis, 0, 1).clone()
                    found[name] = (axis, first)
        return found

    def _refuse_global_params(self, names: Sequence[str]) -> None:
        if names:
            name = names[0]
            attribute = name.replace("$$$", ".").replace(".", "_")
            raise ModelError(
                f"pyro.param({name!r}, ...) names a global parameter; every model of the process "
                "would share it, and it would not be saved. Make it an attribute of the module: "
                f"`self.{attribute} = PyroParam(value, constraint)`."
            )


class _RecordParameters(Messenger):
    """Note parameters of the global store, and those read by row inside the observation plate."""

    def __init__(self) -> None:
        super().__init__()
        self.global_names: list[str] = []
        self.row_axes: dict[str, int] = {}

    def _pyro_param(self, msg: Any) -> None:
        # Parameters of modules are announced by the same message, with a function of their own.
        if getattr(msg["fn"], "__self__", None) is pyro.get_param_store():
            self.global_names.append(msg["name"])
        event_dim = msg["kwargs"].get("event_dim")
        for frame in msg["cond_indep_stack"]:
            if event_dim is not None and frame.name == OBS_PLATE:
                self.row_axes[msg["name"]] = frame.dim - event_dim


def _unmark_enumerated(guide: poutine.Trace) -> tuple[str, ...]:
    """Names of the sites that a guide sums over; it draws them, so the model leaves them to it."""
    nodes: Mapping[str, Any] = guide.nodes
    names = []
    for name, node in nodes.items():
        if is_latent(node) and is_enumerated(node):
            node["infer"] = {k: v for k, v in (node["infer"] or {}).items() if k != "enumerate"}
            names.append(name)
    return tuple(names)


def _stored_moments(minibatch: Minibatch) -> AbstractContextManager[Any]:
    return Minified(minibatch) if is_minified(minibatch) else nullcontext()


def _within(module: torch.nn.Module, root: torch.nn.Module) -> bool:
    return any(module is other for other in root.modules())
