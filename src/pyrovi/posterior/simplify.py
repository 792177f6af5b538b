"""Simplifying recorded tensor operations: constants computed once, repetitions and copies gone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

_COPIES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
"""Operations that return their argument, as far as values go."""


def simplify(recorded: GraphModule) -> None:
    """Simplify a graph of ATen operations in place; its results stay bitwise the same.

    Graphs with operations that change their arguments are left as they are.

    Parameters
    ----------
    recorded
        What ``make_fx`` returns.
    """
    position = {node: number for number, node in enumerate(recorded.graph.nodes)}
    if not all(_make_functional(node, position) for node in recorded.graph.nodes):
        return
    constants: dict[Node, Any] = {}
    seen: dict[Any, Node] = {}
    for node in list(recorded.graph.nodes):
        if node.op == "get_attr":
            constants[node] = _attribute(recorded, str(node.target))
        elif node.op == "call_function":
            _simplify_node(node, constants, seen)
    _store(recorded, constants)
    recorded.graph.eliminate_dead_code()
    recorded.recompile()


def _simplify_node(node: Node, constants: dict[Node, Any], seen: dict[Any, Node]) -> None:
    if node.target in _COPIES:
        source = node.args[0]
        assert isinstance(source, Node)
        node.replace_all_uses_with(source)
        return
    if all(argument in constants for argument in node.all_input_nodes):
        arguments = torch.fx.map_arg((node.args, node.kwargs), constants.__getitem__)
        assert callable(node.target)
        with torch.no_grad():
            constants[node] = node.target(*arguments[0], **arguments[1])
        return
    key = _key(node)
    if key is None:
        return
    if key in seen:
        node.replace_all_uses_with(seen[key])
    else:
        seen[key] = node


def _key(node: Node) -> Any:
    """What makes two operations the same; ``None`` if that cannot be told."""
    key = (node.target, repr(node.args), repr(sorted(node.kwargs.items())))
    return None if "tensor(" in key[1] + key[2] else key


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _make_functional(node: Node, position: dict[Node, int]) -> bool:
    """Replace an operation in place by its twin, where nobody looks at the argument afterwards."""
    if not _mutates(node):
        return True
    source, schema = node.args[0], node.target._schema  # type: ignore[union-attr]
    name = schema.name.removeprefix("aten::")
    twin = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    if twin is None or not isinstance(source, Node) or source.op != "call_function":
        return False
    later = any(position[user] > position[node] for user in source.users)
    is_view = any(r.alias_info is not None for r in source.target._schema.returns)  # type: ignore[union-attr]
    overload = schema.overload_name or "default"
    if later or is_view or overload not in twin.overloads():
        return False
    node.target = getattr(twin, overload)
    return True


def _attribute(recorded: GraphModule, path: str) -> Any:
    value: Any = recorded
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _store(recorded: GraphModule, constants: dict[Node, Any]) -> None:
    """Read the constants that the others use from attributes."""
    for number, (node, value) in enumerate(constants.items()):
        used = [user for user in node.users if user not in constants]
        if node.op == "get_attr" or not used or not isinstance(value, Tensor):
            continue
        name = f"_constant_{number}"
        recorded.register_buffer(name, value.detach())
        with recorded.graph.inserting_before(node):
            read = recorded.graph.get_attr(name)
        for user in used:
            user.replace_input_with(node, read)
