"""Arithmetic on boxes in the kernel language (formulas: `ops.boxes`), and kernels that treat boxes row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels import math
from cortado.compiler.kernels.loops import drivers, task_loop
from cortado.compiler.lang import F32, I32, INDEX
from cortado.compiler.ops.boxes import HALF_TURN, LARGEST_LOG
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target

Attrs = Mapping[str, Any]
Box = Sequence[Val]


def to_float(k: KernelBuilder, index: Val) -> Val:
    """An index (below 2^31) as f32."""
    return k.convert(k.convert(index, I32, "trunc"), F32, "sitofp")


def to_index(k: KernelBuilder, value: Val, most: int) -> Val:
    """trunc of an f32 as an index in 0..most; NaN gives 0."""
    inside = k.min(k.max(value, 0.0), float(most))
    return k.convert(k.convert(inside, I32, "fptosi"), INDEX, "sext")


def load_index(k: KernelBuilder, ptr: Val, at: Val | int, most: int) -> Val:
    """An int32 as an index, brought into 0..most."""
    return k.min(k.max(k.convert(k.load(ptr, I32, at), INDEX, "sext"), 0), most)


def load_row(k: KernelBuilder, ptr: Val, at: Val, count: int) -> list[Val]:
    """`count` neighbouring numbers."""
    return [k.load(ptr, F32, at + i) for i in range(count)]


def store_row(k: KernelBuilder, ptr: Val, at: Val, values: Sequence[Val]) -> None:
    for i, value in enumerate(values):
        k.store(ptr, value, at + i)


def decoded(k: KernelBuilder, box: Box, deltas: Box, weights: Sequence[float], attrs: Attrs) -> list[Val]:
    one = float(bool(attrs["plus_one"]))
    moves = [deltas[i] / weights[i] for i in range(2)]
    growth = [math.exp(k, k.min(deltas[i] / weights[i], LARGEST_LOG)) for i in (2, 3)]
    if len(box) == 4:
        sizes = [box[i + 2] - box[i] + one for i in range(2)]
        centres = [moves[i] * sizes[i] + (box[i] + sizes[i] * 0.5) for i in range(2)]
        halves = [growth[i] * sizes[i] * 0.5 for i in range(2)]
        return [centres[i] - halves[i] for i in range(2)] + [centres[i] + halves[i] - one for i in range(2)]
    angle = deltas[4] * HALF_TURN + box[4]
    if attrs["angle_bound"]:
        low, high = float(attrs["angle_low"]), float(attrs["angle_high"])
        angle = k.select(angle < low, angle + (high - low), k.select(angle > high, angle - (high - low), angle))
    return [*(moves[i] * box[i + 2] + box[i] for i in range(2)), *(growth[i] * box[i + 2] for i in range(2)), angle]


def clipped(k: KernelBuilder, box: Box, height: Val, width: Val, attrs: Attrs) -> list[Val]:
    one = float(bool(attrs["plus_one"]))
    limit = [width - one, height - one]

    def inside(value: Val, axis: int) -> Val:
        return k.max(k.min(value, limit[axis]), 0.0)

    if len(box) == 4:
        return [inside(value, i % 2) for i, value in enumerate(box)]
    reach = [(box[i + 2] - one) * 0.5 for i in range(2)]
    low = [inside(box[i] - reach[i], i) for i in range(2)]
    high = [inside(box[i] + reach[i], i) for i in range(2)]
    upright = k.virtual("abs", box[4]) <= float(attrs["clip_angle"])
    cut = [*((low[i] + high[i]) * 0.5 for i in range(2)), *(high[i] - low[i] + one for i in range(2))]
    return [*(k.select(upright, new, old) for new, old in zip(cut, box[:4], strict=True)), box[4]]


def overlap(k: KernelBuilder, a: Box, b: Box, plus_one: bool) -> Val:
    """Intersection over union of upright boxes."""
    one = float(plus_one)
    sides = [k.max(k.min(a[i + 2], b[i + 2]) - k.max(a[i], b[i]) + one, 0.0) for i in range(2)]
    common = sides[0] * sides[1]
    areas = [(box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b)]
    return common / (areas[0] + areas[1] - common)


def lower_bbox_transform(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """A task is a row."""
    (rois, deltas, info), (out,) = ins, outs
    attrs, wide = node.attrs, 5 if node.attrs["rotated"] else 4
    if out.type.size == 0:
        return []
    k = KernelBuilder("bbox_transform", target)
    boxes, changes, sizes, sink = k.param("in0"), k.param("in1"), k.param("in2"), k.param("out")
    begin, end = drivers(k)
    extra = rois.shape[1] - wide

    def row(number: Val) -> None:
        source = number * rois.strides[0]
        image = to_index(k, k.load(boxes, F32, source), info.shape[0] - 1) if extra else k.index(0)
        height, width, scale = load_row(k, sizes, image * info.strides[0], 3)
        height, width = (k.virtual("floor", side / scale + 0.5) for side in (height, width))
        box = load_row(k, boxes, source + extra, wide)
        box[:4] = [side / scale for side in box[:4]]

        def one(group: Val) -> None:
            delta = load_row(k, changes, number * deltas.strides[0] + group * wide, wide)
            moved = clipped(k, decoded(k, box, delta, attrs["weights"], attrs), height, width, attrs)
            if attrs["rescale"]:
                moved[:4] = [side * scale for side in moved[:4]]
            store_row(k, sink, number * out.strides[0] + group * wide, moved)

        k.loop(0, out.shape[1] // wide, 1, one)

    task_loop(k, begin, end, [out.shape[0]], lambda at: row(at[0]))
    return [
        KernelCall(k.finish(), (Ref("input", 0), Ref("input", 1), Ref("input", 2), Ref("output", 0)), out.shape[0], out.shape[0])
    ]


def lower_image_splits(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    (rois, _), (out,) = ins, outs
    images = out.shape[0]
    k = KernelBuilder("image_splits", target)
    boxes, count, sink = k.param("in0"), k.param("in1"), k.param("out")
    begin, end = drivers(k)

    def all_rows(_: Sequence[Val]) -> None:
        k.loop(0, images, 1, lambda image: k.store(sink, k.zero(F32), image))

        def row(number: Val) -> None:
            image = to_index(k, k.load(boxes, F32, number * rois.strides[0]), images - 1)
            k.store(sink, k.load(sink, F32, image) + 1.0, image)

        k.loop(0, load_index(k, count, 0, rois.shape[0]), 1, row)

    task_loop(k, begin, end, [1], all_rows)
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("input", 1), Ref("output", 0)))]
