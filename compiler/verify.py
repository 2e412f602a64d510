"""Checks a graph's own consistency. Run after every pass: what it finds is a mistake of the compiler, never of the user."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from cortado.compiler.graph import Graph, Node, Value
from cortado.compiler.ops import infer_types
from cortado.compiler.types import Quant, TensorType
from cortado.errors import ShapeError


class GraphError(AssertionError):
    """A graph is inconsistent: a mistake of the compiler. The message names the node."""


def verify(graph: Graph) -> None:
    """GraphError unless the graph is consistent:

    every node is one of the operator table, has exactly its record's attributes, exactly the types that inference gives, and inputs
    that exist; names are unique; there is no cycle; every input node reached is among the graph's inputs.
    """
    nodes = _ordered(graph)
    _unique((node.name for node in (*(n for n in nodes if n.op != "input"), *graph.inputs)), "nodes")
    _unique((name for name, _ in graph.outputs), "outputs")
    inputs = set(graph.inputs)
    for node in graph.inputs:
        _expect(node.op == "input", node, f"is among the graph's inputs, but is {node.op!r}")
    for node in nodes:
        if node.op == "input":
            _expect(node in inputs, node, "is read, but is not among the graph's inputs")
            _expect(not node.inputs and len(node.types) == 1, node, "is an input with inputs or without one type")
        elif node.op == "constant":
            _check_constant(node)
        else:
            _check_operator(node)
    for name, value in graph.outputs:
        _expect(value.index in range(len(value.node.types)), value.node, f"gives output {name!r} by its result {value.index}")


def _expect(condition: object, node: Node, problem: str) -> None:
    if not condition:
        raise GraphError(f"node {node.name} ({node.op}) {problem}")


def _unique(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name:
            raise GraphError(f"one of the {what} has no name: {name!r}")
        if name in seen:
            raise GraphError(f"two {what} are called {name!r}")
        seen.add(name)


def _ordered(graph: Graph) -> list[Node]:
    """Nodes that the outputs reach, producers first; GraphError on a cycle (which Graph.nodes would follow for ever)."""
    order: list[Node] = []
    open_nodes: set[Node] = set()
    done: set[Node] = set()
    for _, output in graph.outputs:
        stack: list[tuple[Node, int]] = [(output.node, 0)]
        while stack:
            node, at = stack.pop()
            if node in done:
                continue
            if at == 0:
                _expect(node not in open_nodes, node, "depends on its own result: the graph has a cycle")
                open_nodes.add(node)
            if at < len(node.inputs):
                value = node.inputs[at]
                _expect(isinstance(value, Value), node, f"has as input {at} no value but {value!r}")
                _expect(
                    value.index in range(len(value.node.types)),
                    node,
                    f"reads result {value.index} of {value.node.name}, which has {len(value.node.types)}",
                )
                stack.append((node, at + 1))
                stack.append((value.node, 0))
            else:
                done.add(node)
                order.append(node)
    return order


def _check_constant(node: Node) -> None:
    _expect(set(node.attrs) == {"value"} and not node.inputs and len(node.types) == 1, node, "is not a well-formed constant")
    array, kind = node.attrs["value"], node.types[0]
    _expect(isinstance(array, np.ndarray), node, f"holds a {type(array).__name__}, not an array")
    _expect(
        array.shape == kind.shape and array.dtype == kind.numpy, node, f"holds {array.dtype}{list(array.shape)}, declared {kind}"
    )
    _expect(not array.flags.writeable and array.flags.c_contiguous, node, "holds an array that is writeable or not contiguous")


def _check_operator(node: Node) -> None:
    for key, value in node.attrs.items():
        _expect(_plain(value), node, f"has attribute {key}={value!r}, which is not plain data")
    try:
        types: tuple[TensorType, ...] = infer_types(node.op, node.inputs, node.attrs)
    except (AssertionError, ShapeError, KeyError, TypeError, ValueError) as error:
        raise GraphError(f"node {node.name} ({node.op}) is malformed: {error}") from error
    _expect(types == node.types, node, f"has types {_show(node.types)}, but inference gives {_show(types)}")


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    if isinstance(value, np.ndarray):
        return not value.flags.writeable
    return value is None or type(value) in (int, float, bool, str, Quant)


def _show(types: Iterable[TensorType]) -> str:
    return "(" + ", ".join(map(str, types)) + ")"
