"""The float graph with a plan and ranges becomes an int8 graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cortado.compiler.graph import Graph, Node, Value, constant, graph_input
from cortado.compiler.ops import make
from cortado.compiler.ops.quantized import make_table
from cortado.compiler.ops.quantized_elementwise import MOST_SUMMED, summed
from cortado.compiler.ops.window import is_global
from cortado.compiler.quantize.affine import affine_layer
from cortado.compiler.quantize.plan import LAYERS, MOVES, Plan, activations, clamp_of, pair_of, table_input
from cortado.compiler.quantize.ranges import GREATEST, LEAST
from cortado.compiler.quantize.weights import quantized_layer
from cortado.compiler.reference import evaluate
from cortado.compiler.rewrite import with_unique_names
from cortado.compiler.types import Quant, TensorType

DTYPE = "int8"
NAMES: Mapping[str, str] = {
    "conv": "q_conv", "conv_transpose": "q_conv_transpose", "fc": "q_fc", "batch_matmul": "q_matmul", "add": "q_add", "mul": "q_mul",
    "average_pool": "q_average_pool", "reduce_mean": "q_mean", "reduce_sum": "q_sum",
}  # fmt: skip


def to_int8(plan: Plan, quants: tuple[Quant, ...], moved: Mapping[Node, np.ndarray]) -> Graph:
    """The plan's graph in int8, its boundary unchanged.

    quants: by tensor of the plan. moved: what is added to the biases of layers.
    """
    rewrite = _Rewrite(plan, quants, moved)
    for node in plan.graph.nodes():
        rewrite.node(node)
    outputs = tuple((name, rewrite.real(value)) for name, value in plan.graph.outputs)
    return with_unique_names(replace(plan.graph, outputs=outputs))


def integer_nodes(plan: Plan, quants: tuple[Quant, ...]) -> dict[Node, tuple[Node, ...]]:
    """What each of the plan's quantized nodes becomes: an operator, and for a concat also the conversions of its inputs."""
    rewrite = _Rewrite(plan, quants, {})
    for node in plan.graph.nodes():
        rewrite.node(node)
    made = {}
    for node in plan.quantized:
        twin = rewrite.integers[node.out()].node
        pairs = zip(twin.inputs, activations(node), strict=False) if node.op == "concat" else ()
        made[node] = (twin, *(value.node for value, source in pairs if value != rewrite.integers[source]))
    return made


