"""Resizing of images [N,H,W,C]: sources and weights of rows and columns are tables made while lowering."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.loops import Piece, drivers, leading_axes, nest, position, task_loop, vector_row
from cortado.compiler.kernels.math import fma
from cortado.compiler.kernels.requantize import PACKED, joined, load_bytes, store_bytes, store_some, widened
from cortado.compiler.kernels.strided import MOVED_AS, strided_copy
from cortado.compiler.lang import I32, INDEX, SCALAR_OF, Type
from cortado.compiler.ops.resize import BYTES, ONE, WEIGHT_BITS, bilinear_sources, byte_sources, nearest_sources
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
    """float32, float64, int8, uint8; corners aligned."""
    (x,), (y,) = ins, outs
    if y.type.size == 0:
        return []
    if x.type.dtype in BYTES:
        return _bilinear_bytes(x, y, target)
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


def _bilinear_bytes(x: Operand, y: Operand, target: Target) -> list[KernelCall]:
    """Integers are blended in any order with the same bits. Output columns between the same two input columns form a run: each input
    column is blended vertically once, and each output column costs one product.
    """
    top, bottom, down = byte_sources(x.shape[1], y.shape[1])
    left, right, over = byte_sources(x.shape[2], y.shape[2])
    begins = np.flatnonzero(np.diff(left, prepend=-1))
    longest = int(np.diff(begins, append=y.shape[2]).max())
    left, right = left[begins], right[begins]
    joins = np.array_equal(left[1:], right[:-1])  # a run begins where the one before ends
    channels = x.shape[3]
    k = KernelBuilder(f"resize_bilinear_{x.type.dtype}", target)
    blend = _ByteBlend.of(k, channels, x.type.dtype == "int8")
    tables = [
        _offsets(top, x.strides[1]), _offsets(bottom, x.strides[1]), blend.vertical_table(down),
        _offsets(left, x.strides[2]), _offsets(right, x.strides[2]), np.append(begins, y.shape[2]).astype(np.int32),
        blend.horizontal_table(over),
    ]  # fmt: skip

    def row(pointers: Sequence[Val], image: Val, line: Val, go: Val) -> None:
        source, tops, bottoms, downs, lefts, rights, starts, overs, sink = pointers
        image_at, into = k.offset(source, image * x.strides[0], "i8"), k.offset(sink, go, "i8")
        lines = [k.offset(image_at, _entry(k, table, line), "i8") for table in (tops, bottoms)]
        v = k.broadcast(k.load(downs, I32, line), blend.lanes)

        def body(pieces: list[Piece]) -> None:
            def blended(side: Val) -> list[Val]:
                found = []
                for at, count in pieces:
                    above, below = (load_bytes(k, k.offset(place, side + at, "i8"), blend.room, count, 0) for place in lines)
                    found += blend.vertical(above, below, v, count)
                return found

            def run(number: Val, *before: Val) -> list[Val]:
                low = before or blended(_entry(k, lefts, number))
                high = blended(_entry(k, rights, number))
                segments = [blend.segment(a, b) for a, b in zip(low, high, strict=True)]

                def column(to: Val) -> None:
                    h = k.broadcast(k.load(overs, I32, to), blend.lanes)
                    place = k.offset(into, to * y.strides[2] + pieces[0][0], "i8")
                    blend.store(place, [blend.at(segment, h) for segment in segments], sum(count for _, count in pieces))

                first = _entry(k, starts, number)
                trips = k.min(
                    _entry(k, starts, number + 1) - first, longest
                )  # the second says to estimates how many there may be
                k.loop(0, trips, 1, lambda i: column(first + i))
                return high if before else []

            k.loop(0, len(begins), 1, run, blended(_entry(k, lefts, k.index(0))) if joins else [])

        vector_row(k, channels, blend.room, PACKED * blend.lanes // blend.room, body)

    return _by_rows(k, y, tables, row)


@dataclass(frozen=True)
class _ByteBlend:
    """The arithmetic of bytes, in lanes of 32 bits.

    dots: by products of pairs of int16, which x86-64 has where those of 32 bits are slow or none. The cells above each other are a pair,
    and so is a difference D of 21 bits: D * h = (D >> 4) * (16 * h) + (D & 15) * h. Channels then lie in two vectors as interleaving
    16 bytes by 16 bytes leaves them, which AVX does in one instruction: four here, four there.
    """

    k: KernelBuilder
    signed: bool
    lanes: int
    dots: bool

    @staticmethod
    def of(k: KernelBuilder, channels: int, signed: bool) -> _ByteBlend:
        widest = k.target.lanes("i32")
        of_pairs = min(widest, max(4, 1 << ((channels + 1) // 2 - 1).bit_length()))
        if k.target.has("dot2", *(Type("i32", of_pairs),) * 3):
            return _ByteBlend(k, signed, of_pairs, True)
        return _ByteBlend(k, signed, min(widest, 1 << (channels - 1).bit_length()), False)

    @property
    def room(self) -> int:
        """Channels that are loaded together."""
        return 2 * self.lanes if self.dots else self.lanes

    def vertical_table(self, weights: np.ndarray) -> np.ndarray:
        """int32: as `vertical` takes them."""
        return (ONE - weights) | weights << 16 if self.dots else weights

    def horizontal_table(self, weights: np.ndarray) -> np.ndarray:
        """int32: as `at` takes them."""
        return weights | weights << 20 if self.dots else weights

    def vertical(self, a: Val, b: Val, weight: Val, count: int) -> list[Val]:
        """(a << 11) + (b - a) * weight + 2^10 of `count` bytes: the last, a half when it comes to rounding, cancels in differences."""
        k, half = self.k, self.k.const(1 << (WEIGHT_BITS - 1), weight.type)
        if not self.dots:
            a, b = (widened(k, cell, self.signed) for cell in (a, b))
            return [(a << WEIGHT_BITS) + (b - a) * weight + half]
        a, b = (widened(k, cell, self.signed, "i16") for cell in (a, b))
        low = [i + x for i in range(self.room) if i % 8 < 4 for x in (0, self.room)]
        pairs = [k.shuffle(a, b, order) for order in (low, [i + 4 for i in low])][: 1 if count <= 4 else 2]
        return [k.virtual("dot2", half, k.convert(pair, weight.type, "bitcast"), weight) for pair in pairs]

    def segment(self, a: Val, b: Val) -> tuple[Val, Val]:
        """Start and slope of the line from a to b, as `at` takes them."""
        slope = b - a
        if self.dots:
            slope = slope << 12 & -0x10000 | slope & 15
        return a << WEIGHT_BITS, slope

    def at(self, segment: tuple[Val, Val], weight: Val) -> Val:
        """The result as the number of a byte."""
        start, slope = segment
        total = self.k.virtual("dot2", start, slope, weight) if self.dots else start + slope * weight
        return total >> (2 * WEIGHT_BITS)

    def store(self, place: Val, numbers: Sequence[Val], count: int) -> None:
        """The first `count` channels of vectors as `vertical` has them."""
        k = self.k
        if self.lanes == 1:
            return store_bytes(k, place, numbers, count)
        words = joined(k, numbers)
        narrow = "narrow_i8" if self.signed else "narrow_u8"
        has = k.target.has(narrow, words.type, words.type)
        packed = k.virtual(narrow, words, k.zero(words.type)) if has else k.convert(words, Type("i8", words.type.lanes), "trunc")
        if self.dots and len(numbers) > 1:
            channel = np.arange(words.type.lanes).reshape(-1, self.room // 8, 2, 4).swapaxes(1, 2).reshape(-1)
            packed = k.shuffle(packed, packed, np.argsort(channel).tolist())
        store_some(k, place, packed, 0, count)


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
