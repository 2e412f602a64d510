"""Data movement: transpose, copy (of slices, concats, reshapes that are no views), tile, broadcast_to, pad, gather."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.loops import (
    Piece,
    broadcast_strides,
    collapse,
    drivers,
    leading_axes,
    nest,
    position,
    task_loop,
    vector_row,
)
from cortado.compiler.kernels.strided import MOVED_AS, strided_copy
from cortado.compiler.lang import INDEX, SCALAR_OF, Type
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target


def lower_copy(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """Elements of one view to another of the same shape."""
    (x,), (y,) = ins, outs
    return strided_copy("copy", x.type.itemsize, y.shape, x.strides, y.strides, target)


def lower_transpose(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """Any permutation of axes."""
    (x,), (y,) = ins, outs
    return strided_copy("transpose", x.type.itemsize, y.shape, [x.strides[p] for p in node.attrs["perm"]], y.strides, target)


def lower_broadcast_to(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """numpy's broadcasting, written out."""
    (x,), (y,) = ins, outs
    return strided_copy("broadcast", x.type.itemsize, y.shape, broadcast_strides(x, y.shape), y.strides, target)


def lower_tile(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """Each axis repeated: a copy in which the repetition is an axis of its own."""
    (x,), (y,) = ins, outs
    shape, come, go = [], [], []
    for size, repeats, a, b in zip(x.shape, node.attrs["repeats"], x.strides, y.strides, strict=True):
        shape += [repeats, size]
        come += [0, a]
        go += [size * b, b]
    return strided_copy("tile", x.type.itemsize, shape, come, go, target)


def lower_bitcast(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """A copy of bytes: the sides may be aligned differently."""
    (x,), (y,) = ins, outs
    shape = (*x.shape[:-1], x.shape[-1] * x.type.itemsize)
    come, go = ((*(s * o.type.itemsize for s in o.strides[:-1]), 1) for o in (x, y))
    return strided_copy("bitcast", 1, shape, come, go, target)


def lower_gather(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """Rows chosen by int32 or int64 indices; negative ones count from the end, what lies outside is moved to the nearest end."""
    (x, indices), (y,) = ins, outs
    if y.type.size == 0:
        return []
    axis, chosen = node.attrs["axis"], len(indices.shape)
    scalar = MOVED_AS[x.type.itemsize]
    before = collapse(x.shape[:axis], [x.strides[:axis], y.strides[:axis]])
    among = collapse(indices.shape, [indices.strides, y.strides[axis : axis + chosen]])
    after = collapse(x.shape[axis + 1 :], [x.strides[axis + 1 :], y.strides[axis + chosen :]])
    k = KernelBuilder(f"gather_{scalar}", target)
    source, index, sink = k.param("in0"), k.param("in1"), k.param("out")
    begin, end = drivers(k)
    dims = [*before.shape, *among.shape, *after.shape[:-1]]
    lead = leading_axes(dims)
    first, second = len(before.shape), len(before.shape) + len(among.shape)
    wide = SCALAR_OF[indices.type.dtype]

    def row(coordinates: list[Val]) -> None:
        outer, at, inner = coordinates[:first], coordinates[first:second], coordinates[second:]
        number = k.convert(
            k.load(index, Type(wide), position(k, at, among.strides[0])), INDEX, "sext" if wide == "i32" else "trunc"
        )
        number = k.select(number < 0, number + x.shape[axis], number)
        number = k.min(k.max(number, 0), x.shape[axis] - 1)
        come = position(k, outer, before.strides[0]) + number * x.strides[axis] + position(k, inner, after.strides[0][:-1])
        go = position(k, outer, before.strides[1]) + position(k, at, among.strides[1]) + position(k, inner, after.strides[1][:-1])
        places = (k.offset(source, come, scalar), k.offset(sink, go, scalar))
        _copy_row(k, scalar, after.shape[-1], places, (after.strides[0][-1], after.strides[1][-1]))

    task_loop(k, begin, end, dims[:lead], lambda head: nest(k, dims[lead:], lambda tail: row([*head, *tail])))
    tasks = prod(dims[:lead])
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("input", 1), Ref("output", 0)), tasks, tasks)]


def _copy_row(k: KernelBuilder, scalar: str, length: int, places: tuple[Val, Val], strides: tuple[int, int]) -> None:
    """`length` elements from one place to another, with these distances of neighbours."""
    lanes = k.target.lanes(scalar) if strides == (1, 1) else 1
    lanes = min(lanes, 1 << max(length - 1, 0).bit_length())

    def body(pieces: list[Piece]) -> None:
        values = [k.load_lanes(places[0], Type(scalar, lanes), count, at * strides[0]) for at, count in pieces]
        for value, (at, count) in zip(values, pieces, strict=True):
            k.store_lanes(places[1], value, count, at * strides[1])

    vector_row(k, length, lanes, 4, body)


