"""Kernels for rows of which only the first are real: joining, choosing the best, sorting boxes by level. One task each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels import math
from cortado.compiler.kernels.boxes import load_index, load_row
from cortado.compiler.kernels.heap import Heap
from cortado.compiler.kernels.loops import Piece, collapse, drivers, nest, position, task_loop, vector_row
from cortado.compiler.lang import F32, I32, SCALAR_OF, Type
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target


class RowCopy:
    """Copies rows of one operand into another, and clears rows."""

    def __init__(self, k: KernelBuilder, x: Operand, y: Operand) -> None:
        self.k, self.scalar = k, SCALAR_OF[x.type.dtype]
        self.space = collapse(x.shape[1:], [x.strides[1:], y.strides[1:]])
        self.come, self.go = x.strides[0], y.strides[0]

    def copy(self, source: Val, row: Val, sink: Val, to: Val) -> None:
        source = self.k.offset(source, row * self.come, self.scalar)
        self._walk(sink, to, lambda coordinates, at, kind, count: self._loaded(source, coordinates, at, kind, count))

    def clear(self, sink: Val, first: Val, stop: int) -> None:
        """Zeros in rows first .. stop - 1."""
        self.k.loop(first, stop, 1, lambda row: self._walk(sink, row, lambda c, at, kind, count: self.k.zero(kind)))

    def _loaded(self, source: Val, coordinates: list[Val], at: Val, kind: Type, count: int) -> Val:
        start = position(self.k, coordinates, self.space.strides[0][:-1])
        return self.k.load_lanes(source, kind, count, start + at * self.space.strides[0][-1])

    def _walk(self, sink: Val, to: Val, value: Callable[[list[Val], Val, Type, int], Val]) -> None:
        k, (come, go) = self.k, self.space.strides
        length = self.space.shape[-1]
        lanes = min(k.target.lanes(self.scalar), 1 << (length - 1).bit_length()) if come[-1] == go[-1] == 1 else 1
        kind = Type(self.scalar, lanes)
        sink = k.offset(sink, to * self.go, self.scalar)

        def line(coordinates: list[Val]) -> None:
            into = position(k, coordinates, go[:-1])

            def body(pieces: list[Piece]) -> None:
                for at, count in pieces:
                    k.store_lanes(sink, value(coordinates, at, kind, count), count, into + at * go[-1])

            vector_row(k, length, lanes, 1, body)

        nest(k, self.space.shape[:-1], line)


def one_task(k: KernelBuilder, begin: Val, end: Val, body: Callable[[], None]) -> None:
    task_loop(k, begin, end, [1], lambda _: body())


def lower_join_rows(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    *parts, _ = ins
    out = outs[0]
    k = KernelBuilder("join_rows", target)
    sources = [k.param(f"in{i}") for i in range(len(parts))]
    counts, sink, total = k.param("counts"), k.param("out"), k.param("total")
    begin, end = drivers(k)

    def body() -> None:
        at = k.index(0)
        for number, (source, part) in enumerate(zip(sources, parts, strict=True)):
            copy = RowCopy(k, part, out)
            count = load_index(k, counts, number, part.shape[0])
            if out.type.size:
                start = at
                k.loop(0, count, 1, lambda row, c=copy, s=source, start=start: c.copy(s, row, sink, start + row))
            at = at + count
        if out.type.size:
            RowCopy(k, out, out).clear(sink, at, out.shape[0])
        k.store(total, k.convert(at, I32, "trunc"))

    one_task(k, begin, end, body)
    refs = (*(Ref("input", i) for i in range(len(ins))), Ref("output", 0), Ref("output", 1))
    return [KernelCall(k.finish(), refs)]


def lower_top_rows(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    x, keys, _ = ins
    out = outs[0]
    rows = x.shape[0]
    k = KernelBuilder("top_rows", target)
    source, scores, count, sink, total, numbers = (k.param(n) for n in ("in0", "scores", "count", "out", "total", "numbers"))
    begin, end = drivers(k)
    step = keys.strides[0]

    def body() -> None:
        real = load_index(k, count, 0, rows)
        wanted = k.min(real, out.shape[0])
        if out.type.size:
            heap = Heap(k, numbers, lambda number: k.load(scores, F32, number * step))
            copy = RowCopy(k, x, out)
            heap.fill(real)
            k.loop(0, wanted, 1, lambda at: copy.copy(source, heap.pop(real - at), sink, at))
            copy.clear(sink, wanted, out.shape[0])
        k.store(total, k.convert(wanted, I32, "trunc"))

    one_task(k, begin, end, body)
    refs = (*(Ref("input", i) for i in range(3)), Ref("output", 0), Ref("output", 1), Ref("scratch", nbytes=4 * max(rows, 1)))
    return [KernelCall(k.finish(), refs)]


def lower_distribute(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    rois = ins[0]
    low, high = node.attrs["levels"]
    levels = high - low + 1
    k = KernelBuilder("distribute_proposals", target)
    source, count = k.param("in0"), k.param("count")
    sinks = [k.param(f"out{i}") for i in range(levels)]
    restore = k.param("restore")
    totals = [k.param(f"total{i}") for i in range(levels)]
    begin, end = drivers(k)
    restore_step = outs[levels].strides[0] if outs[levels].strides else 1

    def level_of(row: Val) -> Val:
        box = load_row(k, source, row * rois.strides[0] + 1, 4)
        sides = [box[i + 2] - box[i] + float(bool(node.attrs["plus_one"])) for i in range(2)]
        size = k.virtual("sqrt", sides[0] * sides[1]) / float(node.attrs["canonical_size"])
        level = math.log(k, size + 1e-6) / log(2.0) + float(node.attrs["canonical_level"])
        return k.max(k.min(k.virtual("floor", level), float(high)), float(low))

    def body() -> None:
        real = load_index(k, count, 0, rois.shape[0])
        before = k.index(0)
        for number in range(levels):
            copy = RowCopy(k, rois, outs[number])

            def row(at: Val, found: Val, n: int = number, copy: RowCopy = copy, before: Val = before) -> list[Val]:
                here = k.compare("eq", level_of(at), float(low + n))

                def take() -> None:
                    copy.copy(source, at, sinks[n], found)
                    k.store(restore, k.convert(before + found, I32, "trunc"), at * restore_step)

                k.if_(here, take)
                return [k.select(here, found + 1, found)]

            (found,) = k.loop(0, real, 1, row, [k.index(0)])
            copy.clear(sinks[number], found, rois.shape[0])
            k.store(totals[number], k.convert(found, I32, "trunc"))
            before = before + found
        k.loop(real, rois.shape[0], 1, lambda at: k.store(restore, k.zero(I32), at * restore_step))

    one_task(k, begin, end, body)
    refs = (Ref("input", 0), Ref("input", 1), *(Ref("output", i) for i in range(2 * levels + 1)))
    return [KernelCall(k.finish(), refs)]
