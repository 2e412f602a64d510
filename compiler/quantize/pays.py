"""Which of the nodes that int8 can compute are worth it: the choice with the fewest cycles of nodes and conversions together.

A cut of least weight through a network of nodes (Stone, "Multiprocessor scheduling with the aid of network flow algorithms", 1977): on one
side the nodes that become int8, on the other those that stay float; a node costs what its side costs, a value that is needed on the
other side what converting it costs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cortado.compiler.cycles import cycles
from cortado.compiler.graph import Node, Value, graph_input
from cortado.compiler.kernels.table import lowerings
from cortado.compiler.ops import make
from cortado.compiler.program import Operand, contiguous_strides
from cortado.compiler.quantize.plan import Plan, activations
from cortado.compiler.quantize.rewrite import DTYPE, integer_nodes
from cortado.compiler.target import Target
from cortado.compiler.types import Quant, TensorType

GAIN = 0.8  # float wins over int8, which is smaller, where it takes no more than this part of the time
WHOLE_GAIN = (
    0.9  # and where all that can be int8 takes no more than this part of the time: else it is int8 as on every other target
)
VIEWS = ("reshape", "slice", "concat")  # usually no work
QUANT = Quant((1.0,), (0,))
LEAST_TIME = 200_000.0  # cycles of a network in int8 (some 50 microseconds) below which there is nothing to gain
INFINITE = 1e30
NODE_ONLY = ("quant", "table", "lo", "hi")  # attributes that change no time


@dataclass(frozen=True)
class Costs:
    """Cycles. floats, integers: of every node of the plan's `quantized` in either form. into, back: of converting a value to int8 and back."""

    floats: Mapping[Node, float]
    integers: Mapping[Node, float]
    into: Mapping[Value, float]
    back: Mapping[Value, float]


def estimated(plan: Plan, quants: tuple[Quant, ...], target: Target) -> Costs:
    """Costs by compiler.cycles, for one thread."""
    clock = _Clock(target)
    nodes = [node for node in plan.graph.nodes() if node in plan.quantized]
    twins = integer_nodes(plan, quants)
    floats, integers = {n: clock.of(n) for n in nodes}, {n: sum(map(clock.of, twins[n])) for n in nodes}
    into, back = {}, {}
    for value in plan.of:
        x, q = (graph_input("x", TensorType(value.shape, *kind)).out() for kind in (("float32",), (DTYPE, QUANT)))
        into[value] = clock.of(make("quantize", (x,), {"quant": QUANT, "dtype": DTYPE}, "quantize"))
        back[value] = clock.of(make("dequantize", (q,), {}, "dequantize"))
    return Costs(floats, integers, into, back)


class _Clock:
    """Cycles of nodes; those that look the same are lowered once."""

    def __init__(self, target: Target) -> None:
        self.target, self.lowerings = target, lowerings("speed", None)
        self.known: dict[Hashable, float] = {}

    def of(self, node: Node) -> float:
        if node.op in VIEWS or not node.types[0].size:
            return 0.0
        types = tuple(replace(v.type, quant=None) for v in node.inputs)
        attrs = tuple(sorted((k, repr(v)) for k, v in node.attrs.items() if k not in NODE_ONLY))
        symmetric = tuple(v.type.quant is None or not any(v.type.quant.zero_points) for v in node.inputs[1:])
        key = node.op, attrs, types, symmetric, tuple(v.constant is None for v in node.inputs)
        if key not in self.known:
            ins, outs = ([_whole(kind) for kind in kinds] for kinds in ([v.type for v in node.inputs], node.types))
            moved = sum(v.type.nbytes for v in node.inputs if v.constant is None) + sum(kind.nbytes for kind in node.types)
            self.known[key] = cycles(self.lowerings[node.op](node, ins, outs, self.target), self.target, moved)
        return self.known[key]


def _whole(kind: TensorType) -> Operand:
    return Operand(kind, contiguous_strides(kind.shape))


