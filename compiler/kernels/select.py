"""Kernels that choose elements by their order along one axis: arg_max, arg_min, top_k."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.loops import (
    Piece,
    Space,
    collapse,
    drivers,
    leading_axes,
    nest,
    position,
    rows,
    task_loop,
    vector_row,
)
from cortado.compiler.kernels.scalar import UNSIGNED
from cortado.compiler.lang import SCALAR_OF, Type
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target

NUMBER = Type("i64")


def lower_arg(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """arg_max, arg_min: int64 positions, of equal elements the first. A NaN is chosen where it stands first, and never else."""
    (x,), (y,) = ins, outs
    if y.type.size == 0:
        return []
    k = KernelBuilder(f"{node.op}_{SCALAR_OF[x.type.dtype]}", target)
    search = _Search(k, node, x, y)
    begin, end = drivers(k)
    tasks = search.across(begin, end) if search.kept_vectors else search.along(begin, end)
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("output", 0)), tasks, tasks)]


class _Search:
    """space: the kept axes with their strides in the input and in the output; the searched axis has `size` elements `step` apart."""

    def __init__(self, k: KernelBuilder, node: Node, x: Operand, y: Operand) -> None:
        self.k, self.scalar = k, SCALAR_OF[x.type.dtype]
        axis = node.attrs["axis"]
        self.size, self.step = x.shape[axis], x.strides[axis]
        self.space = _kept(x, axis, [y] if node.attrs["keepdims"] else [], [] if node.attrs["keepdims"] else [y])
        self.predicate = ("u" if x.type.dtype in UNSIGNED else "") + ("gt" if node.op == "arg_max" else "lt")
        self.source, self.sink = k.param("in0"), k.param("out")

    @property
    def kept_vectors(self) -> bool:
        """Whether vectors run across results: neighbours lie side by side in the input and in the output."""
        return self.space.shape[-1] > 1 and all(strides[-1] == 1 for strides in self.space.strides)

    def across(self, begin: Val, end: Val) -> int:
        k, (come, go) = self.k, self.space.strides
        lanes = k.target.lanes("i64")
        kind, counted = Type(self.scalar, lanes), NUMBER.with_lanes(lanes)

        def row(coordinates: list[Val], part: tuple[Val, Val] | None) -> None:
            source = k.offset(self.source, position(k, coordinates, come[:-1]), self.scalar)
            sink = k.offset(self.sink, position(k, coordinates, go[:-1]), "i64")

            def body(pieces: list[Piece]) -> None:
                for at, count in pieces:

                    def trip(number: Val, best: Val, found: Val, at: Val = at, count: int = count) -> list[Val]:
                        value = k.load_lanes(source, kind, count, at + number * self.step)
                        taken = k.compare(self.predicate, value, best)
                        here = k.broadcast(k.convert(number, NUMBER, "sext"), lanes)
                        return [k.select(taken, value, best), k.select(taken, here, found)]

                    start = k.load_lanes(source, kind, count, at)
                    _, found = k.loop(1, self.size, 1, trip, [start, k.zero(counted)])
                    k.store_lanes(sink, found, count, at)

            vector_row(k, self.space.shape[-1], lanes, 1, body, part)

        return rows(k, begin, end, self.space.shape, lanes, row)

    def along(self, begin: Val, end: Val) -> int:
        k, shape = self.k, self.space.shape
        come, go = self.space.strides
        lead = leading_axes(shape)

        def result(coordinates: list[Val]) -> None:
            source = k.offset(self.source, position(k, coordinates, come), self.scalar)
            found = self._of_row(source)
            k.store(self.sink, k.convert(found, NUMBER, "sext"), position(k, coordinates, go))

        task_loop(k, begin, end, shape[:lead], lambda head: nest(k, shape[lead:], lambda tail: result([*head, *tail])))
        return prod(shape[:lead])

    def _of_row(self, source: Val) -> Val:
        """The position in one row, as i32: every lane searches its own elements, then the lanes are compared, then what is left over."""
        k = self.k
        lanes = k.target.lanes("f32") if self.step == 1 and self.scalar in ("f32", "i32") else 1
        if self.size < 2 * lanes:
            lanes = 1
        kind, counted = Type(self.scalar, lanes), Type("i32", lanes)
        whole = self.size - self.size % lanes

        def trip(number: Val, best: Val, found: Val) -> list[Val]:
            value = k.load(source, kind, number * self.step)
            taken = k.compare(self.predicate, value, best)
            here = k.broadcast(k.convert(number, Type("i32"), "trunc"), lanes)
            return [k.select(taken, value, best), k.select(taken, here, found)]

        best, found = k.loop(lanes, whole, lanes, trip, [k.load(source, kind), k.zero(counted)])
        best, found = self._of_lanes(best, found)
        for number in range(whole, self.size):
            value = k.load(source, Type(self.scalar), number * self.step)
            taken = k.compare(self.predicate, value, best)
            best, found = k.select(taken, value, best), k.select(taken, number, found)
        return found

    def _of_lanes(self, best: Val, found: Val) -> tuple[Val, Val]:
        """found holds where each lane's vector begins."""
        k, lanes = self.k, best.type.lanes
        pairs = [(k.lane(best, i), k.lane(found, i) + i) for i in range(lanes)]
        value, at = pairs[0]
        for other, number in pairs[1:]:
            earlier = k.compare("eq", other, value) & (number < at)
            taken = k.compare(self.predicate, other, value) | earlier
            value, at = k.select(taken, other, value), k.select(taken, number, at)
        return value, at


