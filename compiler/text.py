"""A graph as text for people: deterministic, one line a node; and what changed between two graphs."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cortado.compiler.graph import Graph, Node, Value

SHOWN = 8  # constants of up to this many elements are shown whole


def format_graph(graph: Graph) -> str:
    """Inputs, then nodes with producers first, then outputs. A constant of more than SHOWN elements shows as type and CRC-32 of its bytes."""
    lines = [f"graph {graph.name}", *_inputs(graph)]
    lines += [format_node(node) for node in graph.nodes() if node.op != "input"]
    return "\n".join([*lines, *_outputs(graph)]) + "\n"


def format_node(node: Node) -> str:
    """`name = op(inputs) attr=value ... : types   # from origin`, the origin where it is more than the name."""
    types = ", ".join(map(str, node.types))
    if node.op == "constant":
        return f"{node.name} = constant {_array(node.attrs['value'])} : {types}"
    attrs = "".join(f" {key}={_attribute(node.attrs[key])}" for key in sorted(node.attrs))
    origin = "" if node.origin in ((), (node.name,)) else f"  # from {', '.join(node.origin)}"
    return f"{node.name} = {node.op}({', '.join(map(repr, node.inputs))}){attrs} : {types}{origin}"


def diff_graphs(before: Graph, after: Graph) -> str:
    """Only what changed, by node name: "- " lines of `before`, "+ " lines of `after`; empty where nothing did."""
    if before is after:
        return ""
    old, new = _described(before), _described(after)
    lines = []
    for name, node in old.items():
        other = new.get(name)
        if other is node:
            continue
        line = _line(node)
        if other is None or _line(other) != line:
            lines.append(f"- {line}")
        if other is not None and _line(other) != line:
            lines.append(f"+ {_line(other)}")
    lines += [f"+ {_line(node)}" for name, node in new.items() if name not in old]
    return "".join(f"{line}\n" for line in lines)


def _described(graph: Graph) -> Mapping[tuple[str, str], Node | str]:
    """(kind, name) -> node, or the text of an input or output line, in the graph's order."""
    table: dict[tuple[str, str], Node | str] = {
        ("input", node.name): line for node, line in zip(graph.inputs, _inputs(graph), strict=True)
    }
    table |= {("node", node.name): node for node in graph.nodes() if node.op != "input"}
    return table | {("output", name): line for (name, _), line in zip(graph.outputs, _outputs(graph), strict=True)}


def _line(entry: Node | str) -> str:
    return entry if isinstance(entry, str) else format_node(entry)


def _inputs(graph: Graph) -> list[str]:
    return [f"input {node.name} : {node.types[0]}{_layout(graph, node.name)}" for node in graph.inputs]


def _outputs(graph: Graph) -> list[str]:
    return [f"output {_renamed(name, value)} : {value.type}{_layout(graph, name)}" for name, value in graph.outputs]


def _renamed(name: str, value: Value) -> str:
    return name if name == repr(value) else f"{name} = {value!r}"


def _layout(graph: Graph, name: str) -> str:
    return f" {graph.layouts[name]}" if graph.layouts.get(name) else ""


def _attribute(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, tuple):
        return f"({','.join(map(_attribute, value))})"
    return repr(value) if isinstance(value, float) else str(value)


def _array(array: np.ndarray) -> str:
    if array.size <= SHOWN:
        return str(array.tolist()).replace(" ", "")
    return f"crc32={zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}"
