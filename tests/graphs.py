"""Helpers of the pass tests: small graphs written down quickly, and the comparison of a graph with what passes made of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from cortado.compiler.graph import Graph, Node, Value, constant, graph_input
from cortado.compiler.ops import make
from cortado.compiler.reference import run_graph
from cortado.compiler.types import TensorType
from cortado.compiler.verify import verify

STEPS: dict[str, Any] = {"strides": (1, 1), "dilations": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0)}
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class Net:
    """Collects inputs and names nodes n0, n1 ... unless told; weights are random but fixed."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.inputs: list[Node] = []
        self.count = 0

    def input(self, *shape: int, dtype: str = "float32", name: str | None = None) -> Value:
        node = graph_input(name or f"x{len(self.inputs)}", TensorType(shape, dtype))
        self.inputs.append(node)
        return node.out()

    def name(self) -> str:
        self.count += 1
        return f"n{self.count - 1}"

    def weights(self, *shape: int, name: str | None = None) -> Value:
        return constant(self.rng.uniform(-1, 1, shape).astype(np.float32), name or self.name())

    def number(self, value: Any, dtype: str = "float32") -> Value:
        return constant(np.array(value, dtype), self.name())

    def op(self, op: str, *inputs: Value, name: str | None = None, **attrs: Any) -> Value:
        name = name or self.name()
        return make(op, inputs, attrs, name, (f"op:{name}",)).out()

    def conv(
        self,
        x: Value,
        outputs: int,
        kernel: int = 1,
        pad: int = 0,
        group: int = 1,
        bias: bool = True,
        name: str | None = None,
        **more: Any,
    ) -> Value:
        """Channels last."""
        inputs = [x, self.weights(outputs, kernel, kernel, x.shape[-1] // group)] + [self.weights(outputs)] * bias
        epilogue = (("bias",),) * bias
        attrs = {**STEPS, "pads_begin": (pad, pad), "pads_end": (pad, pad), "group": group, "epilogue": epilogue, **more}
        return self.op("conv", *inputs, name=name, **attrs)

    def conv_transpose(
        self, x: Value, outputs: int, kernel: int, stride: int, pad: int = 0, group: int = 1, name: str | None = None, **more: Any
    ) -> Value:
        """Channels last, two spatial axes, with a bias."""
        inputs = x, self.weights(outputs, kernel, kernel, x.shape[-1] // group), self.weights(outputs)
        attrs: dict[str, Any] = {
            "strides": (stride,) * 2, "pads_begin": (pad,) * 2, "pads_end": (pad,) * 2, "output_padding": (0, 0), "group": group,
            "epilogue": (("bias",),), **more,
        }  # fmt: skip
        return self.op("conv_transpose", *inputs, name=name, **attrs)

    def conv_first(self, x: Value, outputs: int, kernel: int = 1, **more: Any) -> Value:
        """Channels first, as an importer writes it."""
        return self.to_first(self.conv(self.to_last(x), outputs, kernel, **more))

    def to_last(self, x: Value) -> Value:
        return self.op("transpose", x, perm=TO_LAST)

    def to_first(self, x: Value) -> Value:
        return self.op("transpose", x, perm=TO_FIRST)

    def fc(self, x: Value, outputs: int, bias: bool = True, name: str | None = None) -> Value:
        inputs = [x, self.weights(outputs, x.shape[-1])] + [self.weights(outputs)] * bias
        return self.op("fc", *inputs, name=name, epilogue=(("bias",),) * bias)

    def graph(self, *outputs: Value) -> Graph:
        graph = Graph("net", tuple(self.inputs), tuple((f"out{i}", value) for i, value in enumerate(outputs)))
        verify(graph)
        return graph


def feeds_of(graph: Graph, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for node in graph.inputs:
        kind = node.types[0]
        if kind.dtype == "bool":
            feeds[node.name] = rng.random(kind.shape) < 0.5
        elif kind.dtype.startswith("float"):
            feeds[node.name] = rng.uniform(-2, 2, kind.shape).astype(kind.numpy)
        else:
            feeds[node.name] = rng.integers(-5 if kind.dtype.startswith("i") else 0, 6, kind.shape).astype(kind.numpy)
    return feeds


def assert_same_meaning(before: Graph, after: Graph, rtol: float = 1e-5) -> None:
    """Same interface, and same results up to rtol of the largest magnitude (exact for whole numbers)."""
    verify(after)
    assert after.inputs == before.inputs
    assert [(name, value.type) for name, value in after.outputs] == [(name, value.type) for name, value in before.outputs]
    feeds = feeds_of(before)
    wanted, got = run_graph(before, feeds), run_graph(after, feeds)
    for name, array in wanted.items():
        if array.dtype.kind == "f":
            scale = np.abs(array[np.isfinite(array)]).max(initial=0)
            np.testing.assert_allclose(got[name], array, rtol=0, atol=rtol * scale + 1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(got[name], array, err_msg=name)


def ops(graph: Graph) -> dict[str, int]:
    """How many nodes of each operator, without inputs and constants."""
    return dict(Counter(node.op for node in graph.nodes() if node.op not in ("input", "constant")))


def node_named(graph: Graph, name: str) -> Node:
    return next(node for node in graph.nodes() if node.name == name)
