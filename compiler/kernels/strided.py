"""Copies between any two strided layouts of the same elements: rows, blocks that are transposed in registers, single elements.

Elements are moved as integers of their size, so every type keeps its bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.kernels.generic import generic_if
from cortado.compiler.kernels.loops import (
    ENOUGH_TASKS,
    Piece,
    drivers,
    gather_lanes,
    leading_axes,
    nest,
    position,
    rows,
    task_loop,
    vector_row,
)
from cortado.compiler.lang import Type
from cortado.compiler.program import KernelCall, Ref
from cortado.compiler.target import Target

MOVED_AS = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}  # by bytes of an element
MOST_PLANES = 4  # as many interleaved elements are handled by shuffles of whole vectors, more by transposed blocks
GROUP_BYTES = 16  # x86 shuffles cheaply inside groups of this size, and NEON's vectors are no longer
LINE_BYTES = 64


@dataclass(frozen=True)
class Axis:
    """come, go: distance of neighbours in the source (0: one element repeated) and in the destination."""

    size: int
    come: int
    go: int


def strided_copy(
    family: str, itemsize: int, shape: Sequence[int], come: Sequence[int], go: Sequence[int], target: Target
) -> list[KernelCall]:
    """Copy input 0 to output 0, both addressed by these strides (in elements); no two elements of the destination share a place."""
    if prod(shape) == 0:
        return []
    k = KernelBuilder(f"{family}_{MOVED_AS[itemsize]}", target)
    copy = _Copy(k, MOVED_AS[itemsize], itemsize, _simplified(shape, come, go), k.param("in0"), k.param("out"))
    begin, end = drivers(k)
    tasks = copy.record(begin, end)
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("output", 0)), tasks, tasks if copy.in_order else 0, copy.generic)]


def _simplified(shape: Sequence[int], come: Sequence[int], go: Sequence[int]) -> list[Axis]:
    """Axes in the destination's order, neighbours merged where both sides walk through them as one; at least one axis."""
    axes = sorted((Axis(*a) for a in zip(shape, come, go, strict=True) if a[0] != 1), key=lambda a: -a.go)
    merged: list[Axis] = []
    for axis in axes:
        if merged and merged[-1].come == axis.size * axis.come and merged[-1].go == axis.size * axis.go:
            axis = Axis(merged.pop().size * axis.size, axis.come, axis.go)
        merged.append(axis)
    return merged or [Axis(1, 1, 1)]


