"""make_guide: a guide from its name, a Pyro class, a function or a guide."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro.infer.autoguide import AutoGuide

from pyrovi.errors import ModelError
from pyrovi.module.guides.discrete import without_discrete
from pyrovi.module.guides.guide import FAMILIES, AutoAmortized, AutoRows

NAMES = (*FAMILIES, "amortized")
"""Names that :func:`make_guide` knows."""

_OTHERWISE = (
    "A guide can also be a class or object of pyro.infer.autoguide, a function of the model that "
    "makes a guide, or a hand-written guide."
)

_MODEL_NAMES = ("model", "story", "m")
"""What the only argument of a function that makes a guide is called."""


def make_guide(
    spec: Any,
    model: Any,
    *,
    encoder_inputs: Sequence[str] | None = None,
    n_categories: Mapping[str, int] | None = None,
    **options: Any,
) -> Any:
    """Make a guide of a model.

    Parameters
    ----------
    spec
        * A name: ``"normal"``, ``"lowrank"``, ``"mvn"``, ``"flow"``, ``"laplace"``, ``"delta"``
          (see :class:`AutoRows`) or ``"amortized"`` (see :class:`AutoAmortized`);
        * a class of ``pyro.infer.autoguide``, of which one is made for the model, discrete sites
          left out;
        * a function that makes a guide: of one argument, called ``model``, which receives the model
          without its discrete sites;
        * a guide, automatic or hand-written, which is returned as it is.
    model
        The story, or a :class:`~pyrovi.module.PyroBaseModule` with a ``model``. It need not be able
        to run yet: guides look at their model when they run for the first time.
    encoder_inputs
        Registry keys of the tensors that the encoder of ``"amortized"`` reads (see
        :class:`AutoAmortized`).
    n_categories
        Registry key -> number of categories of the categorical covariates that it may read.
    **options
        Other options of the class that a name stands for, or of a Pyro class.

    Returns
    -------
    callable
        The guide, to be assigned to ``self.guide`` of a module.

    Raises
    ------
    ModelError
        If there is no guide of this name, if an option does not belong to it, or if ``spec`` is
        nothing that a guide could be made from.

    Examples
    --------
    ``self.guide = make_guide("mvn", self.model)`` in the ``__init__`` of a module.
    """
    story = _story(model)
    if isinstance(spec, str) and spec == "amortized":
        _check_options(spec, AutoAmortized, options)
        return AutoAmortized(story, encoder_inputs, n_categories=n_categories or {}, **options)
    if encoder_inputs is not None:
        raise ModelError(
            "encoder_inputs belongs to the guide 'amortized', the only one with an encoder."
        )
    if isinstance(spec, str):
        if spec not in FAMILIES:
            raise ModelError(
                f"There is no guide {spec!r}. Names are: {', '.join(NAMES)}. {_OTHERWISE}"
            )
        _check_options(spec, AutoRows, options)
        return AutoRows(story, spec, **options)
    if inspect.isclass(spec) and issubclass(spec, AutoGuide):
        _check_options(spec.__name__, spec, options)
        return _without_discrete(spec, story, options)
    if options:
        raise ModelError(
            f"The options {', '.join(map(repr, options))} belong to guides by name; {spec!r} takes "
            "none."
        )
    if inspect.isclass(spec) or not callable(spec):
        raise ModelError(
            f"Expected a guide, found {spec!r}. Give a name: {', '.join(NAMES)}. {_OTHERWISE}"
        )
    if not _makes_guides(spec):
        return spec
    made = _without_discrete(spec, story, {})
    if not callable(made):
        raise ModelError(
            f"The function {getattr(spec, '__name__', spec)!r} is to make a guide of the model, "
            f"but returns {made!r}. A hand-written guide takes tensors: name its arguments after "
            "the fields of the data."
        )
    return made


def _story(model: Any) -> Callable[..., Any]:
    from pyrovi.module.base import PyroBaseModule  # which itself looks at guides

    story: Callable[..., Any] = model.model if isinstance(model, PyroBaseModule) else model
    return story


def _without_discrete(
    make: Callable[..., Any], story: Callable[..., Any], options: Mapping[str, Any]
) -> Any:
    found: list[str] = []
    guide = make(without_discrete(story, found), **options)
    if isinstance(guide, AutoGuide):
        guide.enumerated_sites = found
    return guide


def _makes_guides(function: Callable[..., Any]) -> bool:
    if isinstance(function, AutoGuide):
        return False
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind in _BY_POSITION]
    return len(needed) == 1 and needed[0] in _MODEL_NAMES


_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _check_options(name: str, kind: type, options: Mapping[str, Any]) -> None:
    known = [p for p in inspect.signature(kind).parameters if p not in _NOT_OPTIONS]
    if unknown := [option for option in options if option not in known]:
        raise ModelError(
            f"The guide {name!r} has no option {', '.join(map(repr, unknown))}; it has: "
            f"{', '.join(known) or 'none'}."
        )


_NOT_OPTIONS = ("model", "family", "inputs", "n_categories")
