"""Transposes sink, rise and cancel: every node that can work on permuted axes is given the layout that makes the transposes cheapest.

Importers of channels-first files put transposes around the operators that want channels last. Here each connected region of nodes that
work in any layout (see `axes`) chooses its layouts together, by the bytes that remain to be transposed, so that no move makes it worse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from cortado.compiler.graph import Graph, Node, Value, constant
from cortado.compiler.ops import make
from cortado.compiler.passes import axes
from cortado.compiler.passes.axes import Layout
from cortado.compiler.rewrite import RewriteError, Steps, with_unique_names

Labels = Mapping[Node, Layout]
# Bytes transposed; transposes away from the graph's inputs and outputs; reads of transposed values. The last one lets readers that share a
# transpose leave it one by one.
Cost = tuple[int, int, int]
NOTHING: Cost = (0, 0, 0)


class Read(NamedTuple):
    """reader's input `position` is transpose(value, perm); reader None: a graph output is."""

    reader: Node | None
    position: int
    perm: Layout


def channels_last(graph: Graph, steps: Steps) -> Graph:
    """Choose layouts and rebuild the graph in them. One step is one choice for one region."""
    wiring = _Wiring.of(graph)
    labels: dict[Node, Layout] = {}
    improved = True
    while improved:
        improved = False
        for region in wiring.regions():
            chosen = None if steps.exhausted else _choose(region, labels, wiring)
            if chosen is not None:
                steps.take("channels_last", "choose_layouts", region[0])
                labels.update(chosen)
                improved = True
    if not labels:
        return graph
    before, after = wiring.cost({}, dict.fromkeys(wiring.reads)), wiring.cost(labels, dict.fromkeys(wiring.reads))
    if not after < before:
        raise RewriteError(f"pass channels_last: the transposes must become cheaper, but {before} became {after}")
    return with_unique_names(_Rebuild(wiring, labels).run(graph))


def _source(value: Value) -> tuple[Value, Layout]:
    """(s, perm) with value = transpose(s, perm) and s no transpose."""
    perm = axes.identity(len(value.shape))
    while value.node.op == "transpose":
        perm = axes.compose(value.node.attrs["perm"], perm)
        value = value.node.inputs[0]
    return value, perm


