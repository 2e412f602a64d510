"""Graph -> Program: every node becomes kernel calls on places, or nothing where a view does its work."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cortado.compiler.branches import Guards, taken
from cortado.compiler.conditions import Conditions, Found, conditions_of
from cortado.compiler.graph import Graph, Node, Value
from cortado.compiler.kernels.move import lower_copy
from cortado.compiler.kernels.table import LOWERINGS, Lowering, lowerings
from cortado.compiler.legalize import legalize
from cortado.compiler.ops import OPS
from cortado.compiler.plan import Interval, align, assign_offsets, verify_plan
from cortado.compiler.program import (
    Argument,
    Buffer,
    Guard,
    KernelCall,
    Limit,
    Operand,
    Program,
    Ref,
    Step,
    contiguous_strides,
)
from cortado.compiler.storage import Place, Root, Storage, assign_storage, reshape_strides, same_place
from cortado.compiler.target import Target
from cortado.compiler.tuning import Tuning
from cortado.compiler.types import TensorInfo, TensorType
from cortado.errors import UnsupportedError


def lower(graph: Graph, target: Target, optimize_for: str = "speed", tuning: Tuning | None = None) -> Program:
    """Order, storage, kernels, offsets, in this order. tuning: measured choices, for this target.

    A graph that holds quantized tensors is lowered reproducibly: where all contractions are int8, its bits do not depend on the target.

    Raises UnsupportedError that names every node without a kernel, OptionError where the tuning does not fit.
    """
    order = graph.nodes()
    _require_lowerings(order)
    conditions = conditions_of(graph, order)
    storage = assign_storage(graph, order, conditions)
    quantized = any(kind.quant is not None for node in order for kind in node.types)
    plain, counted = (lowerings(optimize_for, tuning, quantized, found) for found in (False, True))
    steps = _Steps(target, plain, counted, conditions, storage)
    problems: list[str] = []
    for node in order:
        try:
            _lower_node(node, storage, steps)
        except UnsupportedError as error:
            problems += error.nodes or (str(error),)
    if problems:
        raise UnsupportedError("; ".join(problems), problems)
    for position in storage.copied_outputs:
        name, value = graph.outputs[position]
        whole = Place(storage.output_roots[position], 0, contiguous_strides(value.shape))
        steps.copy(value.node, value, storage.places[value], whole, f"{name}/output")
    program = steps.program(graph)
    verify_plan(program)
    return program


def layers(graph: Graph) -> Iterator[tuple[Node, list[Operand], list[Operand]]]:
    """Every node of a graph with its operands as `lower` gives them to the kernels' makers."""
    order = graph.nodes()
    storage = assign_storage(graph, order)
    for node in order:
        if node.op in LOWERINGS and not storage.is_view(node):
            yield node, *storage.operands(node)


def _require_lowerings(order: Sequence[Node]) -> None:
    known = {*LOWERINGS, "input", "constant", "reshape", "slice", "concat", "branch"}
    missing = [f"{node.op} {node.name}" for node in order if node.op not in known]
    if missing:
        raise UnsupportedError("no kernel for: " + "; ".join(missing), missing)


def _lower_node(node: Node, storage: Storage, steps: _Steps) -> None:
    places = storage.places
    if node.op in ("input", "constant") or storage.is_view(node):
        return
    if node.op == "reshape":
        source, out = node.inputs[0], places[node.out()]
        strides = reshape_strides(node.types[0].shape, out.strides, source.shape) or contiguous_strides(source.shape)
        steps.copy(node, source, places[source], Place(out.root, out.offset, strides), node.name)
    elif node.op == "slice":
        whole = places[node.inputs[0]]
        moved = sum(a * b for a, b in zip(node.attrs["starts"], whole.strides, strict=True))
        steps.copy(node, node.out(), Place(whole.root, whole.offset + moved, whole.strides), places[node.out()], node.name)
    elif node.op == "concat":
        for position, value in enumerate(node.inputs):
            view = storage.concat_view(node, position)
            if not same_place(value.shape, places[value], view):
                steps.copy(node, value, places[value], view, f"{node.name}/{position}")
    elif node.op == "branch":
        for position, value in enumerate(node.inputs[1:], 1):
            if not same_place(value.shape, places[value], places[node.out()]):
                own = frozenset({taken(node, position)})
                steps.copy(node, value, places[value], places[node.out()], f"{node.name}/{position}", own)
    else:
        steps.node(node)


