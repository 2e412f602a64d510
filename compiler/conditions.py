"""What decides at run time whether the steps of a node run, and how far: branches that are taken, numbers of rows that are found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from cortado.compiler.branches import Guards, Taken, guards_of, in_order
from cortado.compiler.counts import Counts
from cortado.compiler.graph import Graph, Node, Value
from cortado.errors import UnsupportedError


@dataclass(frozen=True)
class Found:
    """Of `most` rows (leading axes of one element aside, along the first axis) as many are real as `count` (int32[1]) says."""

    count: Value
    most: int


@dataclass
class Conditions:
    """guards: by node. order: place of each node in the program."""

    guards: dict[Node, Guards]
    order: dict[Node, int]
    counts: Counts = field(default_factory=Counts)

    def tests(self, node: Node, also: Guards = frozenset()) -> list[Taken]:
        return in_order(self.guards[node] | also, self.order)

    def rows(self, value: Value) -> Found | None:
        """The rows of a value that are found at run time, where they lie along its first axis; None: all are made.

        Rows behind those that are counted need not be made: nothing reads them but what treats rows one by one.
        """
        try:
            found = self.counts.of(value)
        except UnsupportedError:  # after rewrites the number may no longer be followed: then everything is computed
            return None
        if found is None or math.prod(value.shape[: found.axis]) != 1 or found.count.constant is not None:
            return None
        return Found(found.count, value.shape[found.axis])

    def rows_of_node(self, node: Node) -> Found | None:
        """The rows of all outputs of a node, where their number is known before it runs."""
        different = {self.rows(node.out(index)) for index in range(len(node.types))}
        found = different.pop() if len(different) == 1 else None
        return found if found is not None and found.count.node is not node else None

    def counted(self, node: Node) -> bool:
        """Whether an input has rows that are found at run time, along any axis, or may have."""
        try:
            return any(self.counts.of(value) is not None for value in node.inputs)
        except UnsupportedError:
            return True

    def reads(self, node: Node) -> list[Value]:
        """What the steps of a node read beside its inputs."""
        found = [self.rows_of_node(node), *(self.rows(value) for value in node.inputs)]
        return [*(test.condition for test in self.guards[node]), *(rows.count for rows in found if rows is not None)]


def conditions_of(graph: Graph, order: Sequence[Node]) -> Conditions:
    """order: the graph's nodes, producers first."""
    return Conditions(guards_of(order, graph.output_values()), {node: place for place, node in enumerate(order)})