def staying_float(plan: Plan, costs: Costs) -> frozenset[Node]:
    """The nodes of the plan's `quantized` that take less time in float, conversions counted; none where the network gains too little."""
    network = _Network()
    uses, outputs = plan.graph.uses(), plan.graph.output_values()
    for node in costs.floats:
        network.add(node, "float", costs.integers[node] * GAIN)
        network.add("int8", node, costs.floats[node])
    for value in plan.of:
        producer, sides = _ends(plan, value, [reader for reader, _ in uses.get(value, ())], value in outputs)
        for side in sides:
            network.add((value, "back"), side, INFINITE)
            network.add(side, (value, "into"), INFINITE)
        network.add(producer, (value, "back"), costs.back[value])
        network.add((value, "into"), producer, costs.into[value] * GAIN)
    integer = network.source_side("int8", "float")
    floats = frozenset(node for node in costs.floats if node not in integer)
    whole = total(plan, costs, frozenset())
    return floats if whole >= LEAST_TIME and total(plan, costs, floats) <= WHOLE_GAIN * whole else frozenset()


def _ends(plan: Plan, value: Value, readers: Sequence[Node], output: bool) -> tuple[Node | str, list[Node | str]]:
    """Who makes a value and who reads it: nodes that may be int8, or "float" for all others."""
    own = [r for r in readers if r in plan.quantized and value in activations(r)]
    others = ["float"] if output or len(own) < len(readers) else []
    return value.node if value.node in plan.quantized else "float", [*own, *others]


def total(plan: Plan, costs: Costs, floats: frozenset[Node]) -> float:
    """Cycles of the plan's nodes and of the conversions around them, with these nodes in float."""
    uses, outputs = plan.graph.uses(), plan.graph.output_values()
    time = sum(costs.floats[n] if n in floats else costs.integers[n] for n in costs.floats)
    for value in plan.of:
        producer, sides = _ends(plan, value, [reader for reader, _ in uses.get(value, ())], value in outputs)
        made, *read = (end == "float" or end in floats for end in (producer, *sides))  # whether in float
        time += costs.into[value] if made and False in read else costs.back[value] if not made and True in read else 0.0
    return time


class _Network:
    """Capacities between places, and the cut of least capacity (Edmonds and Karp, 1972)."""

    def __init__(self) -> None:
        self.room: dict[Hashable, dict[Hashable, float]] = {}

    def add(self, a: Hashable, b: Hashable, capacity: float) -> None:
        if a == b:
            return
        self.room.setdefault(a, {}).setdefault(b, 0.0)
        self.room.setdefault(b, {}).setdefault(a, 0.0)
        self.room[a][b] += capacity

    def source_side(self, source: Hashable, sink: Hashable) -> set[Hashable]:
        """All from which the sink cannot be reached once the flow is greatest: the largest side of the source in a least cut."""
        while (path := self._path(source, sink)) is not None:
            least = min(self.room[a][b] for a, b in path)
            for a, b in path:
                self.room[a][b] -= least
                self.room[b][a] += least
        reaching, waiting = {sink}, [sink]
        while waiting:
            b = waiting.pop()
            for a in self.room.get(b, ()):
                if a not in reaching and self.room[a][b] > 1e-6:
                    reaching.add(a)
                    waiting.append(a)
        return set(self.room) - reaching

    def _path(self, source: Hashable, sink: Hashable) -> list[tuple[Hashable, Hashable]] | None:
        """The edges of a shortest way with room."""
        before: dict[Hashable, Hashable] = {source: source}
        waiting = deque([source])
        while waiting:
            a = waiting.popleft()
            for b, room in self.room.get(a, {}).items():
                if room > 1e-6 and b not in before:
                    before[b] = a
                    if b == sink:
                        return _way(before, sink)
                    waiting.append(b)
        return None


def _way(before: Mapping[Hashable, Hashable], at: Hashable) -> list[tuple[Hashable, Hashable]]:
    edges = []
    while before[at] != at:
        edges.append((before[at], at))
        at = before[at]
    return edges[::-1]


def named(plan: Plan, names: Iterable[str]) -> frozenset[Node]:
    """The nodes of the plan's `quantized` with these names; a name may also be that of a source node. KeyError: one that there is not."""
    found: set[Node] = set()
    for name in names:
        own = {node for node in plan.quantized if node.name == name or any(_writes(o, name) for o in node.origin)}
        if not own:
            raise KeyError(name)
        found |= own
    return frozenset(found)


def _writes(origin: str, name: str) -> bool:
    return origin == name or origin.partition(":")[2] == name