@dataclass
class _Wiring:
    """The graph without its transposes: who reads what, permuted how."""

    order: list[Node]
    reads: dict[Value, list[Read]] = field(default_factory=dict)
    free: dict[Node, None] = field(default_factory=dict)  # nodes that can work in any layout
    flattened: set[Node] = field(
        default_factory=set
    )  # reshapes for fully connected layers, whose weights can be permuted instead

    @staticmethod
    def of(graph: Graph) -> _Wiring:
        wiring = _Wiring([node for node in graph.nodes() if node.op != "transpose"])
        for node in wiring.order:
            if node.op not in ("input", "constant") and axes.frame(node) is not None:
                wiring.free[node] = None
            for position, value in enumerate(node.inputs):
                source, perm = _source(value)
                wiring.reads.setdefault(source, []).append(Read(node, position, perm))
        for _, value in graph.outputs:
            source, perm = _source(value)
            wiring.reads.setdefault(source, []).append(Read(None, 0, perm))
        for node in wiring.order:
            if _flattens(node) and all(_takes_any_columns(read) for read in wiring.reads.get(node.out(), ())):
                wiring.flattened.add(node)
        return wiring

    def neighbours(self, node: Node) -> Iterator[Node]:
        for value in node.inputs:
            yield _source(value)[0].node
        for index in range(len(node.types)):
            for read in self.reads.get(node.out(index), ()):
                if read.reader is not None:
                    yield read.reader

    def regions(self) -> list[list[Node]]:
        """Connected groups of free nodes, each in the graph's order."""
        group: dict[Node, int] = {}
        for number, start in enumerate(self.free):
            stack = [start]
            while stack:
                node = stack.pop()
                if node in self.free and node not in group:
                    group[node] = number
                    stack.extend(self.neighbours(node))
        found: dict[int, list[Node]] = {}
        for node in self.free:
            found.setdefault(group[node], []).append(node)
        return list(found.values())

    def label(self, labels: Labels, node: Node) -> Layout:
        return labels.get(node) or axes.identity(axes.frame(node) or 0)

    def held(self, labels: Labels, value: Value) -> Layout:
        """The layout in which a value that no transpose makes is computed."""
        if value.node in self.free:
            layout = axes.output_layout(value.node, self.label(labels, value.node))
            assert layout is not None
            return layout
        return axes.identity(len(value.shape))

    def wanted(self, labels: Labels, read: Read) -> Layout:
        """The layout of the source in which a reader takes it."""
        if read.reader in self.free:
            return axes.compose(read.perm, axes.input_layout(read.reader, read.position, self.label(labels, read.reader)))
        return read.perm

    def cost(self, labels: Labels, values: Mapping[Value, None]) -> Cost:
        """Of bringing these values to all their readers."""
        nbytes = inner = reads = 0
        for value in values:
            if value.constant is not None:
                continue
            held = self.held(labels, value)
            here = axes.order_of(value.shape, held)
            orders = {here: False}
            for read in self.reads.get(value, ()):
                wanted = self.wanted(labels, read)
                if not (read.reader in self.flattened and wanted[0] == held[0]):
                    order = axes.order_of(value.shape, wanted)
                    at_boundary = read.reader is None or value.node.op == "input"
                    reads += order != here
                    orders[order] = orders.get(order, True) and at_boundary
            nbytes += value.type.nbytes * (len(orders) - 1)
            inner += sum(not at_boundary for at_boundary in orders.values()) - 1
        return nbytes, inner, reads

    def values_around(self, nodes: list[Node]) -> dict[Value, None]:
        sources = {_source(value)[0]: None for node in nodes for value in node.inputs}
        return sources | {node.out(i): None for node in nodes for i in range(len(node.types))}

    def suggestions(self, labels: Labels, node: Node) -> Iterator[Layout]:
        """The layouts with which one neighbour or another needs no transpose."""
        for position, value in enumerate(node.inputs):
            source, perm = _source(value)
            if source.constant is None:
                yield axes.frame_layout_from_input(node, position, axes.relative(perm, self.held(labels, source)))
        for read in self.reads.get(node.out(), ()):
            layout = axes.frame_layout_from_output(node, self.wanted(labels, read))
            if layout is not None:
                yield layout


def _flattens(node: Node) -> bool:
    """[N, ...] -> [N, K]"""
    return node.op == "reshape" and len(node.types[0].shape) == 2 and node.types[0].shape[:1] == node.inputs[0].shape[:1]


def _takes_any_columns(read: Read) -> bool:
    reader = read.reader
    return reader is not None and reader.op == "fc" and read.position == 0 and reader.inputs[1].constant is not None


def _choose(region: list[Node], labels: Labels, wiring: _Wiring) -> dict[Node, Layout] | None:
    """Better layouts for the region's nodes, or None. Tried: every layout a node's surroundings suggest, spread over the region;

    then, node by node, what its neighbours suggest, as long as that helps.
    """
    values = wiring.values_around(region)
    start = {**labels, **{node: wiring.label(labels, node) for node in region}}
    best, best_cost = start, wiring.cost(start, values)
    first_cost = best_cost
    if first_cost == NOTHING:
        return None
    tried: dict[Node, set[Layout]] = {node: {start[node]} for node in region}
    for seed in region:
        for layout in wiring.suggestions(start, seed):
            if layout in tried[seed] or axes.output_layout(seed, layout) is None:
                continue
            spread = {**start, **_spread(seed, layout, wiring)}
            for node in region:
                tried[node].add(spread[node])
            cost = wiring.cost(spread, values)
            if cost < best_cost:
                best, best_cost = spread, cost
    _improve(region, best, wiring)
    return {node: best[node] for node in region} if wiring.cost(best, values) < first_cost else None


def _spread(seed: Node, layout: Layout, wiring: _Wiring) -> dict[Node, Layout]:
    """Layouts for all free nodes connected with the seed that need no transposes between them, as far as that goes."""
    found = {seed: layout}
    queue = [seed]
    for node in queue:
        proposals: list[tuple[Node, Layout | None]] = []
        for position, value in enumerate(node.inputs):
            source, perm = _source(value)
            if source.node in wiring.free and source.node not in found:
                wanted = axes.compose(perm, axes.input_layout(node, position, found[node]))
                proposals.append((source.node, axes.frame_layout_from_output(source.node, wanted)))
        held = axes.output_layout(node, found[node])
        assert held is not None
        for read in wiring.reads.get(node.out(), ()):
            if read.reader is not None and read.reader in wiring.free and read.reader not in found:
                taken = axes.frame_layout_from_input(read.reader, read.position, axes.relative(read.perm, held))
                proposals.append((read.reader, taken))
        for other, proposal in proposals:
            if other not in found and proposal is not None and axes.output_layout(other, proposal) is not None:
                found[other] = proposal
                queue.append(other)
    return found


