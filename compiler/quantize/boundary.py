"""The boundary of an int8 graph as raw integers, where the user asks for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cortado.compiler.graph import Graph, Node, Value, graph_input
from cortado.compiler.ops import make
from cortado.compiler.ops.requantize import limits
from cortado.compiler.quantize.plan import MOVES
from cortado.compiler.types import NUMPY_DTYPE, Quant, TensorType
from cortado.errors import OptionError

INTEGERS = ("int8", "uint8")
ALONE = frozenset(MOVES) - {"concat", "gather", "pad"}  # moves of one tensor that are the same of its integers
SHIFT = {("int8", "uint8"): 128, ("uint8", "int8"): -128}


def is_quantized(graph: Graph) -> bool:
    """Does the graph go from float to integers or back anywhere?"""
    return any(node.op in ("quantize", "dequantize") for node in graph.nodes())


def integer_boundary(graph: Graph, dtype: str) -> Graph:
    """Float inputs that are only quantized, and float outputs that are only dequantized, become `dtype`; a softmax gets scale 1/256.

    dtype: int8 or uint8. Where the integers inside are of the other type, the numbers at the boundary are 128 away, and so is their zero
    point. OptionError names the inputs and outputs for which there is no such type.
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
            swapped[node] = graph_input(node.name, _shifted(types.pop(), dtype))
        else:
            wrong.append(f"input {node.name!r} is read as float32")

    def integer(node: Node, inputs: tuple[Value, ...]) -> Node | Value:
        inputs = tuple(swapped[v.node].out() if v.node in swapped else v for v in inputs)
        if node.op == "quantize" and inputs[0].type.dtype in INTEGERS:
            return _as(inputs[0], node.attrs["dtype"], node.name)
        return node if inputs == node.inputs else Node(node.op, inputs, node.attrs, node.types, node.name, node.origin)

    inner = graph.rebuild(integer)
    outputs = []
    for name, value in inner.outputs:
        found = _integer_output(value, dtype)
        if found is None:
            wrong.append(f"output {name!r} is computed in float32 by {value.node.op}")
        outputs.append((name, value if found is None else found))
    if wrong:
        raise OptionError(f"io_dtype {dtype}: {'; '.join(wrong)}; leave io_dtype out, or name other outputs")
    return replace(inner, inputs=tuple(swapped.get(node, node) for node in graph.inputs), outputs=tuple(outputs))


def _integer_output(value: Value, dtype: str) -> Value | None:
    node = value.node
    if value.type.dtype != "float32":
        return value
    if node.op == "dequantize":
        return _as(node.inputs[0], dtype, f"{node.name}/{dtype}")
    if node.op == "dequantized_mean":  # an average stays within its tensor's range
        x = node.inputs[0]
        low, high = limits(x.type.dtype)
        attrs = {**node.attrs, "quant": x.type.quant, "dtype": x.type.dtype, "rounding": "even", "lo": low, "hi": high}
        return _as(make("q_mean", (x,), attrs, f"{node.name}/quantized", node.origin).out(), dtype, f"{node.name}/{dtype}")
    if node.op == "softmax":
        quant = Quant((1 / 256,), (int(np.iinfo(NUMPY_DTYPE[dtype]).min),))
        return make("quantize", (value,), {"quant": quant, "dtype": dtype}, f"{node.name}/quantized", node.origin).out()
    if node.op in ALONE:
        inner = _integer_output(node.inputs[0], dtype)
        return None if inner is None else make(node.op, (inner,), node.attrs, f"{node.name}/{dtype}", node.origin).out()
    return None


def _shifted(kind: TensorType, dtype: str) -> TensorType:
    """The type of the same real numbers in the other integers."""
    if kind.dtype == dtype:
        return kind
    assert kind.quant is not None
    return TensorType(kind.shape, dtype, Quant(kind.quant.scales, (kind.quant.zero_points[0] + SHIFT[kind.dtype, dtype],)))


def _as(value: Value, dtype: str, name: str) -> Value:
    """The same real numbers as `dtype`, by a table where that is another type."""
    if value.type.dtype == dtype:
        return value
    kind = _shifted(value.type, dtype)
    numbers = np.arange(256, dtype=np.uint8).view(NUMPY_DTYPE[value.type.dtype]).astype(np.int32)
    table = (numbers + SHIFT[value.type.dtype, dtype]).astype(NUMPY_DTYPE[dtype])
    table.flags.writeable = False
    return make("q_table", (value,), {"table": table, "quant": kind.quant, "dtype": dtype}, name, value.node.origin).out()
