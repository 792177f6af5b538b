"""Guides by name: a family for the global sites and one for the local sites of any story."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import pyro
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.guides.discrete import is_left_out, sites_to_sum
from pyrovi.module.guides.encoder import EncodedLocals
from pyrovi.module.guides.families import Flow, FullRank, LowRank, MeanField, Point
from pyrovi.module.guides.inputs import find_inputs
from pyrovi.module.guides.local_families import RowFullRank, RowMeanField, RowPoint
from pyrovi.module.guides.sites import LatentSite, Plates, find_sites
from pyrovi.module.handlers import Substitute, is_latent
from pyrovi.module.plates import current_minibatch
from pyrovi.module.sites import support_varies

FAMILIES = ("normal", "lowrank", "mvn", "flow", "laplace", "delta")
"""Names of the families of the global sites."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class StoryGuide(PyroModule):
    """A guide that finds the sites of its model itself, when it runs for the first time.

    Discrete latent sites are left to exact summation: those that the model does not mark with
    ``infer={"enumerate": "parallel"}`` are marked on its behalf.

    Parameters
    ----------
    model
        The story.
    family
        Family of the global sites, one of :data:`FAMILIES`.
    init
        Site -> value to start from, within its support. The other sites start near the middle of
        their prior, or at 0 on the real line where the prior is improper. Training moves a location
        by about the learning rate per step: give a value where a parameter is far from there.
    init_scale
        Standard deviation of every coordinate on the real line to start from.
    rank
        Rank of ``"lowrank"``; ``None`` for the square root of the number of coordinates.

    Attributes
    ----------
    method
        Inference method that the guide is made for: ``"svi"``, or ``"laplace"``.
    enumerated_sites
        Names of the discrete sites that are marked to be summed out on the model's behalf.
    site_names
        Names of the sites that the guide draws; empty before it has run.

    Raises
    ------
    ModelError
        If the family is unknown, or an option does not belong to it.
    """

    enumerated_sites: tuple[str, ...] = ()
    site_names: tuple[str, ...] = ()
    is_amortised = False
    """Whether an encoder gives the local sites."""

    def __init__(
        self,
        model: Callable[..., Any],
        family: str,
        *,
        init: Mapping[str, Any] = _NOTHING,
        init_scale: float = 0.1,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        if family not in FAMILIES:
            raise ModelError(
                f"There is no family of guides {family!r}; there are: {', '.join(FAMILIES)}."
            )
        if rank is not None and family != "lowrank":
            raise ModelError(f"rank= belongs to the guide 'lowrank', not to {family!r}.")
        if not init_scale > 0:
            raise ModelError(f"init_scale must be positive, found {init_scale}.")
        self._model = (model,)  # in a tuple: the model is no part of its guide
        self.family, self.init, self.init_scale, self.rank = family, dict(init), init_scale, rank
        self.method = "laplace" if family == "laplace" else "svi"
        self.globals: Any = None
        self.locals: Any = None
        self._made = False
        self.__signature__ = inspect.Signature()  # no tensors: it reads the minibatch in scope

    @property
    def model(self) -> Callable[..., Any]:
        """The story."""
        return self._model[0]

    def forward(self) -> None:
        """Draw all latent sites of the minibatch in scope."""
        minibatch = current_minibatch()
        if not self._made:
            self._make(minibatch)
        plates = Plates()
        for part in (self.globals, self.locals):
            if part is not None:
                part(plates)

    def _make(self, minibatch: Minibatch) -> None:
        arguments = _arguments(self.model, minibatch)
        sites, trace = find_sites(self.model, arguments, is_left_out, self.init)
        self.enumerated_sites = sites_to_sum(self.model, arguments, trace)
        shared = [site for site in sites if site.obs_dim is None]
        local = [site for site in sites if site.obs_dim is not None]
        _refuse_supports_of_rows(self.model, arguments, trace, local)
        if shared:
            self.globals = self._make_globals(shared)
        if local:
            self.locals = self._make_locals(local, arguments, trace, minibatch)
        self.site_names = tuple(site.name for site in sites)
        self.train(self.training)  # made in an evaluation: the parts are to learn nothing from it
        self.to(minibatch.indices.device)
        self._made = True

    def _make_globals(self, sites: Sequence[LatentSite]) -> PyroModule:
        if self.family == "lowrank":
            return LowRank(sites, self.init_scale, self.rank)
        if self.family in ("delta", "laplace"):
            return Point(sites, on_real_line=self.family == "laplace")
        kind = {"normal": MeanField, "mvn": FullRank, "flow": Flow}[self.family]
        made: PyroModule = kind(sites, self.init_scale)
        return made

    @abstractmethod
    def _make_locals(
        self,
        sites: Sequence[LatentSite],
        arguments: Mapping[str, Tensor],
        trace: poutine.Trace,
        minibatch: Minibatch,
    ) -> PyroModule: ...


class AutoRows(StoryGuide):
    """A guide with one row of parameters per observation for the local sites.

    ========== ============================================== =====================================
    family     global sites, together, on the real line       local sites, on the real line
    ========== ============================================== =====================================
    "normal"   normal, independent coordinates                normal, independent coordinates
    "lowrank"  normal, low-rank plus diagonal covariance      normal, independent coordinates
    "mvn"      normal, full covariance                        normal, full covariance within an
                                                              observation
    "flow"     normalising flow                               normal, independent coordinates
    "delta"    a point: the mode of the density of the sites  a point
    "laplace"  a point: the mode on the real line             a point
    ========== ============================================== =====================================

    ``"delta"`` is maximum a posteriori in the constrained space, as Pyro's ``AutoDelta`` is;
    ``"laplace"`` adds the Jacobian, since its normal approximation lives on the real line.

    Parameters
    ----------
    model, family, init, init_scale, rank
        As for :class:`StoryGuide`.
    """

    def _make_locals(
        self,
        sites: Sequence[LatentSite],
        arguments: Mapping[str, Tensor],
        trace: poutine.Trace,
        minibatch: Minibatch,
    ) -> PyroModule:
        if self.family in ("delta", "laplace"):
            return RowPoint(sites, self.family == "laplace", minibatch.n_obs)
        if self.family == "mvn":
            return RowFullRank(sites, self.init_scale, minibatch.n_obs)
        return RowMeanField(sites, self.init_scale, minibatch.n_obs)


class AutoAmortized(StoryGuide):
    """A guide whose local sites are drawn from the outputs of an encoder.

    Observations share the encoder, so the number of parameters does not grow with their number, and
    new observations need no fit of their own.

    Parameters
    ----------
    model
        The story.
    inputs
        Registry keys of the tensors that the encoder reads; ``None`` for all tensors of numbers
        that the model takes and that have a row per observation, and the categorical covariates of
        ``n_categories`` that it takes. Observed counts are read as ``log(1 + x)``. All inputs are
        standardised by what training sees of them.
    globals
        Family of the global sites, one of ``"normal"``, ``"lowrank"``, ``"mvn"``, ``"flow"``,
        ``"delta"``.
    locals
        Family of the local sites: ``"normal"`` for independent coordinates on the real line,
        ``"mvn"`` for a full covariance within each observation.
    n_categories
        Registry key of a categorical covariate -> number of categories: read one-hot.
    n_hidden, n_layers
        Size and number of the hidden layers of the encoder.
    init, init_scale, rank
        As for :class:`StoryGuide`.

    Raises
    ------
    ModelError
        If a family is unknown; when it runs for the first time, if the model has no local latents
        or there is nothing to read.

    References
    ----------
    Kingma & Welling 2014, Auto-encoding variational Bayes.
    """

    is_amortised = True

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: Sequence[str] | None = None,
        globals: str = "normal",
        locals: Literal["normal", "mvn"] = "normal",
        *,
        n_categories: Mapping[str, int] = _NOTHING,
        n_hidden: int = 128,
        n_layers: int = 1,
        init: Mapping[str, Any] = _NOTHING,
        init_scale: float = 0.1,
        rank: int | None = None,
    ) -> None:
        if globals == "laplace":
            raise ModelError(
                "The amortised guide has no Laplace approximation of the globals: that takes all "
                'observations at once. Use globals="mvn" or "lowrank".'
            )
        if locals not in ("normal", "mvn"):
            raise ModelError(f"locals must be 'normal' or 'mvn', found {locals!r}.")
        if isinstance(inputs, str):
            raise ModelError(f"The inputs of an encoder are a list of names, found {inputs!r}.")
        super().__init__(model, globals, init=init, init_scale=init_scale, rank=rank)
        self.encoder_inputs = None if inputs is None else tuple(inputs)
        self.local_family, self.n_categories = locals, dict(n_categories)
        self.n_hidden, self.n_layers = n_hidden, n_layers

    def _make(self, minibatch: Minibatch) -> None:
        super()._make(minibatch)
        if self.locals is None:
            raise ModelError(
                "The guide 'amortized' encodes the latents of each observation, and the model has "
                'none inside the observation plate. Use "normal", "lowrank", "mvn" or "flow".'
            )

    def _make_locals(
        self,
        sites: Sequence[LatentSite],
        arguments: Mapping[str, Tensor],
        trace: poutine.Trace,
        minibatch: Minibatch,
    ) -> PyroModule:
        inputs = find_inputs(
            self.model, arguments, trace, minibatch, self.encoder_inputs, self.n_categories
        )
        covariance: Literal["diagonal", "full"] = (
            "full" if self.local_family == "mvn" else "diagonal"
        )
        return EncodedLocals(
            sites, inputs, self.init_scale, covariance, self.n_hidden, self.n_layers
        )


