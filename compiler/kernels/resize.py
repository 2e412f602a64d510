"""Resizing of images [N,H,W,C]: sources and weights of rows and columns are tables made while lowering."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.loops import Piece, drivers, leading_axes, nest, position, task_loop, vector_row
from cortado.compiler.kernels.math import fma
from cortado.compiler.kernels.strided import MOVED_AS, strided_copy
from cortado.compiler.lang import I32, INDEX, SCALAR_OF, Type
from cortado.compiler.ops.resize import bilinear_sources, nearest_sources
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target


def lower_resize_nearest(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """Any type. Whole factors are a copy with repeated axes, others look sources up."""
    (x,), (y,) = ins, outs
    if y.type.size == 0:
        return []
    n, height, width, channels = x.shape
    tall = nearest_sources(height, y.shape[1], node.attrs["scale_h"])
    wide = nearest_sources(width, y.shape[2], node.attrs["scale_w"])
    factors = (y.shape[1] // height, y.shape[2] // width)
    if all(
        f and np.array_equal(at, np.arange(size * f) // f)
        for f, at, size in zip(factors, (tall, wide), (height, width), strict=True)
    ):
        (fh, fw), a, b = factors, x.strides, y.strides
        shape = (n, height, fh, width, fw, channels)
        return strided_copy(
            "resize_nearest", x.type.itemsize, shape, (a[0], a[1], 0, a[2], 0, a[3]), (b[0], b[1] * fh, b[1], b[2] * fw, b[2], b[3]), target
        )  # fmt: skip
    scalar = MOVED_AS[x.type.itemsize]
    k = KernelBuilder(f"resize_nearest_{scalar}", target)
    lanes = min(target.lanes(scalar), 1 << (channels - 1).bit_length())

    def row(pointers: Sequence[Val], image: Val, line: Val, go: Val) -> None:
        source, rows, columns, sink = pointers
        come = k.offset(source, image * x.strides[0] + _entry(k, rows, line), scalar)

        def pixel(column: Val) -> None:
            place = (
                k.offset(come, _entry(k, columns, column), scalar),
                k.offset(k.offset(sink, go, scalar), column * y.strides[2], scalar),
            )

            def body(pieces: list[Piece]) -> None:
                values = [k.load_lanes(place[0], Type(scalar, lanes), count, at) for at, count in pieces]
                for value, (at, count) in zip(values, pieces, strict=True):
                    k.store_lanes(place[1], value, count, at)

            vector_row(k, channels, lanes, 4, body)

        k.loop(0, y.shape[2], 1, pixel)

    return _by_rows(k, y, [_offsets(tall, x.strides[1]), _offsets(wide, x.strides[2])], row)


def lower_resize_bilinear(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """float32, float64; corners aligned."""
    (x,), (y,) = ins, outs
    if y.type.size == 0:
        return []
    channels, scalar, dtype = x.shape[3], SCALAR_OF[x.type.dtype], x.type.numpy
    top, bottom, down = bilinear_sources(x.shape[1], y.shape[1])
    left, right, over = bilinear_sources(x.shape[2], y.shape[2])
    tables = [
        _offsets(top, x.strides[1]), _offsets(bottom, x.strides[1]), down.astype(dtype),
        _offsets(left, x.strides[2]), _offsets(right, x.strides[2]), over.astype(dtype),
    ]  # fmt: skip
    k = KernelBuilder(f"resize_bilinear_{scalar}", target)
    lanes = min(target.lanes(scalar), 1 << (channels - 1).bit_length())
    type_ = Type(scalar, lanes)

    def row(pointers: Sequence[Val], image: Val, line: Val, go: Val) -> None:
        source, tops, bottoms, downs, lefts, rights, overs, sink = pointers
        image_at = k.offset(source, image * x.strides[0], scalar)
        lines = [k.offset(image_at, _entry(k, table, line), scalar) for table in (tops, bottoms)]
        v = k.broadcast(k.load(downs, Type(scalar), line), lanes)

        def pixel(column: Val) -> None:
            sides = [_entry(k, table, column) for table in (lefts, rights)]
            h = k.broadcast(k.load(overs, Type(scalar), column), lanes)
            into = k.offset(k.offset(sink, go, scalar), column * y.strides[2], scalar)

            def body(pieces: list[Piece]) -> None:
                blended = []
                for at, count in pieces:
                    cells = [[k.load_lanes(place, type_, count, side + at) for side in sides] for place in lines]
                    above, below = (_blend(k, left, right, h) for left, right in cells)
                    blended.append(_blend(k, above, below, v))
                for value, (at, count) in zip(blended, pieces, strict=True):
                    k.store_lanes(into, value, count, at)

            vector_row(k, channels, lanes, 2, body)

        k.loop(0, y.shape[2], 1, pixel)

    return _by_rows(k, y, tables, row)


def _blend(k: KernelBuilder, a: Val, b: Val, weight: Val) -> Val:
    """(1 - weight) * a + weight * b."""
    product = weight * b
    return fma(k, 1.0 - weight, a, product) if a.type.scalar == "f32" else (1.0 - weight) * a + product


def _offsets(sources: np.ndarray, stride: int) -> np.ndarray:
    return (sources * stride).astype(np.int32)


def _entry(k: KernelBuilder, table: Val, at: Val) -> Val:
    """An int32 of a table as an index."""
    return k.convert(k.load(table, I32, at), INDEX, "sext")


def _by_rows(
    k: KernelBuilder, y: Operand, tables: Sequence[np.ndarray], row: Callable[[Sequence[Val], Val, Val, Val], None]
) -> list[KernelCall]:
    """row(pointers, image, line, where the output's row begins) for every row of every output image."""
    pointers = [k.param("in0"), *(k.param(f"table{i}") for i in range(len(tables))), k.param("out")]
    begin, end = drivers(k)
    dims = y.shape[:2]
    lead = leading_axes(dims)

    def each(coordinates: list[Val]) -> None:
        row(pointers, coordinates[0], coordinates[1], position(k, coordinates, y.strides[:2]))

    task_loop(k, begin, end, dims[:lead], lambda head: nest(k, dims[lead:], lambda tail: each([*head, *tail])))
    refs = (Ref("input", 0), *(Ref("weights", array=table) for table in tables), Ref("output", 0))
    tasks = int(np.prod(dims[:lead]))
    return [KernelCall(k.finish(), refs, tasks, tasks)]
