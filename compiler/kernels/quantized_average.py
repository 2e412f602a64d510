"""Quantized averages, over windows and over whole axes, and sums. Sums are exact integers; one multiplication rounds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.loops import Piece, collapse, drivers, leading_axes, nest, position, task_loop, vector_row
from cortado.compiler.kernels.pool import Reduction, lower_pool
from cortado.compiler.kernels.quantized_pointwise import narrow, single
from cortado.compiler.kernels.requantize import clamped, load_bytes, rounded_even, rounded_mean, store_bytes, widened
from cortado.compiler.lang import F32, I32, Type
from cortado.compiler.ops.requantize import mean_scale, scale_of
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType


@dataclass(frozen=True)
class Mean:
    """Sums of bytes to the bytes of their average. x, y: float32 scales of input and result, as Python floats."""

    signed: bool
    x: float
    y: float
    x_zero: int
    zero: int
    lo: int
    hi: int
    rounding: str

    stored = "i8"

    def finish(self, k: KernelBuilder, total: Val, cells: Val | int, divisor: Val | int) -> Val:
        """total: i32 sums of `cells` bytes, zero points included. divisor: what the average divides by. Gives i32 results."""
        moved = (
            k.const(self.x_zero * cells, total.type)
            if isinstance(cells, int)
            else k.broadcast(cells * self.x_zero, total.type.lanes)
        )
        acc = total - moved
        if self.rounding == "even":
            return rounded_even(
                k, single(k, acc) * k.broadcast(self.scale(k, divisor), acc.type.lanes), self.zero, self.lo, self.hi
            )
        bits = k.convert(self.scale(k, divisor), I32, "bitcast")
        multiplier = k.broadcast((bits & 0x7FFFFF) | 0x800000, acc.type.lanes)
        shift = k.broadcast(k.const(150, I32) - k.binary("lshr", bits, 23), acc.type.lanes)
        return clamped(k, rounded_mean(k, acc, multiplier, shift), self.zero, self.lo, self.hi)

    def store(self, k: KernelBuilder, place: Val, total: Val, cells: int, divisor: int, count: int) -> None:
        """The results for the first `count` lanes of sums of `cells` bytes each."""
        store_bytes(k, place, [self.finish(k, total, cells, divisor)], count)

    def scale(self, k: KernelBuilder, divisor: Val | int) -> Val:
        """float32(x / float32(y * divisor))."""
        if isinstance(divisor, int):
            return k.const(float(np.float32(self.x) / (np.float32(self.y) * np.float32(divisor))), F32)
        return k.const(self.x, F32) / (k.convert(divisor, F32, "sitofp") * self.y)


def mean_of(kind: TensorType, attrs: Mapping[str, Any]) -> Mean:
    """kind: of the input. attrs: of q_mean or q_average_pool."""
    scale, zero = scale_of(kind)
    quant = attrs["quant"]
    y = float(np.float32(quant.scales[0]))
    return Mean(kind.dtype == "int8", float(scale), y, zero, quant.zero_points[0], attrs["lo"], attrs["hi"], attrs["rounding"])


@dataclass(frozen=True)
class RealMean:
    """Sums of bytes to their average in float32. scale: a float32, as Python float."""

    signed: bool
    scale: float
    x_zero: int

    stored = "f32"

    def store(self, k: KernelBuilder, place: Val, total: Val, cells: int, divisor: int, count: int) -> None:
        """As of Mean; the scale divides."""
        k.store_lanes(place, single(k, total - self.x_zero * cells) * self.scale, count)


def real_mean_of(kind: TensorType, cells: int) -> RealMean:
    """Of `cells` elements of a tensor of this kind."""
    scale, zero = scale_of(kind)
    return RealMean(kind.dtype == "int8", float(mean_scale(scale, np.float32(1), cells)), zero)


@dataclass(frozen=True)
class _WindowMean(Reduction):
    means: Mean | None = None

    def load(self, k: KernelBuilder, value: Val) -> Val:
        assert self.means is not None
        return widened(k, value, self.means.signed)

    def finish(self, k: KernelBuilder, total: Val, counts: Sequence[Number]) -> Val:
        assert self.means is not None
        cells = k.index(1)
        for count in counts:
            cells = cells * count
        inside: Val | int = cells.attr if cells.kind == "const" else k.convert(cells, I32, "trunc")
        least = max(inside, 1) if isinstance(inside, int) else k.max(inside, 1)
        return narrow(k, self.means.finish(k, total, inside, least if self.area is None else self.area))


def lower_q_average_pool(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """Windows of x[N,*S,C], int8 or uint8."""
    area = prod(node.attrs["kernel"]) if node.attrs["count_include_pad"] else None
    return lower_pool(
        node,
        ins[0],
        outs[0],
        target,
        _WindowMean(lambda k, a, b: a + b, 0, True, area, mean_of(node.inputs[0].type, node.attrs)),
        "i32",
    )


def lower_q_reduce(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """q_mean, q_sum and dequantized_mean over any axes; vectors along the last axis where it is kept."""
    (x,), (y,), axes = ins, outs, node.attrs["axes"]
    if y.type.size == 0:
        return []
    kept = [i for i in range(len(x.shape)) if i not in axes]
    out_strides = [y.strides[i] for i in kept] if node.attrs["keepdims"] else list(y.strides)
    over = collapse([x.shape[i] for i in axes], [[x.strides[i] for i in axes]])
    space = collapse([x.shape[i] for i in kept], [[x.strides[i] for i in kept], out_strides])
    along = space.strides[0][-1] == space.strides[1][-1] == 1
    lanes = target.lanes("i32") if along else 1
    k = KernelBuilder(node.op, target)
    source, sink = k.param("in0"), k.param("out")
    begin, end = drivers(k)
    outer = space.shape[:-1]
    lead = leading_axes(outer)
    count, kind = prod(over.shape), node.inputs[0].type
    mean = real_mean_of(kind, count) if node.op == "dequantized_mean" else mean_of(kind, node.attrs)
    divisor = 1 if node.op == "q_sum" else count

    def row(at: list[Val]) -> None:
        come = k.offset(source, position(k, at, space.strides[0][:-1]), "i8")
        go = k.offset(sink, position(k, at, space.strides[1][:-1]), mean.stored)

        def body(pieces: list[Piece]) -> None:
            places = [k.offset(come, i * space.strides[0][-1], "i8") for i, _ in pieces]

            def level(axis: int, offset: Val, sums: Sequence[Val]) -> Sequence[Val]:
                if axis == len(over.shape):
                    loaded = [
                        load_bytes(k, k.offset(place, offset, "i8"), lanes, n, 0)
                        for place, (_, n) in zip(places, pieces, strict=True)
                    ]
                    return [s + widened(k, v, mean.signed) for s, v in zip(sums, loaded, strict=True)]
                step = over.strides[0][axis]
                return k.loop(0, over.shape[axis], 1, lambda i, *inside: level(axis + 1, offset + i * step, inside), sums)

            sums = level(0, k.index(0), [k.zero(Type("i32", lanes))] * len(pieces))
            for total, (i, n) in zip(sums, pieces, strict=True):
                mean.store(k, k.offset(go, i * space.strides[1][-1], mean.stored), total, count, divisor, n)

        vector_row(k, space.shape[-1], lanes, 4, body)

    task_loop(k, begin, end, outer[:lead], lambda head: nest(k, outer[lead:], lambda tail: row([*head, *tail])))
    tasks = prod(outer[:lead])
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("output", 0)), tasks, tasks)]
