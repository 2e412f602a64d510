"""Which nodes need not be computed, because only a branch that is not taken reads them.

Found from the graph, not written on it: whatever passes move, merge or fuse, a node that `branch` nodes alone need, and only for one
outcome, is computed for that outcome alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cortado.compiler.graph import Node, Value


class Taken(NamedTuple):
    """The branch that is taken where the condition is `wanted`."""

    condition: Value
    wanted: bool


Guards = frozenset[Taken]
_RESHAPING = frozenset({"reshape", "transpose"})  # of one element: the same truth value


def guards_of(order: Sequence[Node], outputs: frozenset[Value]) -> dict[Node, Guards]:
    """Node -> what must hold wherever it is needed. order: producers first.

    A condition that is itself computed in a branch only is read where that branch's guards fail, too: what it then says does not
    matter, since those guards are among its readers'.
    """
    uses: dict[Node, Guards] = {value.node: frozenset() for value in outputs}
    for node in reversed(order):
        own = uses.setdefault(node, frozenset())
        for position, value in enumerate(node.inputs):
            here = own | {taken(node, position)} if node.op == "branch" and position else own
            uses[value.node] = uses[value.node] & here if value.node in uses else here
    return uses


def taken(branch: Node, position: int) -> Taken:
    """The branch that gives input `position` of a `branch` node."""
    condition = branch.inputs[0]
    while condition.node.op in _RESHAPING:
        condition = condition.node.inputs[0]
    return Taken(condition, branch.attrs["when"][position - 1])


def in_order(guards: Guards, order: dict[Node, int]) -> list[Taken]:
    """By the condition's place in the program, so that the result does not depend on hashes."""
    return sorted(guards, key=lambda t: (order[t.condition.node], t.condition.index, t.wanted))
