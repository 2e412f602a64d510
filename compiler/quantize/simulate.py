"""A float graph that computes as the int8 one does, with ranges and biases as inputs: compiled once, it compares many choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cortado.compiler.graph import Graph, Node, Value, constant, graph_input
from cortado.compiler.ops import make
from cortado.compiler.ops.pointwise import Instruction
from cortado.compiler.quantize.plan import BLENDS, LAYERS, Plan, activations, bias_of
from cortado.compiler.quantize.ranges import GREATEST, LEAST
from cortado.compiler.quantize.weights import rounded_weights, weight_scales
from cortado.compiler.rewrite import with_unique_names
from cortado.compiler.types import Quant, TensorType

RANGES, BIASES, SWITCHES = "quantization/ranges", "quantization/biases", "quantization/switches"
SOFT = ("softmax", "reshape", "transpose")  # what hides the size of an error at the end of a network
ROW = 4  # numbers per tensor: least and greatest value, 1 / scale, scale


@dataclass(frozen=True)
class Simulation:
    """graph: outputs `output0` ... for the network's own (as they are before a softmax), then what is observed, by tensor_name.

    Beside the network's inputs it takes RANGES float32[tensors, ROW] and BIASES float32[all layers' channels]; where it is switched also
    SWITCHES float32[layers]: 0 for rounded weights, 1 for exact ones.
    """

    plan: Plan
    graph: Graph
    biases: Mapping[Node, tuple[int, int]]  # begin and end in BIASES; in the order of SWITCHES

    def feeds(self, quants: Sequence[Quant], moved: Mapping[Node, np.ndarray]) -> dict[str, np.ndarray]:
        """What the two extra inputs must be for these choices."""
        biases = np.zeros(max(1, max((end for _, end in self.biases.values()), default=0)), np.float32)
        for node, (begin, end) in self.biases.items():
            biases[begin:end] = bias_of(node) + moved.get(node, 0.0)
        return {RANGES: range_rows(quants), BIASES: biases}


def range_rows(quants: Sequence[Quant]) -> np.ndarray:
    rows = np.zeros((max(1, len(quants)), ROW), np.float32)
    for row, quant in zip(rows, quants, strict=False):
        scale, zero = quant.scales[0], quant.zero_points[0]
        row[:] = (LEAST - zero) * scale, (GREATEST - zero) * scale, 1 / scale, scale
    return rows


def before_softmax(value: Value) -> Value:
    """Where to measure: ahead of a softmax, and of moves after it."""
    at = value
    while at.node.op in SOFT and at.type.dtype == "float32":
        if at.node.op == "softmax":
            value = at.node.inputs[0]
        at = at.node.inputs[0]
    return value


def measured(graph: Graph) -> tuple[tuple[str, Value], ...]:
    """The float outputs to compare, by the names `output0` ..."""
    values = [before_softmax(value) for _, value in graph.outputs]
    return tuple((f"output{i}", value) for i, value in enumerate(values) if value.type.dtype == "float32")


def tensor_name(value: Value) -> str:
    """The output for a value of the network, in graphs that show what is inside."""
    return f"tensor/{value!r}"


def simulation(plan: Plan, switched: bool = False) -> Simulation:
    """switched: weights can be exact, and only the network's outputs are outputs."""
    build = _Build(plan, switched)
    for node in plan.graph.nodes():
        build.node(node)
    outputs = [(name, build.plain[value]) for name, value in measured(plan.graph)]
    if not switched:
        outputs += [(tensor_name(value), build.rounded(value)) for value in plan.observed]
    inputs = (*plan.graph.inputs, build.ranges, build.biases, *([build.switches] if switched else []))
    graph = Graph(plan.graph.name, inputs, tuple(outputs))
    return Simulation(plan, with_unique_names(graph), build.places)


