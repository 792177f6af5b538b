"""The report's account of the model: graph, sites, priors, and the story itself."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi.criticism.report_blocks import Block, Code, Diagram, Folded, Section, Table
from pyrovi.criticism.report_priors import constant_priors
from pyrovi.criticism.report_subject import Refusal, Subject
from pyrovi.model.draws import example_on_device
from pyrovi.model.graph import ModelGraph
from pyrovi.module.ledger import Role
from pyrovi.module.story import StoryModule
from pyrovi.posterior.prior_density import prior_parents

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LONG = 40

_CAPTION = (
    "Priors of the global sites: quantiles of draws from the prior, over all elements of a site "
    "together. What depends on other sites is drawn with them."
)


def model_section(subject: Subject) -> Section:
    """Graph, sites, priors and source code of the model."""
    model = subject.model
    blocks: list[Block] = [
        _diagram(model),
        Table(model.sites.to_frame(), "Every site of the model; each can be queried by its name."),
    ]
    values: dict[str, Any] = {}
    if subject.has_globals:
        priors = prior_table(subject)
        values["priors"] = priors.to_dict(orient="index")
        blocks.append(Table(priors, _CAPTION if "50%" in priors else "Priors of the global sites."))
        if isinstance(subject.prior, Refusal):
            blocks.append(f"Quantiles of the prior are not available: {subject.prior.reason}")
    else:
        blocks.append(
            "There are no global latent sites, so there are no priors of parameters: what is "
            "shared between observations is parameters that training sets to single values."
        )
    blocks.append(_parameters(model))
    blocks += _stories(model)
    return Section("Model", blocks, values=values)


def prior_table(subject: Subject) -> pd.DataFrame:
    """Quantiles of the prior of each global site, by site.

    Returns
    -------
    pandas.DataFrame
        ``distribution``, with its parameters where they are constants (or that it is improper),
        ``depends on``, number of ``elements``, and quantiles where the prior can be drawn from.
    """
    import pandas as pd

    model = subject.model
    names = model.sites.names(Role.GLOBAL)
    sizes, prior = subject.global_sizes, subject.prior
    parents = prior_parents(model.module, example_on_device(model, None))
    known = constant_priors(model, [name for name in names if not parents.get(name)])
    graph = model.render()
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        improper = name in subject.improper
        rows[name] = {
            "distribution": "improper" if improper else known.get(name, graph.nodes[name][1]),
            "depends on": ", ".join(parents.get(name, ())) or "nothing (top level)",
            "elements": sizes[name],
        }
        if not isinstance(prior, Refusal):
            values = prior[name].to_numpy().astype(float)
            rows[name] |= {f"{q:.0%}": float(np.quantile(values, q)) for q in _QUANTILES}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("site")


def _diagram(model: BaseModelClass) -> Diagram:
    graph = model.render()
    drawing = graph.to_svg()
    if drawing is None:
        markup = "".join(_plates(graph, ()))
    else:  # inside HTML the names of the languages are known, and look like addresses
        markup = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", drawing)
    caption = (
        "What depends on what. Frames are plates (repetition); grey sites are observed, dashed "
        "ones computed."
    )
    return Diagram(markup, graph.to_text(), caption)


def _plates(graph: ModelGraph, plates: tuple[str, ...]) -> Iterator[str]:
    """Plates as frames within frames, each with its sites in the order of the story."""
    for name, (role, distribution, own) in graph.nodes.items():
        if own != plates:
            continue
        above = graph.parents.get(name, ())
        sign = "=" if role is Role.DETERMINISTIC else "~"
        if role is Role.DETERMINISTIC:
            words = [sign, f"function of {', '.join(above) or 'data or parameters'}"]
        else:
            words = [sign, distribution, f"given {', '.join(above)}" if above else ""]
        yield (
            f'<div class="node {escape(str(role))}"><span class="name">{escape(name)}</span>'
            f'<span class="rest">{escape(" ".join(filter(None, words)))}</span></div>'
        )
    depth = len(plates)
    inner = [own for _, _, own in graph.nodes.values() if len(own) > depth]
    for plate in dict.fromkeys(own[depth] for own in inner if own[:depth] == plates):
        size = f" × {graph.sizes[plate]:,}" if plate in graph.sizes else ""
        yield '<div class="plate">'
        yield from _plates(graph, (*plates, plate))
        yield f'<span class="size">{escape(plate)}{size}</span></div>'


def _parameters(model: BaseModelClass) -> str:
    sizes: dict[str, int] = {}
    whose = "model and guide" if model.module.posterior is None else "the model"
    for name, parameter in model.module.named_parameters():
        part = name.partition(".")[0]
        if part == "guide" and model.module.posterior is not None:
            continue  # it was not asked
        sizes[part] = sizes.get(part, 0) + parameter.numel()
    if not sizes:
        return f"There are no trainable parameters of {whose}."
    parts = ", ".join(f"{part} {size:,}" for part, size in sizes.items())
    return f"Trainable parameters of {whose}: {sum(sizes.values()):,} ({parts})."


def _stories(model: BaseModelClass) -> list[Block]:
    module = model.module
    arguments = model._init_arguments
    if isinstance(module, StoryModule):
        story, guide = arguments.get("story"), arguments.get("guide")
    else:
        kind: Any = type(module)
        story, guide = kind.model, getattr(kind, "guide", None)
    blocks: list[Block] = [_code(story, "The story: the generative model as it was written.")]
    if guide is not None and callable(guide):
        caption = "The guide: the family of posteriors."
        blocks.append(Folded("Source code of the guide", [_code(guide, caption)]))
    text = getattr(blocks[0], "text", "")
    if text.count("\n") > _LONG:
        blocks[0] = Folded("Source code of the story", [blocks[0]])
    return blocks


def _code(story: Any, caption: str) -> Block:
    """Source code of a function, or of the class of a module, if it is at hand."""
    while isinstance(story, functools.partial):
        story = story.func
    code = story if inspect.isroutine(story) or isinstance(story, type) else type(story)
    try:
        return Code(textwrap.dedent(inspect.getsource(code)).rstrip(), caption)
    except (OSError, TypeError):  # typed into an interpreter, or not written in Python
        name = getattr(code, "__qualname__", str(code))
        return f"The source code of {name} is not available (it was not read from a file)."