def _arguments(model: Callable[..., Any], minibatch: Minibatch) -> dict[str, Tensor]:
    parameters = inspect.signature(model).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(minibatch)
    return {name: minibatch[name] for name in parameters if name in minibatch}


def _refuse_supports_of_rows(
    model: Callable[..., Any],
    arguments: Mapping[str, Tensor],
    trace: poutine.Trace,
    sites: Sequence[LatentSite],
) -> None:
    """Refuse local sites whose support is another one for every observation."""
    changed = {
        name: tensor + 1 if tensor.is_floating_point() else tensor
        for name, tensor in arguments.items()
    }
    nodes: Mapping[str, Any] = trace.nodes
    latents = {name: node["value"] for name, node in nodes.items() if is_latent(node)}
    try:
        with pyro.validation_enabled(False), poutine.block(), Substitute(latents):
            other: Any = poutine.trace(model).get_trace(**changed)
    except (ValueError, RuntimeError):
        return  # a story that refuses the other values does not tell anything
    for site in sites:
        if support_varies([nodes[site.name]["fn"], other.nodes[site.name]["fn"]]):
            raise ModelError(
                f"The support of the local site {site.name!r} depends on the observation, which a "
                "guide by name cannot follow. Draw a variable of fixed support and transform it: "
                f'for `Uniform(0, b)`, `u = pyro.sample("u", dist.Uniform(0, 1))` and '
                f'`{site.name} = pyro.deterministic("{site.name}", u * b)`.'
            )
