"""Reduction of runs of rows whose lengths are data."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.loops import Piece, collapse, drivers, nest, position, vector_row
from cortado.compiler.lang import I32, INDEX, Type
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target


def lower_segment_reduce(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """A task is a run. Lengths are clipped so that no row beyond the last, and none before the first, is read."""
    (x, lengths), (y,) = ins, outs
    if y.type.size == 0:
        return []
    inner = collapse(x.shape[1:], [x.strides[1:], y.strides[1:]])
    come, go = inner.strides
    k = KernelBuilder(f"segment_{node.attrs['mode']}", target)
    source, counts, sink = k.param("in0"), k.param("in1"), k.param("out")
    begin, end = drivers(k)
    lanes = target.lanes("f32") if come[-1] == go[-1] == 1 else 1
    run = _Run(k, node.attrs["mode"], Type("f32", min(lanes, 1 << (inner.shape[-1] - 1).bit_length())))
    rows, distance, out_distance = x.shape[0], x.strides[0], y.strides[0]

    def past(number: Val, start: Val) -> Val:
        """The row after the run that begins at `start`."""
        length = k.convert(k.load(counts, I32, number * lengths.strides[0]), INDEX, "sext")
        return k.min(start + k.max(length, 0), rows)

    def one(number: Val, start: Val) -> list[Val]:
        stop = past(number, start)
        count = k.convert(stop - start, I32, "trunc")

        def line(coordinates: list[Val]) -> None:
            at = k.offset(source, position(k, coordinates, come[:-1]), "f32")
            to = k.offset(sink, number * out_distance + position(k, coordinates, go[:-1]), "f32")

            def body(pieces: list[Piece]) -> None:
                places = [(k.offset(at, i * come[-1], "f32"), n) for i, n in pieces]
                totals = run.over(places, (start, stop), distance, count)
                for total, (i, n) in zip(totals, pieces, strict=True):
                    k.store_lanes(to, total, n, i * go[-1])

            vector_row(k, inner.shape[-1], run.kind.lanes, 4, body)

        nest(k, inner.shape[:-1], line)
        return [stop]

    (start,) = k.loop(0, begin, 1, lambda number, start: [past(number, start)], [k.index(0)])
    k.loop(begin, end, 1, one, [start])
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("input", 1), Ref("output", 0)), y.shape[0])]


class _Run:
    """The reduction of one run, for a few vectors of neighbouring columns."""

    def __init__(self, k: KernelBuilder, mode: str, kind: Type) -> None:
        self.k, self.mode, self.kind = k, mode, kind

    def over(self, places: Sequence[tuple[Val, int]], run: tuple[Val, Val], distance: int, count: Val) -> list[Val]:
        k, kind = self.k, self.kind
        combine = k.max if self.mode == "max" else lambda a, b: a + b
        start = k.const(-inf if self.mode == "max" else 0.0, kind)

        def trip(row: Val, *totals: Val) -> list[Val]:
            loaded = [k.load_lanes(place, kind, n, row * distance) for place, n in places]
            return [combine(total, value) for total, value in zip(totals, loaded, strict=True)]

        totals = k.loop(*run, 1, trip, [start] * len(places))
        if self.mode == "sum":
            return list(totals)
        empty = k.compare("eq", count, 0)
        if self.mode == "mean":
            number = k.broadcast(k.convert(count, Type("f32"), "sitofp"), kind.lanes)
            totals = tuple(total / number for total in totals)
        return [k.select(empty, k.zero(kind), total) for total in totals]
