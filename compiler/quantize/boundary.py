"""The boundary of an int8 graph as raw integers, where the user asks for it."""

from __future__ import annotations

from dataclasses import replace

from cortado.compiler.graph import Graph, Node, Value, graph_input
from cortado.compiler.ops import make
from cortado.compiler.types import Quant
from cortado.errors import OptionError

SOFTMAX = Quant((1 / 256,), (-128,))


def integer_boundary(graph: Graph) -> Graph:
    """Float inputs that are only quantized, and float outputs that are only dequantized, become int8; a softmax gets scale 1/256.

    OptionError names the inputs and outputs for which there is no such type.
    """
    uses = graph.uses()
    swapped: dict[Node, Node] = {}
    wrong = []
    for node in graph.inputs:
        readers = [reader for reader, _ in uses.get(node.out(), ())]
        types = {reader.types[0] for reader in readers if reader.op == "quantize"}
        if node.types[0].dtype != "float32":
            continue
        if len(types) == 1 and all(reader.op == "quantize" for reader in readers):
            swapped[node] = graph_input(node.name, types.pop())
        else:
            wrong.append(f"input {node.name!r} is read as float32")

    def integer(node: Node, inputs: tuple[Value, ...]) -> Node | Value:
        inputs = tuple(swapped[v.node].out() if v.node in swapped else v for v in inputs)
        if node.op == "quantize" and inputs[0].type.dtype == "int8":
            return inputs[0]
        return node if inputs == node.inputs else Node(node.op, inputs, node.attrs, node.types, node.name, node.origin)

    inner = graph.rebuild(integer)
    outputs = []
    for name, value in inner.outputs:
        found = _integer_output(value)
        if found is None:
            wrong.append(f"output {name!r} is computed in float32 by {value.node.op}")
        outputs.append((name, value if found is None else found))
    if wrong:
        raise OptionError(f"io_dtype int8: {'; '.join(wrong)}; leave io_dtype out, or name other outputs")
    return replace(inner, inputs=tuple(swapped.get(node, node) for node in graph.inputs), outputs=tuple(outputs))


def _integer_output(value: Value) -> Value | None:
    node = value.node
    if value.type.dtype != "float32":
        return value
    if node.op == "dequantize":
        return node.inputs[0]
    if node.op == "softmax":
        return make("quantize", (value,), {"quant": SOFTMAX, "dtype": "int8"}, f"{node.name}/quantized", node.origin).out()
    if node.op in ("reshape", "transpose"):
        inner = _integer_output(node.inputs[0])
        return None if inner is None else make(node.op, (inner,), node.attrs, f"{node.name}/int8", node.origin).out()
    return None
