"""Pyro's automatic guides under minibatches: which can be used, and what observations they see."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from pyro.infer.autoguide import (
    AutoCallable,
    AutoContinuous,
    AutoDelta,
    AutoDiscreteParallel,
    AutoGaussian,
    AutoGuide,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoNormal,
    AutoStructured,
)
from pyro.nn import PyroModule
from pyro.poutine.guide import GuideMessenger

from pyrovi.errors import ModelError
from pyrovi.module.guides.guide import StoryGuide
from pyrovi.module.ledger import SiteLedger
from pyrovi.module.plates import OBS_PLATE, ObsPlate, obs_plate

Pair = TypeVar("Pair", bound=PyroModule)

_ROWWISE = (AutoNormal, AutoDelta)
"""Guides that have one row of parameters per observation and pick those of the minibatch."""

_UNUSABLE = {
    AutoLaplaceApproximation: (
        "what it trains is the point of highest density; the normal approximation around it is a "
        "second guide, made by hand afterwards. Use AutoMultivariateNormal for a normal posterior "
        "with correlations, or AutoDelta for a point estimate."
    ),
    GuideMessenger: (
        "it runs the model inside the guide and makes its parameters while it runs, so they cannot "
        "be known, saved and picked by observation. Use AutoNormal in the place of "
        "AutoNormalMessenger, and AutoStructured or a guide written by hand in that of the others."
    ),
    AutoDiscreteParallel: (
        "discrete sites need no guide. Mark them in the model with "
        'infer={"enumerate": "parallel"}: they are summed out exactly. Hide them from an automatic '
        "guide of the other sites: AutoNormal(poutine.block(model, hide=[...]))."
    ),
}


def give_obs_plate(guide: Any) -> None:
    """Make an automatic guide open the observation plate of the minibatch in scope.

    Left to itself it would open a plate of the same name with indices of its own, which ``replay``
    then forces upon the model: every observation would be paired with the row of another.
    """
    if isinstance(guide, AutoGuide) and guide.create_plates is None:

        def create_plates(*_: Any, **__: Any) -> list[ObsPlate]:
            frame = guide._prototype_frames.get(OBS_PLATE)
            return [] if frame is None else [obs_plate(frame.dim)]

        guide.create_plates = create_plates


def refuse_unusable(module: torch.nn.Module) -> None:
    """Refuse guides of Pyro that do not work the way modules do.

    Parameters
    ----------
    module
        A module with its guide, which need not have run.

    Raises
    ------
    ModelError
        If an abstract guide, a Laplace approximation, an effect-based (messenger) guide or a guide
        of discrete sites is part of the module.
    """
    for part in module.modules():
        for kind, reason in _UNUSABLE.items():
            if isinstance(part, kind):
                raise ModelError(f"{type(part).__name__} cannot be used here: {reason}")
        if type(part) in (AutoGuide, AutoContinuous):
            raise ModelError(
                f"{type(part).__name__} is an abstract class without a distribution of its own. "
                "Use one of its subclasses, e.g. AutoNormal or AutoMultivariateNormal."
            )


def refuse_blind(module: torch.nn.Module) -> None:
    """Refuse automatic guides whose parameters take the size of the first minibatch.

    Parameters
    ----------
    module
        A module whose guide, automatic or not, has run once.

    Raises
    ------
    ModelError
        If such a guide, or a part of an ``AutoGuideList`` or of a hand-written guide, draws a local
        site.
    """
    for part in module.modules():
        if not isinstance(part, AutoGuide) or isinstance(part, _ROWWISE):
            continue
        stacks = _plates_of_sites(part)
        blind = [n for n, stack in stacks.items() if any(f.name == OBS_PLATE for f in stack)]
        if blind:
            raise ModelError(
                f"{type(part).__name__} cannot be used for the local site(s) "
                f"{', '.join(map(repr, blind))}: its parameters have the size of the first "
                "minibatch and would be reused for every other one. Write an amortised guide for "
                "the local sites, or use AutoNormal or AutoDelta."
            )


def refuse_varying_supports(module: torch.nn.Module, ledger: SiteLedger) -> None:
    """Refuse automatic guides of sites whose support depends on other sites.

    An automatic guide maps real numbers into the support that a site had in the one run it was
    made from, whatever the values of the sites that the support depends on.

    Parameters
    ----------
    module
        A module whose guide, automatic or not, has run once.
    ledger
        The ledger of its sites.

    Raises
    ------
    ModelError
        If such a site is drawn by an automatic guide.
    """
    for part in module.modules():
        if isinstance(part, StoryGuide):
            names: Iterable[str] = part.site_names
        elif isinstance(part, AutoGuide):
            names = _plates_of_sites(part)
        else:
            continue
        for name in names:
            if ledger[name].support_varies:
                raise ModelError(
                    f"The support of site {name!r} depends on other latent sites, and "
                    f"{type(part).__name__} would keep the support of its first run. Draw a "
                    "variable of fixed support and transform it: for `Uniform(0, 1 - a)`, "
                    f'`u = pyro.sample("u", dist.Uniform(0, 1))` and `{name} = '
                    f'pyro.deterministic("{name}", u * (1 - a))`. Or write the guide of the site '
                    "by hand."
                )


def _plates_of_sites(part: AutoGuide) -> dict[str, Any]:
    """Site -> plates it stands in, for the sites that a guide draws itself."""
    if part.prototype_trace is None or isinstance(part, (AutoGuideList, AutoCallable)):
        return {}
    if isinstance(part, AutoStructured):  # empties the nodes of its prototype
        return {name: site["cond_indep_stack"] for name, site in part._sorted_sites}
    if isinstance(part, AutoGaussian):  # likewise, and it looks at observed sites too
        sites = part._factors.items()
        return {n: site["cond_indep_stack"] for n, site in sites if not site["is_observed"]}
    nodes = part.prototype_trace.iter_stochastic_nodes()
    return {name: node["cond_indep_stack"] for name, node in nodes}


def adopt(module: PyroModule) -> None:
    """Give a Pyro module that was made outside pyrovi parameters of its own.

    Whether the parameters of a ``PyroModule`` are its own or the process's is decided when it is
    made. One that has not run yet can still change sides.

    Raises
    ------
    ModelError
        If it has run already: its parameters are in Pyro's global store.
    """
    context = module._pyro_context
    if hasattr(context, "param_state"):
        return
    if context.used:
        raise ModelError(
            f"This {type(module).__name__} has run before, outside of pyrovi, and its parameters "
            "are in Pyro's global parameter store. Pass a new one that has not been called yet."
        )
    for part in module.modules():
        if isinstance(part, PyroModule):
            part._pyro_context.param_state = {"params": {}, "constraints": {}}


def copy_pair(module: Pair) -> Pair:
    """Deep copy of a model/guide pair.

    Pyro's automatic guides drop the model they belong to when they are copied, the original and the
    copy: the original gets it back here, and the copy the copied one.
    """
    guides = [part for part in module.modules() if isinstance(part, AutoGuide)]
    kept = [(guide._model, guide.master) for guide in guides]
    memo: dict[int, Any] = {}
    try:
        copied = copy.deepcopy(module, memo)
    finally:
        for guide, (model, master) in zip(guides, kept, strict=True):
            guide._model, guide.master = model, master
    for guide, (model, _) in zip(guides, kept, strict=True):
        memo[id(guide)]._model = copy.deepcopy(model, memo)
    return copied
