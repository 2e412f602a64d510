"""Verification finds every kind of corruption, and names the node."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cortado.compiler.graph import Graph, Node, Value, constant, graph_input
from cortado.compiler.ops import make
from cortado.compiler.types import TensorType
from cortado.compiler.verify import GraphError, verify

X = graph_input("x", TensorType((2, 3)))


def relu(value: Value, name: str = "relu") -> Node:
    return make("relu", [value], {}, name)


def graph(*nodes: Node) -> Graph:
    return Graph("g", (X,), tuple((node.name, node.out()) for node in nodes))


def test_a_sound_graph_passes() -> None:
    unread = graph_input("unread", TensorType((), "int64"))
    total = make("add", [relu(X.out()).out(), constant(np.ones(3, np.float32), "one")], {}, "sum")
    verify(Graph("g", (X, unread), (("sum", total.out()), ("again", total.out()), ("x", X.out()))))


def forged(node: Node, **changes: Any) -> Node:
    """The node with fields changed past all checks."""
    return replace(node, **changes)


def looped() -> Node:
    first = relu(X.out(), "first")
    second = relu(first.out(), "second")
    object.__setattr__(first, "inputs", (second.out(),))
    return second


def writeable() -> Node:
    return Node("constant", (), {"value": np.ones(3, np.float32)}, (TensorType((3,)),), "weights")


def wrong_constant() -> Node:
    array = np.ones(3, np.float64)
    array.flags.writeable = False
    return Node("constant", (), {"value": array}, (TensorType((3,)),), "weights")


CORRUPTIONS: dict[str, tuple[Callable[[], Node], str]] = {
    "types": (lambda: forged(relu(X.out()), types=(TensorType((3, 2)),)), r"relu .*has types \(float32\[3,2\]\), but .* \(float32\[2,3\]\)"),
    "dtype": (lambda: forged(relu(X.out()), types=(TensorType((2, 3), "int32"),)), r"node relu .*int32\[2,3\]"),
    "count of types": (lambda: forged(relu(X.out()), types=()), r"node relu"),
    "operator": (lambda: forged(relu(X.out()), op="rellu"), r"node relu .*no operator 'rellu'"),
    "additional attribute": (lambda: forged(relu(X.out()), attrs={"alpha": 1.0}), r"node relu .*\['alpha'\]"),
    "missing attribute": (lambda: forged(make("softmax", [X.out()], {"axis": 1}, "s"), attrs={}), r"node s .*\['axis'\]"),
    "impossible attribute": (lambda: forged(make("softmax", [X.out()], {"axis": 1}, "s"), attrs={"axis": 7}), r"node s .*axis 7"),
    "attribute of the wrong kind": (lambda: forged(make("softmax", [X.out()], {"axis": 1}, "s"), attrs={"axis": [1]}), r"node s .*plain"),
    "numpy number": (lambda: forged(make("softmax", [X.out()], {"axis": 1}, "s"), attrs={"axis": np.int64(1)}), r"node s .*plain"),
    "input that is no value": (lambda: forged(relu(X.out()), inputs=(X,)), r"node relu .*input 0"),
    "result that does not exist": (lambda: forged(relu(X.out()), inputs=(X.out(1),)), r"node relu .*result 1 of x"),
    "input removed": (lambda: forged(relu(X.out()), inputs=()), r"node relu .*takes 1 input"),
    "cycle": (looped, r"node second .*cycle"),
    "same name twice": (lambda: make("add", [relu(X.out(), "a").out(), relu(X.out(), "a").out()], {}, "s"), r"two nodes are called 'a'"),
    "name of an input": (lambda: relu(X.out(), "x"), r"two nodes are called 'x'"),
    "no name": (lambda: relu(X.out(), ""), r"no name"),
    "foreign input": (lambda: relu(graph_input("y", TensorType((2,))).out()), r"node y .*not among the graph's inputs"),
    "writeable constant": (writeable, r"node weights .*writeable"),
    "constant of another type": (wrong_constant, r"node weights .*float64\[3\], declared float32\[3\]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_is_found_and_the_node_named(kind: str) -> None:
    build, words = CORRUPTIONS[kind]
    with pytest.raises(GraphError, match=words):
        verify(graph(build()))


def test_corrupt_outputs_and_inputs_are_found() -> None:
    node = relu(X.out())
    with pytest.raises(GraphError, match="two outputs are called 'y'"):
        verify(Graph("g", (X,), (("y", node.out()), ("y", X.out()))))
    with pytest.raises(GraphError, match=r"node relu .*output 'y' by its result 1"):
        verify(Graph("g", (X,), (("y", node.out(1)),)))
    with pytest.raises(GraphError, match=r"node relu .*among the graph's inputs"):
        verify(Graph("g", (X, node), (("y", X.out()),)))


def test_verifying_a_large_graph_is_quick() -> None:
    value = X.out()
    for i in range(2000):
        value = relu(value, f"n{i}").out()
    start = time.process_time()
    verify(Graph("g", (X,), (("y", value),)))
    assert time.process_time() - start < 1.0
