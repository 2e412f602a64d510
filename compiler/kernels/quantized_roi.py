"""Quantized features of boxes: the samples of roi_align, summed in integers. Needs float64 for the multiplier of each box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.boxes import load_row, to_index
from cortado.compiler.kernels.loops import Piece, drivers, task_loop, vector_row
from cortado.compiler.kernels.requantize import clamped, load_bytes, shifted_away, store_bytes, widened
from cortado.compiler.kernels.roi import UNROLL, Samples
from cortado.compiler.lang import F32, I32, I64, Type
from cortado.compiler.ops.requantize import scale_of
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target

F64 = Type("f64")


def lower_q_roi_align(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """A task is a row of a box's cells."""
    (x, rois), (out,), attrs = ins, outs, node.attrs
    if out.type.size == 0:
        return []
    k = KernelBuilder("q_roi_align", target)
    source, boxes, sink = k.param("in0"), k.param("in1"), k.param("out")
    begin, end = drivers(k)
    extra = rois.shape[1] - 4

    def row(box_number: Val, line: Val) -> None:
        at = box_number * rois.strides[0]
        image = to_index(k, k.load(boxes, F32, at), x.shape[0] - 1) if extra else k.index(0)
        features = k.offset(source, image * x.strides[0], "i8")
        samples = _QuantizedSamples(k, x, load_row(k, boxes, at + extra, 4), {**attrs, "aligned": False, "rotated": False}, node)
        into = k.offset(sink, box_number * out.strides[0] + line * out.strides[1], "i8")
        k.loop(0, out.shape[2], 1, lambda i: samples.mean(features, line, i, k.offset(into, i * out.strides[2], "i8")))

    task_loop(k, begin, end, out.shape[:2], lambda at: row(*at))
    tasks = out.shape[0] * out.shape[1]
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("input", 1), Ref("output", 0)), tasks, tasks)]


class _QuantizedSamples(Samples):
    def __init__(self, k: KernelBuilder, x: Operand, box: Sequence[Val], attrs: dict[str, object], node: Node) -> None:
        super().__init__(k, x, box, attrs)
        kind, quant = node.inputs[0].type, node.attrs["quant"]
        self.signed, (scale, self.zero) = kind.dtype == "int8", scale_of(kind)
        self.limits = quant.zero_points[0], node.attrs["lo"], node.attrs["hi"]
        self.count = k.convert(self.across[2] * self.down[2], I32, "trunc")
        samples = k.convert(k.max(self.count, 1), F64, "sitofp")
        real = k.const(float(scale), F64) / (samples * (float(np.float32(quant.scales[0])) * 255.0))
        self.multiplier, self.shift = _fixed(k, real)

    def mean(self, features: Val, line: Val, column: Val, into: Val) -> None:
        """All channels of one cell."""
        k = self.k

        def body(pieces: list[Piece]) -> None:
            lanes = 1 << (max(count for _, count in pieces) - 1).bit_length()
            kind = I32.with_lanes(lanes)

            def sample(i: Val, j: Val, totals: Sequence[Val]) -> list[Val]:
                sums = list(totals)
                for place, weight in self.corners(i, j, line, column):
                    wide = k.broadcast(k.convert(k.virtual("round_even", weight * 255.0), I32, "fptosi"), lanes)
                    for number, (at, size) in enumerate(pieces):
                        cells = load_bytes(k, k.offset(features, place + at, "i8"), lanes, size, 0)
                        sums[number] = sums[number] + widened(k, cells, self.signed) * wide
                return sums

            def rows(i: Val, *totals: Val) -> tuple[Val, ...]:
                return k.loop(0, self.across[2], 1, lambda j, *inner: sample(i, j, inner), totals)

            totals = k.loop(0, self.down[2], 1, rows, [k.zero(kind)] * len(pieces))
            unit = k.broadcast(self.count * (255 * self.zero), lanes)
            for total, (at, size) in zip(totals, pieces, strict=True):
                value = _high_product(k, total - unit, k.broadcast(self.multiplier, lanes))
                rounded = shifted_away(k, value, k.broadcast(self.shift, lanes))
                store_bytes(k, k.offset(into, at, "i8"), [clamped(k, rounded, *self.limits)], size)

        lanes = min(k.target.lanes("i32"), 1 << (self.x.shape[3] - 1).bit_length())
        vector_row(k, self.x.shape[3], lanes, min(UNROLL, -(-self.x.shape[3] // lanes)), body)


def _fixed(k: KernelBuilder, real: Val) -> tuple[Val, Val]:
    """ops.quantized_roi.quantized_multiplier at run time, from the number's bits."""
    bits = k.convert(real, I64, "bitcast")
    multiplier = (((bits & ((1 << 52) - 1)) | (1 << 52)) + (1 << 21)) >> 22
    shift = k.const(1022, I32) - k.convert(bits >> 52, I32, "trunc")
    over = k.compare("eq", multiplier, 1 << 31)
    narrow = k.convert(k.select(over, multiplier >> 1, multiplier), I32, "trunc")
    return narrow, k.select(over, shift - 1, shift)


def _high_product(k: KernelBuilder, acc: Val, multiplier: Val) -> Val:
    """acc * multiplier / 2^31, halves away from zero."""
    wide = Type("i64", acc.type.lanes)
    product = k.convert(acc, wide, "sext") * k.convert(multiplier, wide, "sext")
    magnitude = k.max(product, k.zero(wide) - product) + (1 << 30)
    below = k.compare("lt", product, 0)
    magnitude = k.select(below, magnitude - 1, magnitude) >> 31
    return k.convert(k.select(below, k.zero(wide) - magnitude, magnitude), acc.type, "trunc")
