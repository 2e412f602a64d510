"""The driver of all graph rewrites: named rules, a measure that each one shrinks, one count of steps over a whole optimization."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from cortado.compiler.graph import Graph, Node, Value
from cortado.compiler.ops import make

Replacement: TypeAlias = "Node | Value | tuple[Value, ...]"
Measure: TypeAlias = Callable[[Node], tuple[int, ...]]


class RewriteError(AssertionError):
    """A rule broke its contract: a bug of the compiler, never of the user."""


@dataclass(frozen=True)
class Rewrite:
    """One entry of a trace. number: 1 for the first rewrite of an optimization. node: the name of the node that was replaced."""

    number: int
    pass_name: str
    rule: str
    node: str

    def __str__(self) -> str:
        return f"{self.number} {self.pass_name}.{self.rule} {self.node}"


@dataclass
class Steps:
    """Counts rewrites over a whole optimization and says when to stop. trace: where to record them, or None."""

    limit: int | None = None
    trace: list[Rewrite] | None = None
    count: int = 0

    @property
    def exhausted(self) -> bool:
        return self.limit is not None and self.count >= self.limit

    def take(self, pass_name: str, rule: str, node: Node) -> None:
        """Record one rewrite; only while not exhausted."""
        assert not self.exhausted
        self.count += 1
        if self.trace is not None:
            self.trace.append(Rewrite(self.count, pass_name, rule, node.name))


@dataclass(frozen=True)
class Rule:
    """apply(node, context) -> what computes the same values, or None. Called for nodes of `ops` only (empty: every operation).

    The node's inputs and everything before them are up to date. Readers may still be seen with stale inputs: look at their
    operator, attributes and other inputs' types, never follow them.
    """

    name: str
    ops: tuple[str, ...]
    apply: Callable[[Node, Context], Replacement | None]


def rule(*ops: str) -> Callable[[Callable[[Node, Context], Replacement | None]], Rule]:
    """Make a Rule of a function; its name is the function's."""
    return lambda function: Rule(function.__name__, ops, function)


