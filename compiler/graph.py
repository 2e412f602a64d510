"""The one graph: immutable nodes reached from the outputs. Order and uses are computed; unreachable means gone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from cortado.compiler.types import Quant, TensorType, frozen_array


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. Compared by identity.

    op: a name in the operator table, or "input" / "constant".
    inputs: values read, in the operator's order.
    attrs: plain data (ints, floats, strings, tuples, quantizations, read-only arrays).
    types: the output types, as the operator's inference gave them.
    name: unique in its graph; for a node that came straight from a file, the file's blob name.
    origin: names of the source file's nodes that this one stands for.
    """

    op: str
    inputs: tuple[Value, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    types: tuple[TensorType, ...] = ()
    name: str = ""
    origin: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    def out(self, index: int = 0) -> Value:
        return Value(self, index)

    def __repr__(self) -> str:
        return f"<{self.op} {self.name}>"


@dataclass(frozen=True)
class Value:
    """Output `index` of `node`. Equal when node (by identity) and index are."""

    node: Node
    index: int = 0

    @property
    def type(self) -> TensorType:
        return self.node.types[self.index]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def constant(self) -> np.ndarray | None:
        """The array, where this value is a constant."""
        return self.node.attrs["value"] if self.node.op == "constant" else None

    def __repr__(self) -> str:
        return self.node.name if self.index == 0 else f"{self.node.name}:{self.index}"


@dataclass(frozen=True, eq=False)
class Graph:
    """inputs: "input" nodes in the file's order (also those nothing reads). outputs: (source name, value) in the file's order.

    layouts: axis names ("NCHW") by input or output name, for the user's information.
    counts: output name -> name of the output (int32[1]) that says how many of its rows, along axis 0, are real; they come last.
    """

    name: str
    inputs: tuple[Node, ...]
    outputs: tuple[tuple[str, Value], ...]
    layouts: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, str] = field(default_factory=dict)

    def nodes(self) -> tuple[Node, ...]:
        """Every node an output reaches, producers first; depth-first from the outputs, so the order is a function of the graph."""
        order: list[Node] = []
        done: set[Node] = set()
        for _, value in self.outputs:
            stack: list[tuple[Node, int]] = [(value.node, 0)]
            while stack:
                node, at = stack.pop()
                if node in done:
                    continue
                if at < len(node.inputs):
                    stack.append((node, at + 1))
                    stack.append((node.inputs[at].node, 0))
                else:
                    done.add(node)
                    order.append(node)
        return tuple(order)

    def uses(self) -> dict[Value, list[tuple[Node, int]]]:
        """Value -> its readers as (node, input position). Graph outputs are not readers; see `output_values`."""
        uses: dict[Value, list[tuple[Node, int]]] = {}
        for node in self.nodes():
            for position, value in enumerate(node.inputs):
                uses.setdefault(value, []).append((node, position))
        return uses

    def output_values(self) -> frozenset[Value]:
        return frozenset(value for _, value in self.outputs)

    def rebuild(self, replace: Callable[[Node, tuple[Value, ...]], Node | Value | tuple[Value, ...]]) -> Graph:
        """Walk the nodes in order, calling replace(node, new inputs); it returns the node's replacement:

        a Node (its outputs take the old ones' places), a Value (for a node of one output), or one Value per output.
        Returns self when nothing changed. Inputs are never replaced.
        """
        new: dict[Value, Value] = {}
        changed = False
        for node in self.nodes():
            if node.op == "input":
                got: Node | Value | tuple[Value, ...] = node
            else:
                got = replace(node, tuple(new.get(v, v) for v in node.inputs))
            if got is node:
                continue
            changed = True
            values = tuple(got.out(i) for i in range(len(got.types))) if isinstance(got, Node) else got
            values = (values,) if isinstance(values, Value) else values
            if len(values) != len(node.types):
                raise AssertionError(f"{node!r} has {len(node.types)} outputs, its replacement {len(values)}")
            for index, value in enumerate(values):
                new[node.out(index)] = value
        if not changed:
            return self
        outputs = tuple((name, new.get(value, value)) for name, value in self.outputs)
        return dataclasses.replace(self, outputs=outputs)


def constant(
    array: np.ndarray, name: str, origin: Iterable[str] = (), dtype: str | None = None, quant: Quant | None = None
) -> Value:
    """A constant node. dtype only where numpy has none (bfloat16 held as uint16)."""
    array = frozen_array(np.asarray(array))
    kind = TensorType(tuple(int(d) for d in array.shape), dtype or array.dtype.name, quant)
    return Node("constant", (), {"value": array}, (kind,), name, tuple(origin)).out()


def graph_input(name: str, kind: TensorType) -> Node:
    return Node("input", (), {}, (kind,), name, (name,))
