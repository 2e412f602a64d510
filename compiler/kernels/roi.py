"""Kernels of regions of interest: roi_align, roi_pool, heatmap_keypoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import pi
from typing import Any

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels import math, trigonometry
from cortado.compiler.kernels.boxes import load_row, to_float, to_index
from cortado.compiler.kernels.loops import Piece, drivers, task_loop, vector_row
from cortado.compiler.kernels.math import fma
from cortado.compiler.lang import F32, I32, Type
from cortado.compiler.ops.roi import LARGEST_GRID, LARGEST_STEP, SINGULAR
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target

LOWEST = -3.4028234663852886e38  # of float32
FARTHEST = float(1 << 20)  # pixels: boxes beyond are brought here, so that their numbers are exact
UNROLL = 8  # vectors of channels that share the arithmetic of a sample

Attrs = Mapping[str, Any]


def lower_roi_align(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """A task is a row of a box's cells."""
    (x, rois), (out,) = ins, outs
    if out.type.size == 0:
        return []
    attrs = node.attrs
    k = KernelBuilder("roi_align", target)
    source, boxes, sink = k.param("in0"), k.param("in1"), k.param("out")
    begin, end = drivers(k)
    wide = 5 if attrs["rotated"] else 4
    extra = rois.shape[1] - wide

    def row(box_number: Val, line: Val) -> None:
        at = box_number * rois.strides[0]
        image = to_index(k, k.load(boxes, F32, at), x.shape[0] - 1) if extra else k.index(0)
        features = k.offset(source, image * x.strides[0], "f32")
        samples = Samples(k, x, load_row(k, boxes, at + extra, wide), attrs)
        into = k.offset(sink, box_number * out.strides[0] + line * out.strides[1], "f32")
        k.loop(
            0,
            out.shape[2],
            1,
            lambda column: samples.mean(features, line, column, k.offset(into, column * out.strides[2], "f32")),
        )

    task_loop(k, begin, end, out.shape[:2], lambda at: row(*at))
    tasks = out.shape[0] * out.shape[1]
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("input", 1), Ref("output", 0)), tasks, tasks)]