@dataclass(eq=False)
class _Pending:
    """A step whose buffers have no offsets yet: (root, offset in bytes) per pointer, as for guards.

    count: where the number of rows is, and the most there can be.
    """

    call: KernelCall
    places: tuple[tuple[Root, int], ...]
    name: str
    node: Node
    macs: int
    guards: tuple[tuple[tuple[Root, int], bool], ...]
    count: tuple[tuple[Root, int], int] | None

    @property
    def touched(self) -> Iterator[Root]:
        for root, _ in (*self.places, *(place for place, _ in self.guards), *([self.count[0]] if self.count else [])):
            yield root


@dataclass(frozen=True, eq=False)
class _Made:
    """What a step is for. rows: those that it makes where they are counted; guards: beside those of the node."""

    name: str
    node: Node
    macs: int
    rows: Found | None
    guards: Guards = frozenset()


@dataclass
class _Steps:
    """Collects steps and roots in order; `program` gives them offsets. counted: lowerings of nodes with rows found at run time."""

    target: Target
    lowerings: Mapping[str, Lowering]
    counted: Mapping[str, Lowering]
    conditions: Conditions
    storage: Storage
    pending: list[_Pending] = field(default_factory=list)
    constants: dict[tuple[str, bytes], Root] = field(default_factory=dict)
    arrays: dict[Root, np.ndarray] = field(default_factory=dict)
    scratch: dict[Ref, Root] = field(default_factory=dict)

    def node(self, node: Node) -> None:
        storage = self.storage
        ins, outs = storage.operands(node)
        lowering = (self.counted if self.conditions.counted(node) else self.lowerings)[node.op]
        inputs = [(value.type, storage.places[value]) for value in node.inputs]
        outputs = [(node.types[i], storage.places[node.out(i)]) for i in range(len(node.types))]
        count = OPS[node.op].macs
        macs = count([value.type for value in node.inputs], node.attrs) if count is not None else 0
        rows = self.conditions.rows_of_node(node)
        for number, call in enumerate(lowering(node, ins, outs, self.target)):
            self._add(call, inputs, outputs, _Made(node.name, node, 0 if number else macs, rows))

    def copy(self, node: Node, value: Value, source: Place, destination: Place, name: str, guards: Guards = frozenset()) -> None:
        """A step of `node` that copies the elements of `value`. guards: what it needs beside those of the node."""
        ins, outs = [Operand(value.type, source.strides)], [Operand(value.type, destination.strides)]
        made = _Made(name, node, 0, self.conditions.rows(value), guards)
        for call in lower_copy(node, ins, outs, self.target):
            self._add(call, [(value.type, source)], [(value.type, destination)], made)

    def _add(
        self, call: KernelCall, ins: Sequence[tuple[TensorType, Place]], outs: Sequence[tuple[TensorType, Place]], made: _Made
    ) -> None:
        if call.tasks == 0:
            return
        places: list[tuple[Root, int]] = []
        for ref in call.refs:
            if ref.kind == "weights":
                assert ref.array is not None
                places.append((self._constant(ref.array, made.name), 0))
            elif ref.kind == "scratch":
                places.append((self.scratch.setdefault(ref, Root(f"{made.name}/scratch", "arena", ref.nbytes)), 0))
            else:
                places.append(self._place(*(ins if ref.kind == "input" else outs)[ref.index], ref.offset))
        tests = self.conditions.tests(made.node, made.guards)
        guards = tuple((self._place(t.condition.type, self.storage.places[t.condition]), t.wanted) for t in tests)
        count = None
        if call.groups and made.rows is not None:
            count = self._place(made.rows.count.type, self.storage.places[made.rows.count]), made.rows.most
        self.pending.append(_Pending(call, tuple(places), made.name, made.node, made.macs, guards, count))

    def _place(self, type_: TensorType, place: Place, offset: int = 0) -> tuple[Root, int]:
        root = place.root
        if root.place == "weights":
            assert root.value is not None and root.value.constant is not None
            root = self._constant(root.value.constant, root.name)
        return root, (place.offset + offset) * type_.itemsize

    def _constant(self, array: np.ndarray, name: str) -> Root:
        array = np.ascontiguousarray(array)
        key = (str(array.dtype), hashlib.sha256(array.reshape(-1).view(np.uint8).data).digest())
        if key not in self.constants:
            root = Root(name, "weights", array.nbytes)
            self.constants[key] = root
            self.arrays[root] = array
        return self.constants[key]

    def program(self, graph: Graph) -> Program:
        touched = self._lifetimes()
        arena = [root for root in touched if root.place == "arena"]
        only = self._guards_of_roots()
        offsets, size = assign_offsets([Interval(root.nbytes, *touched[root], only[root]) for root in arena])
        at = dict(zip(arena, offsets, strict=True))
        weights, blob = self._pack_weights()
        at.update(weights)
        buffers: list[Buffer] = []
        number: dict[Root, int] = {}
        for root, (first, last) in touched.items():
            number[root] = len(buffers)
            buffers.append(Buffer(root.name, root.place, root.nbytes, at.get(root, root.position), first, last))
        return Program(
            graph.name,
            tuple((n.name, _info(graph, n.name, n.types[0])) for n in graph.inputs),
            tuple((name, _info(graph, name, value.type)) for name, value in graph.outputs),
            tuple(buffers),
            tuple(self._step(p, number) for p in self.pending),
            size,
            blob,
        )

    def _lifetimes(self) -> dict[Root, tuple[int, int]]:
        touched: dict[Root, tuple[int, int]] = {}
        for index, step in enumerate(self.pending):
            for root in step.touched:
                touched[root] = (touched.get(root, (index, index))[0], index)
        return touched

    def _guards_of_roots(self) -> dict[Root, frozenset[tuple[Hashable, bool]]]:
        """As `plan.guards_of_buffers`."""
        found: dict[Root, frozenset[tuple[Hashable, bool]]] = {}
        for step in self.pending:
            own: frozenset[tuple[Hashable, bool]] = frozenset(step.guards)
            read = {place[0] for place, _ in step.guards}
            for root in step.touched:
                found[root] = frozenset() if root in read else found.get(root, own) & own
        return found

    def _pack_weights(self) -> tuple[Mapping[Root, int], bytes]:
        """The blob, in order of first use, every array aligned."""
        offsets: dict[Root, int] = {}
        parts: list[bytes | memoryview] = []
        at = 0
        for root, array in self.arrays.items():
            offsets[root] = at
            parts.append(array.reshape(-1).view(np.uint8).data)
            parts.append(bytes(align(array.nbytes) - array.nbytes))
            at += align(array.nbytes)
        return offsets, b"".join(parts)

    def _step(self, pending: _Pending, number: Mapping[Root, int]) -> Step:
        node, call = pending.node, pending.call

        def argument(place: tuple[Root, int]) -> Argument:
            return Argument(number[place[0]], place[1])

        args = tuple(map(argument, pending.places))
        kernel = legalize(call.kernel, self.target)
        guards = tuple(Guard(argument(place), wanted) for place, wanted in pending.guards)
        limit = None if pending.count is None else Limit(argument(pending.count[0]), pending.count[1], call.groups)
        shape = node.types[0].shape
        return Step(
            kernel, args, call.tasks, pending.name, node.op, node.origin, pending.macs, shape, guards, limit, call.generic
        )


def _info(graph: Graph, name: str, type_: TensorType) -> TensorInfo:
    quant = type_.quant
    scale, zero = (quant.scales[0], quant.zero_points[0]) if quant is not None and quant.axis is None else (None, None)
    return TensorInfo(type_.shape, type_.dtype, graph.layouts.get(name, ""), scale, zero, graph.counts.get(name))