def _kept(x: Operand, axis: int, with_axis: Sequence[Operand], without: Sequence[Operand]) -> Space:
    """All axes but one, with the strides of x and of operands that have that axis or lack it."""
    kept = [i for i in range(len(x.shape)) if i != axis]
    strides = [[o.strides[i] for i in kept] for o in (x, *with_axis)] + [list(o.strides) for o in without]
    return collapse([x.shape[i] for i in kept], strides)


def lower_top_k(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """The k greatest, largest first, of equal ones the first, NaN last: an ordered list that elements are inserted into.

    The list lies in the outputs themselves. Elements that do not belong to it cost one comparison, the others k steps.
    """
    (x,), (values, numbers) = ins, outs
    if values.type.size == 0:
        return []
    axis, count, scalar = node.attrs["axis"], node.attrs["k"], SCALAR_OF[x.type.dtype]
    space = _kept(x, axis, [values, numbers], [])
    k = KernelBuilder(f"top_k_{scalar}", target)
    pointers = k.param("in0"), k.param("values"), k.param("numbers")
    begin, end = drivers(k)
    lead = leading_axes(space.shape)
    steps = (x.strides[axis], values.strides[axis], numbers.strides[axis])
    unsigned = x.type.dtype in UNSIGNED

    def result(coordinates: list[Val]) -> None:
        at = [position(k, coordinates, strides) for strides in space.strides]
        moved = [k.offset(p, i, s) for p, i, s in zip(pointers, at, (scalar, scalar, "i64"), strict=True)]
        _Ranking(k, scalar, unsigned, moved, steps, count).fill(x.shape[axis])

    task_loop(k, begin, end, space.shape[:lead], lambda head: nest(k, space.shape[lead:], lambda tail: result([*head, *tail])))
    refs = (Ref("input", 0), Ref("output", 0), Ref("output", 1))
    tasks = prod(space.shape[:lead])
    return [KernelCall(k.finish(), refs, tasks, tasks if prod(x.shape[:axis]) > 1 else 0)]


class _Ranking:
    """The ordered list of one row: `count` values and their numbers, in memory."""

    def __init__(
        self, k: KernelBuilder, scalar: str, unsigned: bool, pointers: Sequence[Val], steps: Sequence[int], count: int
    ) -> None:
        self.k, self.kind, self.unsigned, self.count = k, Type(scalar), unsigned, count
        self.source, self.values, self.numbers = pointers
        self.come, self.go, self.step = steps

    def fill(self, size: int) -> None:
        k = self.k

        def first(number: Val) -> None:
            value, at = self._insert(self._load(number), number, number)
            self._store(value, at, number)

        def later(number: Val) -> None:
            value = self._load(number)
            worst = k.load(self.values, self.kind, (self.count - 1) * self.go)

            def insert() -> None:
                self._insert(value, number, k.index(self.count))

            k.if_(self._before(value, worst), insert)

        k.loop(0, self.count, 1, first)
        k.loop(self.count, size, 1, later)

    def _insert(self, value: Val, number: Val, length: Val) -> tuple[Val, Val]:
        """Put an element into a list of that length; what falls out at its end."""
        k = self.k

        def pass_(place: Val, value: Val, number: Val, moving: Val) -> list[Val]:
            there, at = k.load(self.values, self.kind, place * self.go), k.load(self.numbers, NUMBER, place * self.step)
            moving = moving | self._before(value, there)
            self._store(k.select(moving, value, there), k.select(moving, number, at), place)
            return [k.select(moving, there, value), k.select(moving, at, number), moving]

        start = [value, k.convert(number, NUMBER, "sext"), k.const(0, Type("i1"))]
        value, number, _ = k.loop(0, length, 1, pass_, start)
        return value, number

    def _before(self, a: Val, b: Val) -> Val:
        k = self.k
        greater = k.compare("ugt" if self.unsigned else "gt", a, b)
        if not self.kind.is_float:
            return greater
        return greater | (k.compare("ne", b, b) & k.compare("eq", a, a))

    def _load(self, number: Val) -> Val:
        return self.k.load(self.source, self.kind, number * self.come)

    def _store(self, value: Val, number: Val, place: Val) -> None:
        self.k.store(self.values, value, place * self.go)
        self.k.store(self.numbers, number, place * self.step)
