"""The float graph as quantization wants it: only clamps stay in the epilogues of layers, other activations become tables of their own."""

from __future__ import annotations

from cortado.compiler.graph import Graph, Node, Value
from cortado.compiler.ops import make
from cortado.compiler.quantize.plan import CLAMPS, LAYERS


def prepare(graph: Graph) -> Graph:
    """The graph with every activation that an int8 layer cannot take as a node of its own, by the layer's name."""

    def split(node: Node, inputs: tuple[Value, ...]) -> Node | Value:
        same = node if inputs == node.inputs else Node(node.op, inputs, node.attrs, node.types, node.name, node.origin)
        if node.op not in LAYERS or node.types[0].dtype != "float32" or not node.attrs["epilogue"]:
            return same
        last = node.attrs["epilogue"][-1]
        if last[0] != "activation" or last[1] in CLAMPS:
            return same
        attrs = {**node.attrs, "epilogue": node.attrs["epilogue"][:-1]}
        layer = make(node.op, inputs, attrs, f"{node.name}/linear", node.origin)
        return make(last[1], (layer.out(),), dict(last[2]), node.name, node.origin)

    return graph.rebuild(split)
