"""Where every value lives: views of inputs, outputs, weights and of roots that the arena will hold. No offsets in the arena yet.

A concat costs nothing where its inputs can be written straight into it, a branch where both sides can be written to one place, reshape
and slice where strides can express them, an elementwise result (or a residual sum) where it may overwrite an operand that nothing reads
any more. What cannot be a view is left to a copy step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cortado.compiler.branches import taken
from cortado.compiler.conditions import Conditions, conditions_of
from cortado.compiler.graph import Graph, Node, Value
from cortado.compiler.ops.elementwise import ELEMENTWISE
from cortado.compiler.program import Operand, contiguous_strides

VIEWS = frozenset({"reshape", "slice"})


@dataclass(eq=False)
class Root:
    """Memory that is allocated as one. place: "input", "output", "weights" or "arena"; position: in the interface, for the first two."""

    name: str
    place: str
    nbytes: int
    position: int = 0
    value: Value | None = None


@dataclass(frozen=True)
class Place:
    """A value's elements inside a root: offset in elements of the value's dtype, strides in elements per axis."""

    root: Root
    offset: int
    strides: tuple[int, ...]


@dataclass
class Storage:
    """places: of every value. copied_outputs: interface positions that a copy step fills from the output's value."""

    places: dict[Value, Place] = field(default_factory=dict)
    copied_outputs: list[int] = field(default_factory=list)
    output_roots: list[Root] = field(default_factory=list)

    def operand(self, value: Value) -> Operand:
        return Operand(value.type, self.places[value].strides)

    def operands(self, node: Node) -> tuple[list[Operand], list[Operand]]:
        """Of the node's inputs and outputs."""
        return [self.operand(value) for value in node.inputs], [self.operand(node.out(i)) for i in range(len(node.types))]

    def is_view(self, node: Node) -> bool:
        """Whether the node's output is its input's memory, so that no step is needed."""
        return node.op in VIEWS and self.places[node.out()].root is self.places[node.inputs[0]].root

    def concat_view(self, node: Node, position: int) -> Place:
        """The part of a concat's output that its input `position` fills."""
        out = self.places[node.out()]
        axis = node.attrs["axis"]
        start = sum(v.shape[axis] for v in node.inputs[:position])
        return Place(out.root, out.offset + start * out.strides[axis], out.strides)


def reshape_strides(shape: Sequence[int], strides: Sequence[int], new_shape: Sequence[int]) -> tuple[int, ...] | None:
    """Strides that show the same elements in the new shape, or None where only a copy can. Same number of elements."""
    if 0 in new_shape:
        return contiguous_strides(tuple(new_shape))
    old = [(d, s) for d, s in zip(shape, strides, strict=True) if d != 1]
    runs: list[list[int]] = []  # [elements, stride of the innermost], where neighbours are dense
    for dim, stride in old:
        if runs and runs[-1][1] == dim * stride:
            runs[-1][0] *= dim
            runs[-1][1] = stride
        else:
            runs.append([dim, stride])
    result: list[int] = []
    inner: int | None = None
    for dim in reversed(new_shape):
        if dim == 1:
            result.append(1 if inner is None else inner)
            continue
        if not runs or runs[-1][0] % dim:
            return None
        result.append(runs[-1][1])
        inner = runs[-1][1] * dim
        runs[-1][0] //= dim
        runs[-1][1] *= dim
        if runs[-1][0] == 1:
            runs.pop()
    result.reverse()
    if result and result[-1] != 1:
        return None
    return tuple(result)


def same_strides(shape: Sequence[int], a: Sequence[int], b: Sequence[int]) -> bool:
    return all(d == 1 or x == y for d, x, y in zip(shape, a, b, strict=True))


def same_place(shape: Sequence[int], a: Place, b: Place) -> bool:
    """Whether both show the same elements (the stride of an axis of one element means nothing)."""
    return a.root is b.root and a.offset == b.offset and same_strides(shape, a.strides, b.strides)


def overwritable_inputs(node: Node) -> tuple[int, ...]:
    """Input positions that the node's kernel reads, element by element, no later than it writes the same element of output 0."""
    if node.op in ELEMENTWISE or node.op == "pointwise":
        return tuple(i for i, v in enumerate(node.inputs) if v.shape == node.types[0].shape)
    position = 2 if node.op in ("conv", "conv_transpose", "fc") else len(node.inputs)
    for entry in node.attrs.get("epilogue", ()):
        if entry[0] == "residual":
            return (position,)
        position += entry[0] == "bias"
    return ()


def assign_storage(graph: Graph, order: Sequence[Node], conditions: Conditions | None = None) -> Storage:
    """conditions: of this graph in this order, where the caller has them."""
    return _Assignment(graph, order, conditions or conditions_of(graph, order)).run()


