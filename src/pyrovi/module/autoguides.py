"""Pyro's automatic guides under minibatches: which can be used, and what observations they see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyro.infer.autoguide import AutoCallable, AutoDelta, AutoGuide, AutoGuideList, AutoNormal
from pyro.nn import PyroModule

from pyrovi.errors import ModelError
from pyrovi.module.plates import OBS_PLATE, ObsPlate, obs_plate

_ROWWISE = (AutoNormal, AutoDelta)
"""Guides that have one row of parameters per observation and pick those of the minibatch."""


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


def refuse_blind(guide: Any) -> None:
    """Refuse automatic guides whose parameters take the size of the first minibatch.

    Parameters
    ----------
    guide
        A guide, automatic or not, that has run once.

    Raises
    ------
    ModelError
        If such a guide, or a part of an ``AutoGuideList``, draws a local site.
    """
    for part in _parts(guide):
        if part.prototype_trace is None:
            continue
        blind = [
            name
            for name, node in part.prototype_trace.iter_stochastic_nodes()
            if any(frame.name == OBS_PLATE for frame in node["cond_indep_stack"])
        ]
        if blind:
            raise ModelError(
                f"{type(part).__name__} cannot be used for the local site(s) "
                f"{', '.join(map(repr, blind))}: its parameters have the size of the first "
                "minibatch and would be reused for every other one. Write an amortised guide for "
                "the local sites, or use AutoNormal or AutoDelta."
            )


def _parts(guide: Any) -> Iterator[AutoGuide]:
    if isinstance(guide, AutoGuideList):
        for part in guide:
            yield from _parts(part)
    elif isinstance(guide, AutoGuide) and not isinstance(guide, (*_ROWWISE, AutoCallable)):
        yield guide


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
