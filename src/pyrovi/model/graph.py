"""``model.render``: the graph of a model, drawn from its site ledger. Functions of a model."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import detach_provenance, get_provenance

from pyrovi._rng import stream
from pyrovi.dataloaders.example import example_minibatches
from pyrovi.errors import ModelError
from pyrovi.module.base import evaluation_mode
from pyrovi.module.handlers import is_deterministic, is_factor
from pyrovi.module.ledger import Role
from pyrovi.module.plates import OBS_PLATE

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


@dataclass(frozen=True)
class ModelGraph:
    """Sites, the distributions they have, and what each depends on directly.

    Attributes
    ----------
    nodes
        Site -> (role, name of the distribution, plates outermost first).
    parents
        Site -> sites that its distribution (or value) is computed from.
    sizes
        Plate -> number of copies.
    """

    nodes: dict[str, tuple[Role, str, tuple[str, ...]]]
    parents: dict[str, tuple[str, ...]]
    sizes: dict[str, int]

    def to_dot(self) -> str:
        """The graph in Graphviz's language: observed sites are grey, deterministic ones dashed."""
        lines = ["digraph {", '  node [fontname="Helvetica", fontsize=11];']
        lines += self._dot_within((), 1)
        lines += [f'  "{p}" -> "{child}";' for child, above in self.parents.items() for p in above]
        return "\n".join([*lines, "}"])

    def _dot_within(self, plates: tuple[str, ...], depth: int) -> Iterator[str]:
        pad = "  " * depth
        for name, (role, distribution, own) in self.nodes.items():
            if own == plates:
                label = f"{name}\\n{distribution}" if distribution else name
                yield f'{pad}"{name}" [label="{label}", {_STYLES[role]}];'
        for plate in self._children(plates):
            inner = (*plates, plate)
            title = f"{plate} ({self.sizes[plate]})" if plate in self.sizes else plate
            yield f'{pad}subgraph "cluster_{"__".join(inner)}" {{'
            yield f'{pad}  label="{title}"; labeljust=r; labelloc=b;'
            yield f'{pad}  fontname="Helvetica"; fontsize=10;'
            yield from self._dot_within(inner, depth + 1)
            yield f"{pad}}}"

    def _children(self, plates: tuple[str, ...]) -> list[str]:
        depth = len(plates)
        inner = [own for _, _, own in self.nodes.values() if len(own) > depth]
        return list(dict.fromkeys(own[depth] for own in inner if own[:depth] == plates))

    def to_text(self) -> str:
        """The graph as lines of text, one per site, indented by plates."""
        return "\n".join(self._text_within((), 0))

    def _text_within(self, plates: tuple[str, ...], depth: int) -> Iterator[str]:
        pad = "  " * depth
        for name, (role, distribution, own) in self.nodes.items():
            if own != plates:
                continue
            above = ", ".join(self.parents.get(name, ()))
            given = f" | {above}" if above else ""
            sign = "=" if role is Role.DETERMINISTIC else "~"
            right = f" {distribution}" if distribution else ""
            note = f"  [{role}]" if role in (Role.OBSERVED, Role.ENUMERATED, Role.FACTOR) else ""
            yield f"{pad}{name} {sign}{right}{given}{note}"
        for plate in self._children(plates):
            size = f" ({self.sizes[plate]})" if plate in self.sizes else ""
            yield f"{pad}plate {plate}{size}:"
            yield from self._text_within((*plates, plate), depth + 1)

    def _repr_html_(self) -> str:
        """In a notebook: the drawing, or the text where Graphviz is not installed."""
        drawing = self.to_svg()
        return f"<pre>{self.to_text()}</pre>" if drawing is None else drawing

    def to_svg(self) -> str | None:
        """The drawing as SVG; ``None`` without Graphviz (its Python package and its program)."""
        if importlib.util.find_spec("graphviz") is None or shutil.which("dot") is None:
            return None
        import graphviz

        svg: str = graphviz.Source(self.to_dot()).pipe(format="svg", encoding="utf-8")
        return svg[svg.index("<svg") :]

    def __repr__(self) -> str:
        return self.to_text()


_STYLES = {
    Role.OBSERVED: 'shape=ellipse, style=filled, fillcolor="#cccccc"',
    Role.DETERMINISTIC: "shape=ellipse, style=dashed",
    Role.FACTOR: "shape=box",
    Role.ENUMERATED: "shape=ellipse, peripheries=2",
    Role.GLOBAL: "shape=ellipse",
    Role.LOCAL: "shape=ellipse",
}


def render(model: BaseModelClass, path: str | None = None) -> ModelGraph:
    """The graph of the model: sites, plates, and what depends on what.

    Parameters
    ----------
    path
        File to draw into (``.svg``, ``.pdf``, ``.png``; needs Graphviz), or to write the graph to
        as text (``.txt``) or in Graphviz's language (``.dot``).

    Returns
    -------
    ModelGraph
        Shown as a drawing in notebooks where Graphviz is installed, otherwise as text.

    Raises
    ------
    ModelError
        If the file's kind is none of these, or needs Graphviz and there is none.
    """
    graph = model_graph(model)
    if path is not None:
        _write(graph, str(path))
    return graph


def _write(graph: ModelGraph, path: str) -> None:
    kind = path.rpartition(".")[2].lower()
    if kind in ("txt", "dot", "gv"):
        with open(path, "w", encoding="utf-8") as file:
            file.write(graph.to_text() if kind == "txt" else graph.to_dot())
        return
    if kind not in ("svg", "pdf", "png"):
        raise ModelError(
            f"render() cannot write {path!r}. Expected .svg, .pdf, .png, .dot or .txt."
        )
    if graph.to_svg() is None:
        raise ModelError(
            f"Drawing {path!r} needs Graphviz: the Python package (pip install graphviz) and the "
            "program `dot` (from your system's packages). Without it, write a .txt or .dot file."
        )
    import graphviz

    with open(path, "wb") as file:
        file.write(graphviz.Source(graph.to_dot()).pipe(format=kind))


def model_graph(model: BaseModelClass) -> ModelGraph:
    """Find the graph by running the model once on made-up observations, tracking provenance."""
    module, ledger = model.module, model.sites
    example = example_minibatches(model.registry, model.n_obs_training)(2).to(model.device)
    with torch.no_grad(), stream("graph"), evaluation_mode(module), pyro.validation_enabled(False):
        guide = poutine.trace(module.run_guide).get_trace(example)
        with TrackProvenance(include_deterministic=True):
            trace: Any = poutine.trace(poutine.replay(module.run_model, trace=guide)).get_trace(
                example
            )
    nodes, parents, sizes = {}, {}, {}
    for name, node in trace.nodes.items():
        if name not in ledger:
            continue
        site = ledger[name]
        for frame in node["cond_indep_stack"]:
            known = model.n_obs_training if frame.name == OBS_PLATE else frame.size
            sizes[frame.name] = int(known)
        nodes[name] = (site.role, _distribution(node), site.plates)
        parents[name] = _parents(name, node, ledger)
    return ModelGraph(nodes, parents, sizes)


def _distribution(node: Any) -> str:
    if is_deterministic(node) or is_factor(node):
        return ""
    fn = node["fn"]
    while type(fn).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__


def _parents(name: str, node: Any, known: Any) -> tuple[str, ...]:
    if is_deterministic(node):
        source = node["fn"].base_dist if hasattr(node["fn"], "base_dist") else node["fn"]
        carrier = source.v
    else:
        carrier = node["fn"].log_prob(detach_provenance(node["value"]))
    return tuple(p for p in known if p in get_provenance(carrier) and p != name)