@dataclass
class _Rewrite:
    """floats, integers: what stands for each value of the float graph in either form; the other form is made when it is needed."""

    plan: Plan
    quants: tuple[Quant, ...]
    moved: Mapping[Node, np.ndarray]
    floats: dict[Value, Value] = field(default_factory=dict)
    integers: dict[Value, Value] = field(default_factory=dict)

    def quant(self, value: Value) -> Quant:
        return self.quants[self.plan.of[value]]

    def real(self, value: Value) -> Value:
        if value not in self.floats:
            node = value.node
            name = f"{node.name}/dequantized"
            self.floats[value] = make("dequantize", (self.integers[value],), {}, name, node.origin).out()
        return self.floats[value]

    def integer(self, value: Value) -> Value:
        if value not in self.integers:
            node = value.node
            attrs = {"quant": self.quant(value), "dtype": DTYPE}
            self.integers[value] = make("quantize", (self.real(value),), attrs, f"{node.name}/quantized", node.origin).out()
        return self.integers[value]

    def node(self, node: Node) -> None:
        if node in self.plan.quantized:
            self.integers[node.out()] = self._quantized(node).out()
            return
        if _averages(node) and node.inputs[0].node in self.plan.quantized:
            self.floats[node.out()] = self._dequantized_mean(node).out()
            return
        inputs = tuple(self.real(value) for value in node.inputs)
        fresh = node if inputs == node.inputs else Node(node.op, inputs, node.attrs, node.types, node.name, node.origin)
        for i in range(len(node.types)):
            self.floats[node.out(i)] = fresh.out(i)

    def _dequantized_mean(self, node: Node) -> Node:
        """The way back to float32 is shorter behind an average than before it."""
        x = self.integers[node.inputs[0]]
        whole = {"axes": tuple(range(1, len(x.shape) - 1)), "keepdims": True}
        attrs = {name: node.attrs.get(name, value) for name, value in whole.items()}
        return make("dequantized_mean", (x,), attrs, node.name, node.origin)

    def _quantized(self, node: Node) -> Node:
        inputs = [self.integer(value) for value in activations(node)]
        if node.op == "concat":
            inputs = [self._converted(node, i, value) for i, value in enumerate(inputs)]
        if node.op in LAYERS:
            return self._layer(node, node, inputs)
        if node.op in MOVES:
            return make(node.op, (*inputs, *node.inputs[len(inputs) :]), self._moved_attrs(node), node.name, node.origin)
        if table_input(node) is not None:
            return self._table(node, inputs[0])
        layer = affine_layer(node)
        if layer is not None:
            return self._layer(node, layer, inputs)
        if node.op == "softmax":
            attrs = {**node.attrs, "quant": self.quant(node.out()), "dtype": DTYPE}
            return make("q_softmax", inputs, attrs, node.name, node.origin)
        pair = pair_of(node)
        if pair is not None:
            return make(NAMES[pair[0]], inputs, self._result(node, *clamp_of(node)), node.name, node.origin)
        return make(NAMES[node.op], inputs, {**node.attrs, **self._result(node)}, node.name, node.origin)

    def _converted(self, concat: Node, position: int, value: Value) -> Value:
        """A concat's input with the result's scale: a table, where it has another."""
        quant = self.quant(concat.out())
        if value.type.quant == quant:
            return value
        attrs = {"table": make_table(lambda real: real, value.type, quant, DTYPE), "quant": quant, "dtype": DTYPE}
        return make("q_table", (value,), attrs, f"{concat.name}/converted{position}", concat.origin).out()

    def _moved_attrs(self, node: Node) -> dict[str, Any]:
        attrs = dict(node.attrs)
        if node.op == "pad":
            attrs["value"] = self.quant(node.out()).zero_points[0]  # what zero is here
        return attrs

    def _result(self, node: Node, low: float = -np.inf, high: float = np.inf) -> dict[str, Any]:
        """Attributes of a result, clamped to real low and high."""
        quant = self.quant(node.out())
        scale, zero = quant.scales[0], quant.zero_points[0]
        least = LEAST if low == -np.inf else int(np.clip(np.rint(low / scale) + zero, LEAST, GREATEST))
        most = GREATEST if high == np.inf else int(np.clip(np.rint(high / scale) + zero, least, GREATEST))
        return {"quant": quant, "dtype": DTYPE, "rounding": "even", "lo": least, "hi": most}

    def _layer(self, node: Node, layer: Node, inputs: list[Value]) -> Node:
        """layer: the node, or the layer that does the same."""
        x_scale, y_scale = self.quant(layer.inputs[0]).scales[0], self.quant(node.out()).scales[0]
        weights, bias = quantized_layer(layer, x_scale, y_scale, self.moved.get(node)).constants(layer)
        attrs = {key: value for key, value in layer.attrs.items() if key != "epilogue"}
        operands = (inputs[0], weights, bias, *inputs[1:])
        return make(NAMES[layer.op], operands, {**attrs, **self._result(node, *clamp_of(layer))}, node.name, node.origin)

    def _table(self, node: Node, x: Value) -> Node:
        """The function is evaluated by the operator's reference, one value at a time as far as it can see."""

        def function(values: np.ndarray) -> np.ndarray:
            return elementwise(node, values)

        quant = self.quant(node.out())
        attrs = {"table": make_table(function, x.type, quant, DTYPE), "quant": quant, "dtype": DTYPE}
        return make("q_table", (x,), attrs, node.name, node.origin)


def _averages(node: Node) -> bool:
    """A float32 mean over whole axes."""
    shape = node.inputs[0].shape if node.inputs else ()
    if node.op == "average_pool":
        axes = range(1, len(shape) - 1) if is_global(shape, node.attrs) else ()
    else:
        axes = node.attrs["axes"] if node.op == "reduce_mean" else ()
    return bool(axes) and node.types[0].dtype == "float32" and summed(shape, axes) <= MOST_SUMMED


def elementwise(node: Node, values: np.ndarray) -> np.ndarray:
    """A node that table_input accepts, applied to float32[n].

    In float64, so that the last bits of a machine's functions do not reach the table.
    """
    x = graph_input("x", TensorType(values.shape, "float64")).out()
    inputs = [x if v.constant is None else constant(v.constant.reshape(1).astype(np.float64), v.node.name) for v in node.inputs]
    small = make(node.op, inputs, node.attrs, node.name)
    wide = values.astype(np.float64)
    return evaluate(small, [wide if v.constant is None else v.constant for v in inputs])[0]