class Samples:
    """The samples of one box. An axis is (start, size of a cell, number of samples, the same as f32)."""

    def __init__(self, k: KernelBuilder, x: Operand, box: Sequence[Val], attrs: Attrs) -> None:
        self.k, self.x, self.turn = k, x, None
        scaled = [side * float(attrs["scale"]) for side in box[:4]]
        shift = 0.5 if attrs["aligned"] else 0.0
        if attrs["rotated"]:
            sizes = scaled[2:]
            theta = box[4] * (pi / 180)
            self.turn = trigonometry.sin(k, theta), trigonometry.cos(k, theta), scaled[0] - shift, scaled[1] - shift
        else:
            scaled = [side - shift for side in scaled]
            sizes = [scaled[2] - scaled[0], scaled[3] - scaled[1]]
        if not attrs["aligned"]:
            sizes = [k.max(size, 1.0) for size in sizes]
        starts = [size * -0.5 for size in sizes] if attrs["rotated"] else scaled[:2]
        pooled = attrs["pooled_w"], attrs["pooled_h"]
        self.across, self.down = (self._axis(*axis, attrs["sampling"]) for axis in zip(starts, sizes, pooled, strict=True))

    def _axis(self, start: Val, size: Val, pooled: int, sampling: int) -> tuple[Val, Val, Val, Val]:
        k = self.k
        cell = size / float(pooled)
        number = k.index(sampling) if sampling else to_index(k, k.virtual("ceil", cell), LARGEST_GRID)
        return start, cell, number, to_float(k, k.max(number, 1))

    def mean(self, features: Val, line: Val, column: Val, into: Val) -> None:
        """All channels of one cell."""
        k = self.k
        count = self.across[3] * self.down[3]

        def body(pieces: list[Piece]) -> None:
            lanes = max(count for _, count in pieces)
            kind = Type("f32", 1 << (lanes - 1).bit_length())

            def sample(i: Val, j: Val, totals: Sequence[Val]) -> list[Val]:
                corners = self.corners(i, j, line, column)
                sums = list(totals)
                for place, weight in corners:
                    wide = k.broadcast(weight, kind.lanes)
                    for number, (at, size) in enumerate(pieces):
                        sums[number] = fma(k, wide, k.load_lanes(features, kind, size, place + at), sums[number])
                return sums

            def rows(i: Val, *totals: Val) -> tuple[Val, ...]:
                return k.loop(0, self.across[2], 1, lambda j, *inner: sample(i, j, inner), totals)

            totals = k.loop(0, self.down[2], 1, rows, [k.zero(kind)] * len(pieces))
            divisor = k.broadcast(count, kind.lanes)
            for total, (at, size) in zip(totals, pieces, strict=True):
                k.store_lanes(into, total / divisor, size, at)

        lanes = min(k.target.lanes("f32"), 1 << (self.x.shape[3] - 1).bit_length())
        vector_row(k, self.x.shape[3], lanes, min(UNROLL, -(-self.x.shape[3] // lanes)), body)

    def corners(self, i: Val, j: Val, line: Val, column: Val) -> list[tuple[Val, Val]]:
        """Where the four neighbours of a sample are and what they weigh; nothing beyond the edge."""
        k, x = self.k, self.x
        y_at, x_at = self._position(self.down, line, i), self._position(self.across, column, j)
        if self.turn is not None:
            sine, cosine, centre_x, centre_y = self.turn
            y_at, x_at = y_at * cosine - x_at * sine + centre_y, x_at * cosine + y_at * sine + centre_x
        height, width = x.shape[1:3]
        good = (y_at >= -1.0) & (y_at <= float(height)) & (x_at >= -1.0) & (x_at <= float(width))
        top, bottom, fy = self._neighbours(k.select(good, y_at, 0.0), height, x.strides[1])
        left, right, fx = self._neighbours(k.select(good, x_at, 0.0), width, x.strides[2])
        gy, gx = k.select(good, 1.0 - fy, 0.0), 1.0 - fx
        fy = k.select(good, fy, 0.0)
        return [(top + left, gy * gx), (top + right, gy * fx), (bottom + left, fy * gx), (bottom + right, fy * fx)]

    def _position(self, axis: tuple[Val, Val, Val, Val], cell: Val, sample: Val) -> Val:
        start, size, _, number = axis
        return start + to_float(self.k, cell) * size + (to_float(self.k, sample) + 0.5) * size / number

    def _neighbours(self, at: Val, size: int, stride: int) -> tuple[Val, Val, Val]:
        k = self.k
        at = k.max(at, 0.0)
        low = k.min(k.virtual("floor", at), float(size - 1))
        first = to_index(k, low, size - 1)
        return first * stride, k.min(first + 1, size - 1) * stride, k.select(low >= float(size - 1), 0.0, at - low)


def lower_roi_pool(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """A task is a row of a box's cells."""
    (x, rois), (out, places) = ins, outs
    if out.type.size == 0:
        return []
    k = KernelBuilder("roi_pool", target)
    source, boxes, sink, numbers = k.param("in0"), k.param("in1"), k.param("out"), k.param("places")
    begin, end = drivers(k)
    _, height, width, channels = x.shape
    lanes = min(target.lanes("f32"), 1 << (channels - 1).bit_length())

    def row(box_number: Val, line: Val) -> None:
        box = load_row(k, boxes, box_number * rois.strides[0], 5)
        features = k.offset(source, to_index(k, box[0], x.shape[0] - 1) * x.strides[0], "f32")
        left, top, right, bottom = (_rounded(k, side * float(node.attrs["scale"])) for side in box[1:])
        rows = _cell(k, top, bottom, line, out.shape[1], height)

        def cell(column: Val) -> None:
            columns = _cell(k, left, right, column, out.shape[2], width)
            into = k.offset(sink, _at(out, box_number, line, column), "f32")
            to = k.offset(numbers, _at(places, box_number, line, column), "i32")

            def body(pieces: list[Piece]) -> None:
                for at, count in pieces:
                    best, found = _largest(k, k.offset(features, at, "f32"), x, rows, columns, count, lanes)
                    k.store_lanes(into, best, count, at)
                    k.store_lanes(to, found, count, at)

            vector_row(k, channels, lanes, 1, body)

        k.loop(0, out.shape[2], 1, cell)

    task_loop(k, begin, end, out.shape[:2], lambda at: row(*at))
    refs = (Ref("input", 0), Ref("input", 1), Ref("output", 0), Ref("output", 1))
    tasks = out.shape[0] * out.shape[1]
    return [KernelCall(k.finish(), refs, tasks, tasks)]


def _at(operand: Operand, *coordinates: Val) -> Val:
    total = coordinates[0] * operand.strides[0]
    for coordinate, stride in zip(coordinates[1:], operand.strides[1:], strict=False):
        total = total + coordinate * stride
    return total


def _rounded(k: KernelBuilder, value: Val) -> Val:
    """To the nearest whole number, halves away from zero; NaN gives 0."""
    whole = k.virtual("floor", k.virtual("abs", value) + 0.5)
    whole = k.min(k.max(whole, 0.0), FARTHEST)
    return k.select(value < 0.0, 0.0 - whole, whole)


def _cell(k: KernelBuilder, first: Val, last: Val, number: Val, pooled: int, size: int) -> tuple[Val, Val]:
    """Pixels [low, high) of a cell along one axis."""
    cell = k.max(last - first + 1.0, 1.0) / float(pooled)
    low = k.virtual("floor", to_float(k, number) * cell) + first
    high = k.virtual("ceil", to_float(k, number + 1) * cell) + first
    return to_index(k, low, size), to_index(k, high, size)


def _largest(
    k: KernelBuilder, features: Val, x: Operand, rows: tuple[Val, Val], columns: tuple[Val, Val], count: int, lanes: int
) -> tuple[Val, Val]:
    """The largest values of a window and where they are; 0 and -1 where the window is empty."""
    kind, whole = Type("f32", lanes), Type("i32", lanes)

    def pixel(i: Val, j: Val, best: Val, found: Val) -> list[Val]:
        value = k.load_lanes(features, kind, count, i * x.strides[1] + j * x.strides[2])
        more = value > best
        here = k.broadcast(k.convert(i * x.shape[2] + j, I32, "trunc"), lanes)
        return [k.select(more, value, best), k.select(more, here, found)]

    def line(i: Val, best: Val, found: Val) -> tuple[Val, ...]:
        return k.loop(*columns, 1, lambda j, *inner: pixel(i, j, *inner), [best, found])

    best, found = k.loop(*rows, 1, line, [k.const(LOWEST, kind), k.const(-1, whole)])
    there = (rows[0] < rows[1]) & (columns[0] < columns[1])
    return k.select(there, best, k.zero(kind)), found


def lower_heatmap_keypoint(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """A task is a keypoint of a box."""
    (maps, boxes), (out,) = ins, outs
    if out.type.size == 0:
        return []
    k = KernelBuilder("heatmap_keypoint", target)
    source, rows, sink = k.param("in0"), k.param("in1"), k.param("out")
    begin, end = drivers(k)

    def point(number: Val, keypoint: Val) -> None:
        heat = _Heat(k, k.offset(source, number * maps.strides[0] + keypoint * maps.strides[1], "f32"), maps)
        values = heat.keypoint(load_row(k, rows, number * boxes.strides[0], 4), node.attrs["probability"])
        for i, value in enumerate(values):
            k.store(sink, value, number * out.strides[0] + keypoint + i * out.strides[1])

    task_loop(k, begin, end, maps.shape[:2], lambda at: point(*at))
    tasks = maps.shape[0] * maps.shape[1]
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("input", 1), Ref("output", 0)), tasks, tasks)]


class _Heat:
    """One map."""

    def __init__(self, k: KernelBuilder, source: Val, maps: Operand) -> None:
        self.k, self.source, self.size, self.stride = k, source, maps.shape[2], maps.strides[2]

    def load(self, row: Val, column: Val) -> Val:
        return self.k.load(self.source, F32, row * self.stride + column)

    def keypoint(self, box: Sequence[Val], probability: bool) -> list[Val]:
        k, size = self.k, self.size
        zero = k.index(0)

        def larger(row: Val, column: Val, best: Val, *at: Val) -> list[Val]:
            value = self.load(row, column)
            more = value > best
            return [k.select(more, value, best), k.select(more, row, at[0]), k.select(more, column, at[1])]

        best, row, column = self._all(larger, [self.load(zero, zero), zero, zero])
        dx, dy, score = self._summit(row, column)
        lengths = [k.max(box[i + 2] - box[i], 1.0) for i in range(2)]
        x = box[0] + (to_float(k, column) + 0.5 + dx) * lengths[0] / float(size)
        y = box[1] + (to_float(k, row) + 0.5 + dy) * lengths[1] / float(size)
        share = k.zero(F32)
        if probability:
            (total,) = self._all(lambda r, c, total: [total + math.exp(k, self.load(r, c) - best)], [k.zero(F32)])
            share = 1.0 / total
        return [x, y, score, share]

    def _all(self, body: Callable[..., list[Val]], start: list[Val]) -> tuple[Val, ...]:
        k = self.k

        def line(row: Val, *carried: Val) -> tuple[Val, ...]:
            return k.loop(0, self.size, 1, lambda column, *inner: body(row, column, *inner), carried)

        return k.loop(0, self.size, 1, line, start)

    def _summit(self, row: Val, column: Val) -> tuple[Val, Val, Val]:
        """Offset and value of the extremum of the quadratic through the cell and its neighbours; the cell itself where there is none."""
        k = self.k
        f = [[self.load(r, c) for c in self._mirrored(column)] for r in self._mirrored(row)]
        gx, gy = (f[1][2] - f[1][0]) * 0.5, (f[2][1] - f[0][1]) * 0.5
        xx, yy = f[1][0] - f[1][1] * 2.0 + f[1][2], f[0][1] - f[1][1] * 2.0 + f[2][1]
        xy = (f[2][2] - f[2][0] - f[0][2] + f[0][0]) * 0.25
        det = xx * yy - xy * xy
        flat = k.virtual("abs", det) < SINGULAR
        divisor = k.select(flat, 1.0, det)
        dx, dy = (xy * gy - yy * gx) / divisor, (xy * gx - xx * gy) / divisor
        far = k.max(k.virtual("abs", dx), k.virtual("abs", dy))
        beyond = far > LARGEST_STEP
        dx, dy = (k.select(beyond, d / far * LARGEST_STEP, d) for d in (dx, dy))
        curve = xx * dx * dx + xy * 2.0 * dx * dy + yy * dy * dy
        score = f[1][1] + (gx * dx + gy * dy) + curve * 0.5
        return k.select(flat, 0.0, dx), k.select(flat, 0.0, dy), k.select(flat, f[1][1], score)

    def _mirrored(self, at: Val) -> list[Val]:
        k = self.k
        return [
            k.select(at > 0, at - 1, k.min(at + 1, self.size - 1)),
            at,
            k.select(at + 1 < self.size, at + 1, k.max(at - 1, 0)),
        ]