def unite(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The origins of several nodes, in order, each once."""
    return tuple(dict.fromkeys(name for node in nodes for name in node.origin))


def rewritten(op: str, inputs: Sequence[Value], attrs: Mapping[str, Any], node: Node, absorbed: Sequence[Node] = ()) -> Node:
    """A node that computes `node`'s value: it takes its name, and stands for it and for what it absorbs (producers first)."""
    return make(op, inputs, dict(attrs), node.name, unite((*absorbed, node)))


@dataclass
class Context:
    """The graph while rules change it: who reads what at this moment, counting neither what is gone nor what is yet to come."""

    readers: dict[Value, dict[tuple[Node, int], None]] = field(default_factory=dict)
    positions: dict[Node, int] = field(default_factory=dict)  # of every live node
    _forward: dict[Value, Value] = field(default_factory=dict)
    _shown: dict[Value, int] = field(default_factory=dict)

    @staticmethod
    def of(graph: Graph, order: Sequence[Node]) -> Context:
        context = Context()
        for position, node in enumerate(order):
            context._add(node, position)
        for _, value in graph.outputs:
            context._shown[value] = context._shown.get(value, 0) + 1
        return context

    def is_output(self, value: Value) -> bool:
        """Is it a graph output, which must not be fused away?"""
        return value in self._shown

    def read_only_by(self, value: Value, node: Node) -> bool:
        """Does nothing else need the value, once `node` no longer does?"""
        return value not in self._shown and all(reader is node for reader, _ in self.readers.get(value, ()))

    def readers_of(self, value: Value) -> Iterator[tuple[Node, int]]:
        """(node, input position) of all readers; graph outputs are none."""
        return iter(self.readers.get(value, ()))

    def position(self, node: Node) -> int:
        """Place of a live node in an order in which producers come first."""
        return self.positions[node]

    def is_live(self, node: Node) -> bool:
        return node in self.positions

    def refresh(self, node: Node) -> Node:
        """The node with up-to-date inputs, in the place of the old one."""
        inputs = tuple(self._resolve(value) for value in node.inputs)
        if inputs == node.inputs:
            return node
        fresh = Node(node.op, inputs, node.attrs, node.types, node.name, node.origin)
        self.replace(node, tuple(fresh.out(i) for i in range(len(node.types))))
        return fresh

    def replace(self, node: Node, values: tuple[Value, ...]) -> tuple[list[Node], list[Node]]:
        """Let `values` take the place of the node's outputs. Returns the nodes that came and those that went with it."""
        old = tuple(node.out(i) for i in range(len(node.types)))
        moved = [tuple(self.readers.pop(value, {})) for value in old]
        added = self._add_new(values, self.positions[node])
        for before, after, readers in zip(old, values, moved, strict=True):
            self.readers.setdefault(after, {}).update(dict.fromkeys(readers))
            if after != before:
                self._forward[before] = after
            shown = self._shown.pop(before, 0)
            if shown:
                self._shown[after] = self._shown.get(after, 0) + shown
        return added, self._remove_unread(node)

    def graph(self, like: Graph) -> Graph:
        """What there is now."""
        outputs = tuple((name, self._resolve(value)) for name, value in like.outputs)
        return replace(like, outputs=outputs)

    def _resolve(self, value: Value) -> Value:
        while value in self._forward:
            value = self._forward[value]
        return value

    def _add(self, node: Node, position: int) -> None:
        self.positions[node] = position
        for at, value in enumerate(node.inputs):
            self.readers.setdefault(value, {})[(node, at)] = None

    def _add_new(self, values: Sequence[Value], position: int) -> list[Node]:
        """Take in the nodes behind `values` that are not live yet, producers first."""
        added: list[Node] = []
        stack = [(value.node, False) for value in reversed(values)]
        while stack:
            node, ready = stack.pop()
            if node in self.positions:
                continue
            if ready:
                self._add(node, position)
                added.append(node)
            else:
                stack.append((node, True))
                stack.extend((value.node, False) for value in reversed(node.inputs))
        return added

    def _remove_unread(self, node: Node) -> list[Node]:
        """Remove the node unless something needs it, then likewise what only it read."""
        removed: list[Node] = []
        stack = [node]
        while stack:
            node = stack.pop()
            outs = [node.out(i) for i in range(len(node.types))]
            if node not in self.positions or any(self.readers.get(v) or v in self._shown for v in outs):
                continue
            del self.positions[node]
            removed.append(node)
            for at, stale in enumerate(node.inputs):
                value = self._resolve(stale)
                del self.readers[value][(node, at)]
                stack.append(value.node)
        return removed


def apply_rules(graph: Graph, pass_name: str, rules: Sequence[Rule], measure: Measure, steps: Steps) -> Graph:
    """Apply the rules, producers first, again and again until none applies.

    measure: what a node costs; summed over the nodes, each rewrite must make it smaller (compared from the first entry on), else
    RewriteError names the rule.
    """
    driver = _Driver(pass_name, rules, measure, steps)
    order = first = graph.nodes()
    while not steps.exhausted:
        driver.fired.clear()
        swept = driver.sweep(graph, order)
        if not driver.fired:
            break
        before, order = _total(order, measure), swept.nodes()
        after = _total(order, measure)
        if not after < before and not steps.exhausted:
            raise RewriteError(f"pass {pass_name} went round in a circle ({before} -> {after}): {', '.join(driver.fired[-20:])}")
        graph = swept
    return graph if order is first else with_unique_names(graph)


@dataclass
class _Driver:
    pass_name: str
    rules: Sequence[Rule]
    measure: Measure
    steps: Steps
    fired: list[str] = field(default_factory=list)  # names of the rules that applied in this sweep
    _by_op: dict[str, list[Rule]] = field(default_factory=dict)

    def sweep(self, graph: Graph, order: Sequence[Node]) -> Graph:
        """Visit every node once; where a rule makes a new node, that one at once as well."""
        context = Context.of(graph, order)
        for old in order:
            if not context.is_live(old):
                continue
            node: Node | None = context.refresh(old)
            while node is not None and not self.steps.exhausted:
                node = self._apply_first(node, context)
        return context.graph(graph) if self.fired else graph

    def _rules_for(self, op: str) -> list[Rule]:
        if op not in self._by_op:
            self._by_op[op] = [r for r in self.rules if not r.ops or op in r.ops]
        return self._by_op[op]

    def _apply_first(self, node: Node, context: Context) -> Node | None:
        """Rewrite the node by the first rule that applies; the node to try next, if any."""
        for candidate in self._rules_for(node.op):
            got = candidate.apply(node, context)
            if got is None:
                continue
            values = tuple(got.out(i) for i in range(len(got.types))) if isinstance(got, Node) else got
            values = (values,) if isinstance(values, Value) else values
            where = f"rule {self.pass_name}.{candidate.name} at {node.op} {node.name}"
            if tuple(v.type for v in values) != node.types:
                raise RewriteError(f"{where}: {', '.join(map(str, node.types))} became {', '.join(str(v.type) for v in values)}")
            self.steps.take(self.pass_name, candidate.name, node)
            self.fired.append(candidate.name)
            added, removed = context.replace(node, values)
            gain, cost = _total(removed, self.measure), _total(added, self.measure)
            if not cost < gain:
                raise RewriteError(f"{where}: the measure must shrink, but {gain} became {cost}")
            return got if isinstance(got, Node) and got in added else None
        return None


def _total(nodes: Iterable[Node], measure: Measure) -> tuple[int, ...]:
    return tuple(sum(column) for column in zip(*map(measure, nodes), strict=True))


def with_unique_names(graph: Graph) -> Graph:
    """Where several nodes have one name, all but one get `name_2`, `name_3`. Graph inputs, then graph outputs keep theirs."""
    order = graph.nodes()
    shown = [value.node for _, value in graph.outputs]
    owner: dict[str, Node] = {}
    for node in (*graph.inputs, *shown, *order):
        owner.setdefault(node.name, node)
    if all(owner[node.name] is node for node in order):
        return graph

    used: dict[str, int] = {}  # the last number tried behind a name

    def renamed(node: Node, inputs: tuple[Value, ...]) -> Node:
        name = node.name
        while owner.setdefault(name, node) is not node:
            used[node.name] = used.get(node.name, 1) + 1
            name = f"{node.name}_{used[node.name]}"
        if name == node.name and inputs == node.inputs:
            return node
        return Node(node.op, inputs, node.attrs, node.types, name, node.origin)

    return graph.rebuild(renamed)