def _fill_row(k: KernelBuilder, place: Val, value: Val, length: int, stride: int) -> None:
    """`length` times the scalar `value`."""
    lanes = k.target.lanes(value.type.scalar) if stride == 1 else 1
    lanes = min(lanes, 1 << max(length - 1, 0).bit_length())

    def body(pieces: list[Piece]) -> None:
        for at, count in pieces:
            k.store_lanes(place, k.broadcast(value, lanes), count, at * stride)

    vector_row(k, length, lanes, 4, body)


# --- pad ---


@dataclass(frozen=True)
class _Padded:
    """One axis: size in the source, cells added before it (negative: cropped), size in the destination, strides of both."""

    size: int
    before: int
    out: int
    come: int
    go: int

    @property
    def plain(self) -> bool:
        return self.before == 0 and self.out == self.size

    def source(self, k: KernelBuilder, at: Val, mode: str) -> Val:
        """The cell that output cell `at` shows; outside the axis only where the mode is "constant"."""
        moved = at - self.before
        if mode == "constant" or self.plain:
            return moved
        if mode == "edge":
            return k.min(k.max(moved, 0), self.size - 1)
        folded = k.max(moved, 0 - moved)
        return k.min(folded, 2 * (self.size - 1) - folded)


def lower_pad(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """Cells added around (or cropped off) any axes: a constant, the reflection without the edge itself, or the edge."""
    (x,), (y,) = ins, outs
    if y.type.size == 0:
        return []
    mode, scalar = node.attrs["mode"], MOVED_AS[x.type.itemsize]
    axes = _merged_padded(zip(x.shape, node.attrs["begin"], y.shape, x.strides, y.strides, strict=True), mode)
    k = KernelBuilder(f"pad_{mode}_{scalar}", target)
    source, sink = k.param("in0"), k.param("out")
    begin, end = drivers(k)
    value = k.const(_bits(node.attrs["value"], x.type.numpy), Type(scalar))
    outer, last = axes[:-1], axes[-1]
    dims = [axis.out for axis in outer]
    lead = leading_axes(dims)

    def row(coordinates: list[Val]) -> None:
        cells = [axis.source(k, at, mode) for axis, at in zip(outer, coordinates, strict=True)]
        go = k.offset(sink, position(k, coordinates, [axis.go for axis in outer]), scalar)
        come = k.offset(source, position(k, cells, [axis.come for axis in outer]), scalar)
        outside: Val | None = None
        for axis, cell in zip(outer, cells, strict=True):
            if mode == "constant" and not axis.plain:
                beyond = k.compare("uge", cell, axis.size)
                outside = beyond if outside is None else outside | beyond
        if outside is None:
            _padded_row(k, last, come, go, mode, value)
        else:
            k.if_(
                outside, lambda: _fill_row(k, go, value, last.out, last.go), lambda: _padded_row(k, last, come, go, mode, value)
            )

    task_loop(k, begin, end, dims[:lead], lambda head: nest(k, dims[lead:], lambda tail: row([*head, *tail])))
    tasks = prod(dims[:lead])
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("output", 0)), tasks, tasks)]


def _bits(value: float, dtype: np.dtype) -> int:
    """The number's bytes in the tensor's type, as one integer."""
    return int(np.asarray(value).astype(dtype).reshape(1).view(f"i{dtype.itemsize}")[0])


def _merged_padded(axes: Iterable[tuple[int, ...]], mode: str) -> list[_Padded]:
    """Axes without padding are joined to the one before them where both sides are dense; cells of a fixed size are one cell then."""
    merged: list[_Padded] = []
    for axis in (_Padded(*a) for a in axes):
        if axis.plain and axis.size == 1 and merged:
            continue
        last = merged[-1] if merged else None
        dense = last is not None and last.come == axis.size * axis.come and last.go == axis.size * axis.go
        if last is not None and dense and axis.plain and (mode == "constant" or last.plain):
            n = axis.size
            merged[-1] = _Padded(last.size * n, last.before * n, last.out * n, axis.come, axis.go)
        else:
            merged.append(axis)
    return merged or [_Padded(1, 0, 1, 1, 1)]


def _padded_row(k: KernelBuilder, axis: _Padded, come: Val, go: Val, mode: str, value: Val) -> None:
    """The last axis of one row: cells before, copied cells, cells after."""
    scalar = value.type.scalar
    start, stop = max(axis.before, 0), min(axis.before + axis.size, axis.out)
    start, stop = min(start, axis.out), max(stop, min(start, axis.out))

    def added(first: int, past: int) -> None:
        if mode == "constant":
            _fill_row(k, k.offset(go, first * axis.go, scalar), value, past - first, axis.go)
        else:
            k.loop(
                first, past, 1,
                lambda at: k.store(go, k.load(come, value.type, axis.source(k, at, mode) * axis.come), at * axis.go),
            )  # fmt: skip

    added(0, start)
    copied = (k.offset(come, (start - axis.before) * axis.come, scalar), k.offset(go, start * axis.go, scalar))
    _copy_row(k, scalar, stop - start, copied, (axis.come, axis.go))
    added(stop, axis.out)
