"""Which inputs of a concat keep a scale of their own: those that others read too, and whose range is a small part of what they are joined to.

All else is written once, in the scale of the joined tensor. What is apart is copied, through a table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cortado.compiler.graph import Node, Value
from cortado.compiler.quantize.plan import MOVES, Join, Plan, activations, split
from cortado.compiler.quantize.record import TensorStatistics

RATIO = 6.0  # of widths: from here on, scales of their own at least halve the error of a U-Net


def candidates(plan: Plan) -> frozenset[Join]:
    """The inputs of concats that are read elsewhere too, or whose sources are; another concat counts."""
    parts = split(plan, _joins(plan))
    used = _used(parts)
    return frozenset((node.name, i) for node in _concats(plan) for i, value in enumerate(node.inputs) if parts.of[value] in used)


def kept_apart(plan: Plan, statistics: Mapping[str, TensorStatistics]) -> frozenset[Join]:
    """The inputs of concats to split the plan by: as few as leave every tensor's values at least 1 / RATIO of its range.

    Tensors without statistics stay with what they are joined to. Later concats join first, so that a chain in which each concat adds
    to the one before is cut where the range has grown by RATIO, not everywhere.
    """
    parts = split(plan, _joins(plan))
    used = _used(parts)
    groups = [_Group.of(parts, i, statistics) if i in used else _Group() for i in range(len(parts.tensors))]
    parent = list(range(len(groups)))

    def root(tensor: int) -> int:
        while parent[tensor] != tensor:
            tensor = parent[tensor]
        return tensor

    found = set()
    for node in reversed(_concats(plan)):
        for i, value in enumerate(node.inputs):
            a, b = root(parts.of[value]), root(parts.of[node.out()])
            both = groups[a].joined(groups[b])
            if a == b:
                continue
            if both.width < RATIO * both.least or not _known(value, statistics):
                parent[a], groups[b] = b, both
            else:
                found.add((node.name, i))
    return frozenset(found)


def converted(plan: Plan) -> list[str]:
    """Names of the inputs of the plan's concats that have another scale than the result, in order."""
    names = (repr(value) for node in _concats(plan) for value in node.inputs if plan.of[value] != plan.of[node.out()])
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class _Group:
    """Tensors with one scale: their range, and the least width of one whose readers' precision counts."""

    low: float = 0.0
    high: float = 0.0
    least: float = np.inf

    @property
    def width(self) -> float:
        return self.high - self.low

    def joined(self, other: _Group) -> _Group:
        return _Group(min(self.low, other.low), max(self.high, other.high), min(self.least, other.least))

    @staticmethod
    def of(parts: Plan, number: int, statistics: Mapping[str, TensorStatistics]) -> _Group:
        tensor = parts.tensors[number]
        if tensor.quant is not None or not all(_known(value, statistics) for value in tensor.shown):
            return _Group()
        seen = [statistics[repr(value)] for value in tensor.shown]
        low, high = min(0.0, *(s.low for s in seen)), max(0.0, *(s.high for s in seen))
        return _Group(low, high, high - low or np.inf)


def _known(value: Value, statistics: Mapping[str, TensorStatistics]) -> bool:
    return repr(value) in statistics and statistics[repr(value)].shape == value.shape


def _concats(plan: Plan) -> list[Node]:
    return [node for node in plan.graph.nodes() if node in plan.quantized and node.op == "concat"]


def _joins(plan: Plan) -> frozenset[Join]:
    return frozenset((node.name, i) for node in _concats(plan) for i in range(len(node.inputs)))


def _used(parts: Plan) -> set[int]:
    """The tensors that something else than one concat reads, in a plan with all inputs of concats apart."""
    uses, outputs = parts.graph.uses(), parts.graph.output_values()
    joined = Counter(parts.of[value] for node in _concats(parts) for value in node.inputs)

    def stays(reader: Node, value: Value) -> bool:
        return reader in parts.quantized and reader.op in MOVES and value in activations(reader)

    return {
        tensor
        for value, tensor in parts.of.items()
        if joined[tensor] > 1 or value in outputs or not all(stays(reader, value) for reader, _ in uses.get(value, ()))
    }
