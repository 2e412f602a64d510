"""Nodes that compute the same are computed once, constants with the same bytes are kept once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from cortado.compiler.graph import Graph, Node
from cortado.compiler.rewrite import Context, Replacement, Rule, Steps, apply_rules

COMMUTATIVE = frozenset(
    {"add", "mul", "eq", "ne", "logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor"}
)
SAMPLE = 64  # bytes


def eliminate_common_subexpressions(graph: Graph, steps: Steps) -> Graph:
    """Same operator, inputs and attributes -> the first of them. Constants: same type and bytes."""
    seen: dict[Hashable, list[Node]] = {}

    def reuse(node: Node, context: Context) -> Replacement | None:
        if node.op == "input":
            return None
        alike = seen.setdefault(_key(node), [])
        for other in alike:
            if other is node:
                return None
            if context.is_live(other) and (node.op != "constant" or _same_bytes(node, other)):
                return tuple(other.out(i) for i in range(len(node.types)))
        alike.append(node)
        return None

    return apply_rules(graph, "eliminate_common_subexpressions", (Rule("reuse", (), reuse),), _weight, steps)


def _weight(node: Node) -> tuple[int, ...]:
    return (1,)


def _key(node: Node) -> Hashable:
    if node.op == "constant":
        data = _bytes(node)
        return ("constant", node.types, data[:SAMPLE].tobytes(), data[-SAMPLE:].tobytes())
    inputs: Hashable = frozenset(node.inputs) if node.op in COMMUTATIVE else node.inputs
    return (node.op, inputs, tuple((name, _hashable(node.attrs[name])) for name in sorted(node.attrs)))


def _bytes(node: Node) -> np.ndarray:
    return node.attrs["value"].reshape(-1).view(np.uint8)


def _same_bytes(a: Node, b: Node) -> bool:
    x, y = a.attrs["value"], b.attrs["value"]
    return x is y or bool(np.array_equal(_bytes(a), _bytes(b)))


def _hashable(value: Any) -> Hashable:
    """Attributes compared by type as well: 1, 1.0 and True are different; so are 0.0 and -0.0."""
    if isinstance(value, tuple):
        return tuple(map(_hashable, value))
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    return (type(value), repr(value))