def _improve(region: list[Node], labels: dict[Node, Layout], wiring: _Wiring) -> None:
    """Change single nodes' layouts in place while the cost falls."""
    improved = True
    while improved:
        improved = False
        for node in region:
            values = wiring.values_around([node])
            cost = wiring.cost(labels, values)
            if cost == NOTHING:
                continue
            for layout in dict.fromkeys(wiring.suggestions(labels, node)):
                if axes.output_layout(node, layout) is None:
                    continue
                before, labels[node] = labels[node], layout
                changed = wiring.cost(labels, values)
                if changed < cost:
                    cost, improved = changed, True
                else:
                    labels[node] = before


@dataclass
class _Rebuild:
    """The graph in the chosen layouts."""

    wiring: _Wiring
    labels: Labels
    made: dict[Value, Value] = field(default_factory=dict)  # old value, no transpose's -> new one, in the layout it is held in
    moved: dict[tuple[Value, Layout], Value] = field(default_factory=dict)

    def run(self, graph: Graph) -> Graph:
        for node in self.wiring.order:
            new = node if node.op in ("input", "constant") else self._node(node)
            for index in range(len(node.types)):
                self.made[node.out(index)] = new.out(index)
        outputs = tuple((name, self._fetch(value, axes.identity(len(value.shape)))) for name, value in graph.outputs)
        return replace(graph, outputs=outputs)

    def _node(self, node: Node) -> Node:
        if node not in self.wiring.free:
            inputs = tuple(self._fetch(value, axes.identity(len(value.shape))) for value in node.inputs)
            return node if inputs == node.inputs else Node(node.op, inputs, node.attrs, node.types, node.name, node.origin)
        layout = self.wiring.label(self.labels, node)
        inputs = tuple(self._operand(node, position, layout) for position in range(len(node.inputs)))
        plain = layout == axes.identity(len(layout))
        if plain and inputs == node.inputs:
            return node
        attrs = node.attrs if plain else axes.permuted_attrs(node, layout)
        return make(node.op, inputs, attrs, node.name, node.origin)

    def _operand(self, node: Node, position: int, layout: Layout) -> Value:
        """The input as the node takes it; with axes of size one in front and between where broadcasting no longer aligns it."""
        value = node.inputs[position]
        missing = len(layout) - len(value.shape)
        moved = self._fetch(value, axes.input_layout(node, position, layout))
        if layout[:missing] == axes.identity(missing):
            return moved
        padded = (1,) * missing + value.shape
        shape = tuple(padded[axis] for axis in layout)
        if moved.constant is not None:
            return constant(moved.constant.reshape(shape), moved.node.name, moved.node.origin)
        return make("reshape", (moved,), {"shape": shape}, f"{moved.node.name}/aligned").out()

    def _fetch(self, value: Value, wanted: Layout) -> Value:
        """The new value that holds an old one in the layout."""
        source, perm = _source(value)
        layout = axes.compose(perm, wanted)
        held = self.wiring.held(self.labels, source)
        if layout == held:
            return self.made[source]
        key = (source, layout)
        if key not in self.moved:
            step = axes.relative(held, layout)
            as_before = value.node.op == "transpose" and wanted == axes.identity(len(wanted))
            name = value.node.name if as_before else f"{source.node.name}/{_move_name(step)}"
            array = source.constant
            if array is not None:
                kind = source.type.dtype
                self.moved[key] = constant(np.ascontiguousarray(array.transpose(step)), name, source.node.origin, kind)
            else:
                self.moved[key] = make("transpose", (self.made[source],), {"perm": step}, name, value.node.origin).out()
        return self.moved[key]


def _move_name(perm: Layout) -> str:
    rank = len(perm)
    if perm == (0, rank - 1, *range(1, rank - 1)):
        return "nchw"
    return "nhwc" if perm == (0, *range(2, rank), 1) else "transposed"
