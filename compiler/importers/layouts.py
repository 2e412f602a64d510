"""The axis names of a graph's inputs and outputs, for the user's information."""

from __future__ import annotations

from collections.abc import Mapping

from cortado.compiler.graph import Graph, Value
from cortado.compiler.ops.elementwise import ELEMENTWISE


def boundary_layouts(graph: Graph, seen: Mapping[Value, str]) -> dict[str, str]:
    """seen: layouts of the values that operators with channels read and wrote. Elementwise operators of one shape pass them on."""
    known = dict(seen)
    nodes = graph.nodes()
    for forward in (True, False):
        for node in nodes if forward else reversed(nodes):
            if node.op not in ELEMENTWISE and node.op != "softmax":
                continue
            out = node.out()
            same = [value for value in node.inputs if value.shape == out.shape and value.constant is None]
            if forward:
                found = [known[value] for value in same if value in known]
                if found:
                    known.setdefault(out, found[0])
            elif out in known:
                for value in same:
                    known.setdefault(value, known[out])
    layouts = {node.name: known[node.out()] for node in graph.inputs if node.out() in known}
    layouts.update((name, known[value]) for name, value in graph.outputs if value in known)
    return layouts
