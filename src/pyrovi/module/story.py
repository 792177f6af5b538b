"""StoryModule: a Pyro function, or module, and a guide chosen for it, as a model/guide pair."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import nn

from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.guides import make_guide
from pyrovi.module.handlers import FloatingObservations


class StoryModule(PyroBaseModule):
    """A story with its constants filled in, and a guide.

    Parameters
    ----------
    story
        Function or module that is the model. Arguments that can be passed by position are tensors,
        named after the fields; keyword-only arguments are constants.
    guide
        See :func:`~pyrovi.module.guides.make_guide`.
    fields
        Names of the registered fields.
    stats
        Summary statistics, for the constants of the same names.
    site_dims
        See :class:`PyroBaseModule`.

    Raises
    ------
    ModelError
        If the story asks for a tensor that is no field, or a constant that is no statistic.
    """

    def __init__(
        self,
        story: Callable[..., Any],
        guide: Any,
        fields: Sequence[str],
        stats: Mapping[str, int],
        site_dims: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.site_dims = dict(site_dims or {})
        story = made_story(story)
        if isinstance(story, nn.Module):
            story = copy.deepcopy(story)  # the caller's stays as it is, and can be used again
            self.story = story
        self._constants = _constants(story, story_name(story), stats)
        self.model = _bound(
            story, story_name(story), fields, self._constants, FloatingObservations()
        )
        self.guide = self._make_guide(guide, fields, stats)

    def _make_guide(self, guide: Any, fields: Sequence[str], stats: Mapping[str, int]) -> Any:
        if isinstance(guide, (FunctionType, functools.partial)):
            if _is_story(guide, fields):
                constants = _constants(guide, "The guide", stats)
                return _bound(guide, "The guide", fields, constants)
            _check_maker(guide, fields)
            return make_guide(lambda model: guide(model), self.model)
        categories = {name: stats[f"n_{name}"] for name in fields if f"n_{name}" in stats}
        return make_guide(guide, self.model, n_categories=categories)

    @contextmanager
    def with_constants(self, values: Mapping[str, int]) -> Iterator[None]:
        """Run the story with other constants, e.g. for more groups than there were.

        Raises
        ------
        ModelError
            If the story takes no such constant, or has it fixed.
        """
        before = dict(self._constants)
        if unknown := [name for name in values if name not in before]:
            raise ModelError(
                f"The story does not take {', '.join(map(repr, unknown))}, so the number of levels "
                "is fixed in it, and new ones cannot be predicted. Take it as a keyword-only "
                f"argument without a default, `def story(..., *, {unknown[0]})`."
            )
        self._constants.update(values)
        try:
            yield
        finally:
            self._constants.update(before)


def made_story(story: Any) -> Any:
    """The story itself; of a class of modules (or a partial of one), a new object of it.

    Parameters
    ----------
    story
        What a user gave. Classes are called anew for every model, with initial values of its own,
        where an object always begins with the values that it has.
    """
    maker = story.func if isinstance(story, functools.partial) else story
    return story() if inspect.isclass(maker) and issubclass(maker, nn.Module) else story


def story_name(story: Callable[..., Any]) -> str:
    """How messages call a story."""
    while isinstance(story, functools.partial):
        story = story.func
    return f"The story {getattr(story, '__qualname__', type(story).__name__)!r}"


def tensor_names(story: Callable[..., Any]) -> list[str]:
    """Names of the tensors that a story asks for: its arguments without a default."""
    return [p.name for p in _positional(story, story_name(story)) if p.default is p.empty]


def _positional(story: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    function = story.forward if isinstance(story, nn.Module) else story
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            parameters.append(parameter)
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            raise ModelError(
                f"{name} takes {parameter}. Expected tensors by name, `def story(X, batch)`, and "
                "constants as keyword-only arguments, `def story(X, *, n_vars, n_factors=8)`."
            )
    return parameters


def _is_story(guide: Callable[..., Any], fields: Sequence[str]) -> bool:
    """Whether a function is a hand-written guide, and not one that makes a guide of a model."""
    given = inspect.signature(guide).parameters.values()
    names = [p.name for p in given if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    return not names or set(names) <= set(fields)


def _check_maker(guide: Callable[..., Any], fields: Sequence[str]) -> None:
    """Refuse a guide that asks for tensors of which some are no fields."""
    given = inspect.signature(guide).parameters.values()
    names = [p.name for p in given if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    if len(names) > 1:
        unknown = [name for name in names if name not in fields]
        raise ModelError(
            f"The guide asks for {', '.join(map(repr, unknown))}, which no field provides. Fields "
            f"are: {', '.join(fields) or 'none'}. Expected a guide whose arguments are named after "
            "fields (add the field, or give the argument a default), or a function of the model "
            "alone that makes a guide."
        )


def _bound(
    story: Callable[..., Any],
    name: str,
    fields: Sequence[str],
    constants: Mapping[str, int],
    handler: Any = None,
) -> Callable[..., Any]:
    """The story as a function of tensors alone, which its signature names."""
    tensors = _positional(story, name)
    missing = [p.name for p in tensors if p.default is p.empty and p.name not in fields]
    if missing:
        raise ModelError(
            f"{name} asks for {', '.join(map(repr, missing))}, which no field provides. Fields "
            f"are: {', '.join(fields) or 'none'}. Add it, e.g. fields={{{missing[0]!r}: "
            "pv.fields.obs('column')}, give the argument a default, or, if it is a constant, make "
            "it keyword-only (after a `*`)."
        )

    def run(**values: Any) -> Any:
        if handler is None:
            return story(**values, **constants)
        with handler:
            return story(**values, **constants)

    run.__signature__ = inspect.Signature(tensors)  # type: ignore[attr-defined]
    run.__name__ = getattr(story, "__name__", type(story).__name__)
    return run


def _constants(story: Callable[..., Any], name: str, stats: Mapping[str, int]) -> dict[str, int]:
    function = story.forward if isinstance(story, nn.Module) else story
    constants = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        # a statistic that functools.partial, or the author, has given a value keeps that
        if parameter.default is parameter.empty:
            if parameter.name not in stats:
                known = ", ".join(f"{k}={v}" for k, v in stats.items())
                raise ModelError(
                    f"{name} needs the constant {parameter.name!r}, which is no summary statistic "
                    f"of the data (these are: {known}). Give it a default in the signature, or a "
                    f"value with functools.partial(story, {parameter.name}=...)."
                )
            constants[parameter.name] = int(stats[parameter.name])
    return constants