class _Assignment:
    def __init__(self, graph: Graph, order: Sequence[Node], conditions: Conditions) -> None:
        self.graph, self.order, self.guards = graph, order, conditions.guards
        self.storage = Storage()
        self.outputs = graph.output_values()
        self.last_read = _last_reads(graph, order, conditions)
        self.wanted: dict[Value, tuple[Root | Value, int, tuple[int, ...]]] = {}
        self.residents: dict[Root, list[Value]] = {}

    def run(self) -> Storage:
        self._claim_outputs()
        for node in reversed(self.order):
            if node.op == "concat":
                self._claim_concat(node)
            elif node.op == "branch":
                self._claim_branch(node)
        for position, node in enumerate(self.graph.inputs):
            root = Root(node.name, "input", node.types[0].nbytes, position)
            self._put(node.out(), Place(root, 0, contiguous_strides(node.types[0].shape)))
        for step, node in enumerate(self.order):
            self._place_node(node, step)
        return self.storage

    # --- who wants to be written where ---

    def _claim_outputs(self) -> None:
        for position, (name, value) in enumerate(self.graph.outputs):
            root = Root(name, "output", value.type.nbytes, position)
            self.storage.output_roots.append(root)
            source = value
            while source.node.op == "reshape":
                source = source.node.inputs[0]
            if source.node.op in ("input", "constant", "slice") or source in self.wanted:
                self.storage.copied_outputs.append(position)
            else:
                self.wanted[source] = (root, 0, contiguous_strides(source.shape))

    def _claim_concat(self, node: Node) -> None:
        out = node.out()
        strides = self.wanted[out][2] if out in self.wanted else contiguous_strides(out.shape)
        axis, start = node.attrs["axis"], 0
        for value in node.inputs:
            source, view = _written_as(value, strides)
            if self._free(source) and value not in self.outputs and self.guards[source.node] >= self.guards[node]:
                self.wanted[source] = (out, start * strides[axis], view)
            start += value.shape[axis]

    def _claim_branch(self, node: Node) -> None:
        """Both sides may be written to one place where each is computed for its own branch alone."""
        out = node.out()
        strides = self.wanted[out][2] if out in self.wanted else contiguous_strides(out.shape)
        for position, value in enumerate(node.inputs[1:], 1):
            source, view = _written_as(value, strides)
            if self._free(source) and value not in self.outputs and taken(node, position) in self.guards[source.node]:
                self.wanted[source] = (out, 0, view)

    def _free(self, source: Value) -> bool:
        movable = source.node.op not in ("input", "constant", "slice", "reshape")
        return movable and source not in self.wanted and source not in self.outputs

    # --- placing, in step order ---

    def _put(self, value: Value, place: Place) -> Place:
        self.storage.places[value] = place
        self.residents.setdefault(place.root, []).append(value)
        return place

    def _own_root(self, value: Value) -> Place:
        place = "weights" if value.node.op == "constant" else "arena"
        root = Root(repr(value), place, value.type.nbytes, value=value)
        return Place(root, 0, contiguous_strides(value.shape))

    def _resolve(self, value: Value) -> Place:
        """The place of a value that is claimed by an output or a concat, or that has a root of its own; made on first need."""
        if value in self.storage.places:
            return self.storage.places[value]
        if value not in self.wanted:
            return self._put(value, self._own_root(value))
        parent, offset, strides = self.wanted[value]
        if isinstance(parent, Root):
            return self._put(value, Place(parent, offset, strides))
        around = self._resolve(parent)
        return self._put(value, Place(around.root, around.offset + offset, strides))

    def _place_node(self, node: Node, step: int) -> None:
        if node.op in VIEWS and node.out() not in self.wanted:
            view = self._view(node)
            if view is not None:
                self._put(node.out(), view)
                return
        for index in range(len(node.types)):
            value = node.out(index)
            if value in self.storage.places:
                continue
            taken = self._take_over(node, value, step) if index == 0 and value not in self.wanted else None
            if taken is not None:
                self._put(value, taken)
            else:
                self._resolve(value)

    def _view(self, node: Node) -> Place | None:
        source = node.inputs[0]
        place = self.storage.places[source]
        if place.root.place == "weights" or not source.type.size or not node.types[0].size:
            return None
        if node.op == "slice":
            moved = sum(start * stride for start, stride in zip(node.attrs["starts"], place.strides, strict=True))
            return Place(place.root, place.offset + moved, place.strides)
        strides = reshape_strides(source.shape, place.strides, node.types[0].shape)
        return None if strides is None else Place(place.root, place.offset, strides)

    def _take_over(self, node: Node, value: Value, step: int) -> Place | None:
        """The place of an input whose memory the output may overwrite, or None."""
        strides = contiguous_strides(value.shape)
        candidates = overwritable_inputs(node)
        for position in candidates:
            source = node.inputs[position]
            place = self.storage.places[source]
            if place.root.place != "arena" or source.type.itemsize != value.type.itemsize:
                continue
            if not same_strides(value.shape, place.strides, strides) or not self._dead(place.root, step):
                continue
            others = [(i, self.storage.places[v]) for i, v in enumerate(node.inputs) if self.storage.places[v].root is place.root]
            if all(i in candidates and p == place for i, p in others):
                return place
        return None

    def _dead(self, root: Root, step: int) -> bool:
        """Whether nothing in the root is read after this step."""
        return all(self.last_read.get(v, -1) <= step and v not in self.outputs for v in self.residents[root])


def _written_as(value: Value, strides: tuple[int, ...]) -> tuple[Value, tuple[int, ...]]:
    """The value behind reshapes, and the strides with which writing it writes `value` with these."""
    while value.node.op == "reshape" and value.type.size:
        inner = reshape_strides(value.shape, strides, value.node.inputs[0].shape)
        if inner is None:
            break
        strides, value = inner, value.node.inputs[0]
    return value, strides


def _last_reads(graph: Graph, order: Sequence[Node], conditions: Conditions) -> Mapping[Value, int]:
    """The last step that reads a value, directly or through views of it (a copied output is read at the very end)."""
    last: dict[Value, int] = {value: len(order) for value in graph.output_values()}
    last.update((rows.count, len(order)) for rows in map(conditions.rows, graph.output_values()) if rows is not None)
    for step in range(len(order) - 1, -1, -1):
        node = order[step]
        for value in (*node.inputs, *conditions.reads(node)):
            last[value] = max(last.get(value, -1), step)
        for value in node.inputs:
            if node.op in VIEWS or node.op in ("concat", "branch"):
                last[value] = max(last[value], last.get(node.out(), step))
    return last