@dataclass
class _Build:
    """plain: what stands for a value of the float graph; where an int8 operator makes it, it is rounded already."""

    plan: Plan
    switched: bool = False
    plain: dict[Value, Value] = field(default_factory=dict)
    quantized: dict[Value, Value] = field(default_factory=dict)
    rows: dict[int, list[Value]] = field(default_factory=dict)
    places: dict[Node, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = [node for node in self.plan.graph.nodes() if node in self.plan.quantized and node.op in LAYERS]
        at = 0
        for node in layers:
            self.places[node] = at, at + node.types[0].shape[-1]
            at += node.types[0].shape[-1]
        self.ranges = graph_input(RANGES, TensorType((max(1, len(self.plan.tensors)), ROW)))
        self.biases = graph_input(BIASES, TensorType((max(1, at),)))
        self.switches = graph_input(SWITCHES, TensorType((max(1, len(layers)),)))

    def node(self, node: Node) -> None:
        if node not in self.plan.quantized:
            self._copy(node, tuple(self.plain[value] for value in node.inputs))
            return
        replaced = {value: self.rounded(value) for value in activations(node)}
        inputs = tuple(replaced.get(value, value) for value in node.inputs)
        if node.op in LAYERS:
            self.plain[node.out()] = self._layer(node, inputs)
        else:
            self._copy(node, inputs)
            if not self._keeps(node):
                self.plain[node.out()] = self._round(self.plain[node.out()], (), (), self.plan.of[node.out()], node.name)
        self.quantized[node.out()] = self.plain[node.out()]

    def _keeps(self, node: Node) -> bool:
        """Does the node pass on elements of tensors with its own result's scale?"""
        return node.op not in BLENDS and all(self.plan.of[value] == self.plan.of[node.out()] for value in activations(node))

    def _copy(self, node: Node, inputs: tuple[Value, ...]) -> None:
        fresh = node if inputs == node.inputs else Node(node.op, inputs, node.attrs, node.types, node.name, node.origin)
        self.plain.update((node.out(i), fresh.out(i)) for i in range(len(node.types)))

    def rounded(self, value: Value) -> Value:
        if value not in self.quantized:
            self.quantized[value] = self._round(self.plain[value], (), (), self.plan.of[value], value.node.name)
        return self.quantized[value]

    def _row(self, tensor: int) -> list[Value]:
        """The tensor's four numbers, each [1]."""
        if tensor not in self.rows:
            row = []
            for i in range(ROW):
                name = f"quantization/{tensor}/{i}"
                cut = make("slice", (self.ranges.out(),), {"starts": (tensor, i), "stops": (tensor + 1, i + 1)}, f"{name}/cell")
                row.append(make("reshape", (cut.out(),), {"shape": (1,)}, name).out())
            self.rows[tensor] = row
        return self.rows[tensor]

    def _round(self, x: Value, extra: tuple[Value, ...], steps: tuple[Instruction, ...], tensor: int, name: str) -> Value:
        """x through the steps (which read x, then extra), then clipped and rounded as the tensor is."""
        inputs = (x, *extra, *self._row(tensor), constant(np.full(1, 0.5, np.float32), f"{name}/half"))
        low, high, inverse, scale, half = range(1 + len(extra), 6 + len(extra))
        at = len(inputs) + len(steps)
        value = at - 1 if steps else 0
        rounding: tuple[Instruction, ...] = (
            ("maximum", (value, low), ()),
            ("minimum", (at, high), ()),
            ("mul", (at + 1, inverse), ()),
            ("add", (at + 2, half), ()),
            ("floor", (at + 3,), ()),
            ("mul", (at + 4, scale), ()),
        )
        return make("pointwise", inputs, {"expr": (*steps, *rounding)}, f"{name}/rounded").out()

    def _layer(self, node: Node, inputs: tuple[Value, ...]) -> Value:
        weights = node.inputs[1].node.attrs["value"]
        scales = weight_scales(weights)
        real = rounded_weights(weights, scales).astype(np.float32) * scales.reshape(-1, *(1,) * (weights.ndim - 1))
        attrs = {**node.attrs, "epilogue": ()}
        kernel = constant(real, f"{node.inputs[1].node.name}/rounded")
        product = make(node.op, (inputs[0], kernel), attrs, f"{node.name}/products").out()
        begin, end = self.places[node]
        bias = make("slice", (self.biases.out(),), {"starts": (begin,), "stops": (end,)}, f"{node.name}/bias_input").out()
        epilogue = node.attrs["epilogue"]
        residual = inputs[2 + (("bias",) in epilogue) :]
        lost = self._lost(node, inputs[0], weights - real, attrs) if self.switched else ()
        extra = (bias, *residual, *lost)
        count = 1 + len(extra) + ROW + 1
        steps: list[Instruction] = [("add", (0, 1), ())]
        if lost:
            steps += [("mul", (len(extra) - 1, len(extra)), ()), ("add", (count, count + 1), ())]
        if residual:
            steps.append(("add", (count + len(steps) - 1, 2), ()))
        if epilogue and epilogue[-1][0] == "activation":
            steps.append((epilogue[-1][1], (count + len(steps) - 1,), epilogue[-1][2]))
        return self._round(product, extra, tuple(steps), self.plan.of[node.out()], node.name)

    def _lost(self, node: Node, x: Value, rest: np.ndarray, attrs: Mapping[str, Any]) -> tuple[Value, Value]:
        """What the rounding of a layer's weights takes from its products, and the switch that gives it back."""
        kernel = constant(rest.astype(np.float32), f"{node.inputs[1].node.name}/lost")
        at = list(self.places).index(node)
        cut = {"starts": (at,), "stops": (at + 1,)}
        product = make(node.op, (x, kernel), attrs, f"{node.name}/lost").out()
        return product, make("slice", (self.switches.out(),), cut, f"{node.name}/switch").out()