def transposed(k: KernelBuilder, block: Sequence[Val], itemsize: int) -> list[Val]:
    """n vectors of n lanes (n a power of two): lane j of result i is lane i of vector j.

    First each group of 16 bytes is transposed among as many vectors by zipping halves, then the groups are exchanged likewise.
    """
    n = len(block)
    inner = min(n, GROUP_BYTES // itemsize)
    groups = n // inner
    columns = [_zipped(k, block[h * inner : (h + 1) * inner], inner, 1) for h in range(groups)]
    across = [_zipped(k, [columns[h][w] for h in range(groups)], groups, inner) for w in range(inner)]
    return [across[w][g] for g in range(groups) for w in range(inner)]


def _zipped(k: KernelBuilder, block: Sequence[Val], count: int, unit: int) -> list[Val]:
    """Transpose `count` vectors seen as rows of units, inside each run of `count` units (a perfect shuffle, log2(count) times)."""
    block = list(block)
    lanes = block[0].type.lanes
    for _ in range(count.bit_length() - 1):
        half = count // 2
        mixed: list[Val] = []
        for a, b in zip(block[:half], block[half:], strict=True):
            for part in (0, half):
                picks: list[int] = []
                for run in range(0, lanes, count * unit):
                    for u in range(part, part + half):
                        own = range(run + u * unit, run + (u + 1) * unit)
                        picks += [*own, *(lanes + lane for lane in own)]
                mixed.append(k.shuffle(a, b, picks))
        block = mixed
    return block


@dataclass(frozen=True)
class _Copy:
    k: KernelBuilder
    scalar: str
    itemsize: int
    axes: list[Axis]
    source: Val
    sink: Val

    @property
    def in_order(self) -> bool:
        """Whether tasks come in the order of the destination's outermost axis: where that is not taken apart to be transposed."""
        return len(self.axes) == 1 or self.axes[0].come != 1 or self.axes[-1].come in (0, 1)

    @property
    def generic(self) -> str:
        """Vectors need neighbours on both sides, or along one axis in the source and another in the destination."""
        dense = self.axes[-1].go == 1 and (self.axes[-1].come in (0, 1) or any(a.come == 1 for a in self.axes[:-1]))
        single = not dense and self.k.target.lanes(self.scalar) > 1
        return generic_if("single_moves", single, prod(a.size for a in self.axes))

    def record(self, begin: Val, end: Val) -> int:
        """The whole kernel's body; returns its number of tasks."""
        last, lanes = self.axes[-1], self.k.target.lanes(self.scalar)
        if last.go == 1 and last.come in (0, 1):
            return self._rows(begin, end, lanes)
        fast = next((a for a in self.axes[:-1] if a.come == 1), None)
        if last.go != 1 or fast is None or lanes == 1:
            return self._elements(begin, end)
        others = [a for a in self.axes[:-1] if a is not fast]
        if last.size <= MOST_PLANES and fast.go == last.size:
            return self._planes(begin, end, others, last, fast, self._interleave)
        if fast.size <= MOST_PLANES and last.come == fast.size:
            return self._planes(begin, end, others, fast, last, self._separate)
        return self._blocks(begin, end, others, fast)

    def _at(self, coordinates: Sequence[Val], axes: Sequence[Axis]) -> tuple[Val, Val]:
        come = self.k.offset(self.source, position(self.k, coordinates, [a.come for a in axes]), self.scalar)
        return come, self.k.offset(self.sink, position(self.k, coordinates, [a.go for a in axes]), self.scalar)

    def _rows(self, begin: Val, end: Val, lanes: int) -> int:
        k, last, type_ = self.k, self.axes[-1], Type(self.scalar, lanes)

        def row(coordinates: list[Val], part: tuple[Val, Val] | None) -> None:
            source, sink = self._at(coordinates, self.axes[:-1])
            repeated = k.broadcast(k.load(source, type_.with_lanes(1)), lanes) if last.come == 0 else None

            def body(pieces: list[Piece]) -> None:
                values = [repeated or k.load_lanes(source, type_, count, at) for at, count in pieces]
                for value, (at, count) in zip(values, pieces, strict=True):
                    k.store_lanes(sink, value, count, at)

            vector_row(k, last.size, lanes, 4, body, part)

        return rows(k, begin, end, [a.size for a in self.axes], 4 * lanes, row)

    def _elements(self, begin: Val, end: Val) -> int:
        k, last, type_ = self.k, self.axes[-1], Type(self.scalar)

        def row(coordinates: list[Val], part: tuple[Val, Val] | None) -> None:
            source, sink = self._at(coordinates, self.axes[:-1])

            def body(pieces: list[Piece]) -> None:
                values = [k.load(source, type_, at * last.come) for at, _ in pieces]
                for value, (at, _) in zip(values, pieces, strict=True):
                    k.store(sink, value, at * last.go)

            vector_row(k, last.size, 1, 4, body, part)

        return rows(k, begin, end, [a.size for a in self.axes], 4, row)

    # --- few planes <-> interleaved ---

    def _planes(
        self, begin: Val, end: Val, others: list[Axis], few: Axis, many: Axis, move: Callable[[Val, Val, Axis, list[Piece]], None]
    ) -> int:
        k, lanes = self.k, self.k.target.lanes(self.scalar)

        def row(coordinates: list[Val], part: tuple[Val, Val] | None) -> None:
            source, sink = self._at(coordinates, others)
            vector_row(k, many.size, lanes, 1, lambda pieces: move(source, sink, few, pieces), part)

        return rows(k, begin, end, [*(a.size for a in others), many.size], lanes, row)

    def _interleave(self, source: Val, sink: Val, planes: Axis, pieces: list[Piece]) -> None:
        k, lanes, n = self.k, self.k.target.lanes(self.scalar), planes.size
        for at, count in pieces:
            loaded = [k.load_lanes(source, Type(self.scalar, lanes), count, at + p * planes.come) for p in range(n)]
            for start in range(0, count * n, lanes):
                wanted = [(start + j) % n * lanes + (start + j) // n for j in range(lanes)]
                k.store_lanes(sink, gather_lanes(k, loaded, wanted), min(lanes, count * n - start), at * n + start)

    def _separate(self, source: Val, sink: Val, planes: Axis, pieces: list[Piece]) -> None:
        k, lanes, n = self.k, self.k.target.lanes(self.scalar), planes.size
        for at, count in pieces:
            starts = range(0, count * n, lanes)
            loaded = [k.load_lanes(source, Type(self.scalar, lanes), min(lanes, count * n - s), at * n + s) for s in starts]
            for p in range(n):
                wanted = [p + j * n if j < count else -1 for j in range(lanes)]
                k.store_lanes(sink, gather_lanes(k, loaded, wanted), count, at + p * planes.go)

    # --- blocks transposed in registers ---

    def _blocks(self, begin: Val, end: Val, others: list[Axis], fast: Axis) -> int:
        """`fast` runs along the source, the last axis along the destination.

        The longer of them is cut into cache lines, the shorter one walked inside, so that lines touched in part are touched again soon.
        """
        k, last = self.k, self.axes[-1]
        side = min(k.target.lanes(self.scalar), 16, 1 << (max(fast.size, last.size) - 1).bit_length())
        major, minor = (fast, last) if fast.size >= last.size else (last, fast)
        line = max(side, LINE_BYTES // self.itemsize)
        cuts = -(-major.size // line)
        dims = [*(a.size for a in others), cuts]
        lead = leading_axes(dims, ENOUGH_TASKS)

        def block(coordinates: list[Val]) -> None:
            source, sink = self._at(coordinates[:-1], others)
            start = coordinates[-1] * line

            def some(count: int) -> None:
                def step(at: Val, width: int) -> None:
                    for done in range(0, count, side):
                        corner = (start + done, at) if major is fast else (at, start + done)
                        sizes = (min(side, count - done), width)
                        self._tile(source, sink, fast, corner, sizes if major is fast else sizes[::-1], side)

                whole = minor.size - minor.size % side
                k.loop(0, whole, side, lambda at: step(at, side))
                if whole < minor.size:
                    step(k.index(whole), minor.size - whole)

            rest = major.size % line
            if rest and cuts > 1:
                k.if_(k.compare("lt", coordinates[-1], cuts - 1), lambda: some(line), lambda: some(rest))
            else:
                some(rest or line)

        task_loop(k, begin, end, dims[:lead], lambda head: nest(k, dims[lead:], lambda tail: block([*head, *tail])))
        return prod(dims[:lead])

    def _tile(self, source: Val, sink: Val, fast: Axis, corner: tuple[Val, Val], sizes: tuple[int, int], side: int) -> None:
        """One block: corner and sizes along the fast and the last axis."""
        k, last, type_ = self.k, self.axes[-1], Type(self.scalar, side)
        loaded = [k.load_lanes(source, type_, sizes[0], corner[0] + (corner[1] + j) * last.come) for j in range(sizes[1])]
        loaded += [k.zero(type_)] * (side - len(loaded))
        for i, value in enumerate(transposed(k, loaded, self.itemsize)[: sizes[0]]):
            k.store_lanes(sink, value, sizes[1], corner[1] + (corner[0] + i) * fast.go)
