"""Inputs of quantized sums brought into the form that dot instructions read: int16 without zero point, or bytes in whole words.

A copy is made where the tensor is not in that form already: dot2 wants int16, dot4 whole words of four channels and, where a layer
pads, an image with the padding around it, whose cells hold the zero point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.kernels.loops import Piece, drivers, leading_axes, nest, position, task_loop, vector_row
from cortado.compiler.kernels.quantized_tile import Dot
from cortado.compiler.lang import Kernel, Type
from cortado.compiler.program import KernelCall, Operand, Ref, contiguous_strides
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType

UNROLLED = 4  # groups, at most
BYTES_AT_ONCE = 16  # that one instruction puts in any order on all targets with vectors of bytes


@dataclass(frozen=True)
class Staged:
    """The input as the tiles read it. words: its operand, counted in 32-bit words, channels of groups one after another.

    calls: what makes it. channels: words of one group. dot: how the tiles multiply it. around: cells of padding that it has before and
    after each axis but the last.
    """

    calls: list[KernelCall]
    ref: Ref
    words: Operand
    channels: int
    dot: Dot
    around: tuple[tuple[int, int], ...]


def stage(
    x: Operand,
    zero: int,
    groups: int,
    dot: Dot,
    begin: Sequence[int],
    end: Sequence[int],
    target: Target,
    source: Ref | None = None,
) -> Staged:
    """x[..., groups * C], int8 or uint8. begin, end: cells of padding around the axes before the last one (none at the first ones).

    source: where x lies; None for input 0.
    """
    source = source or Ref("input", 0)
    signed, inside, unit = x.type.dtype == "int8", x.shape[-1] // groups, dot.neighbours
    words = -(-inside // unit)
    pads = any(b > 0 or e > 0 for b, e in zip(begin, end, strict=True))
    direct = dot.name == "dot4" and inside == words * unit and not pads
    if direct and all(s % unit == 0 for d, s in zip(x.shape[:-1], x.strides, strict=False) if d > 1):
        shape = (*x.shape[:-1], groups * words)
        operand = Operand(TensorType(shape, "int32"), (*(s // unit for s in x.strides[:-1]), 1))
        return Staged([], source, operand, words, replace(dot, flip=signed), ((0, 0),) * len(begin))
    padding = dot.name == "dot4" and pads
    around = tuple((max(b, 0), max(e, 0)) if padding else (0, 0) for b, e in zip(begin, end, strict=True))
    outer = [n + b + e for n, (b, e) in zip(x.shape[:-1], around, strict=True)]
    shape = (*outer, groups * words)
    scratch = Ref("scratch", nbytes=prod(shape) * 4)
    kernel, tasks = _Stager(x, zero, signed, groups, inside, words * unit, dot, around, outer, target).record()
    operand = Operand(TensorType(shape, "int32"), contiguous_strides(shape))
    call = KernelCall(kernel, (source, scratch), tasks, tasks)
    return Staged([call], scratch, operand, words, replace(dot, flip=False), around)


def padded_image(x: Operand, zero: int, dot: Dot, around: Sequence[tuple[int, int]], slack: int, target: Target) -> Staged:
    """x[N,H,W,C] in the form of the dot instruction, with cells of padding around each axis but the last, without gaps between channels.

    slack: bytes behind it that may be read.
    """
    outer = [n + b + e for n, (b, e) in zip(x.shape[:-1], around, strict=True)]
    channels, unit = x.shape[-1], 4 // dot.neighbours
    signed = x.type.dtype == "int8"
    scratch = Ref("scratch", nbytes=prod(outer) * channels * unit + slack)
    kernel, tasks = _Stager(x, zero, signed, 1, channels, channels, dot, around, outer, target).record()
    shape = (*outer, channels)
    operand = Operand(TensorType(shape, "int8" if unit == 1 else "int16"), contiguous_strides(shape))
    call = KernelCall(kernel, (Ref("input", 0), scratch), tasks, tasks)
    return Staged([call], scratch, operand, channels, replace(dot, flip=False), tuple(around))


class _Stager:
    """A driver (x, staged, begin, end)."""

    def __init__(
        self, x: Operand, zero: int, signed: bool, groups: int, inside: int, room: int, dot: Dot,
        around: Sequence[tuple[int, int]], outer: Sequence[int], target: Target,
    ) -> None:  # fmt: skip
        self.x, self.zero, self.signed, self.groups, self.inside, self.room = x, zero, signed, groups, inside, room
        self.around, self.outer = around, outer
        self.wide = dot.name == "dot2"
        self.scalar = "i16" if self.wide else "i8"
        self.k = KernelBuilder(f"stage_{dot.name}", target)
        self.source, self.staged = self.k.param("x"), self.k.param("staged")
        self.blank = 0 if self.wide else zero ^ (0x80 if signed else 0)

    def record(self) -> tuple[Kernel, int]:
        """One task stages some rows: positions of all axes but the last one before the channels."""
        k = self.k
        begin, end = drivers(k)
        dims = [*self.outer[:-1]]
        lead = leading_axes(dims)
        task_loop(k, begin, end, dims[:lead], lambda head: nest(k, dims[lead:], lambda tail: self.row([*head, *tail])))
        return k.finish(), prod(dims[:lead])

    def row(self, at: list[Val]) -> None:
        """A row of the staged image, which may lie in the padding."""
        k = self.k
        pitch = self.groups * self.room
        width = self.outer[-1] if self.outer else 1
        go = k.offset(self.staged, position(k, at, [s * pitch for s in contiguous_strides(tuple(self.outer))[:-1]]), self.scalar)
        cells = [i - b for i, (b, _) in zip(at, self.around, strict=False)]
        come = k.offset(self.source, position(k, cells, self.x.strides[: len(cells)]), "i8")
        outside: Val | None = None
        for cell, size, (b, e) in zip(cells, self.x.shape, self.around, strict=False):
            if b or e:
                beyond = k.compare("uge", cell, size)
                outside = beyond if outside is None else outside | beyond

        def inside() -> None:
            before, after = self.around[-1] if self.around else (0, 0)
            self.fill(go, before * pitch)
            self.pixels(come, k.offset(go, before * pitch, self.scalar), width - before - after)
            self.fill(k.offset(go, (width - after) * pitch, self.scalar), after * pitch)

        if outside is None:
            inside()
        else:
            k.if_(outside, lambda: self.fill(go, width * pitch), inside)

    def fill(self, place: Val, count: int) -> None:
        def body(pieces: list[Piece]) -> None:
            for at, size in pieces:
                k.store_lanes(place, k.const(self.blank, Type(self.scalar, lanes)), size, at)

        k = self.k
        lanes = k.target.lanes(self.scalar)
        vector_row(k, count, lanes, 1, body)

    def pixels(self, come: Val, go: Val, count: int) -> None:
        k, pitch = self.k, self.groups * self.room
        distance = self.x.strides[-2] if len(self.x.strides) > 1 else 0
        if self.inside == self.room and (distance == self.groups * self.inside or count == 1):
            self.run(come, go, count * pitch)
            return

        if distance == self.groups * self.inside:
            done = self.small(come, go, count * self.groups)
            come, go = k.offset(come, done * self.inside, "i8"), k.offset(go, done * self.room, self.scalar)
            self.single(come, go, count * self.groups - done)
            return

        def pixel(i: Val) -> None:
            self.single(k.offset(come, i * distance, "i8"), k.offset(go, i * pitch, self.scalar), self.groups)

        k.loop(0, count, 1, pixel)

    def single(self, come: Val, go: Val, count: int) -> None:
        """`count` neighbouring groups one by one."""
        k = self.k

        def group(i: Val) -> None:
            self.channels(k.offset(come, i * self.inside, "i8"), k.offset(go, i * self.room, self.scalar))

        if count <= UNROLLED:
            for number in range(count):
                group(k.index(number))
        else:
            k.loop(0, count, 1, group)

    def small(self, come: Val, go: Val, count: int) -> int:
        """Of `count` neighbouring groups of few channels those that vectors can do without reading beyond them: how many these are."""
        k = self.k
        together = BYTES_AT_ONCE // self.room
        if self.room not in (2, 4, 8) or k.target.lanes(self.scalar) < BYTES_AT_ONCE:
            return 0
        trips = max(0, (count * self.inside - BYTES_AT_ONCE) // (together * self.inside) + 1)
        lanes = [i * self.inside + c if c < self.inside else BYTES_AT_ONCE for i in range(together) for c in range(self.room)]

        def several(i: Val) -> None:
            value = self.form(k.load(come, Type("i8", BYTES_AT_ONCE), i * (together * self.inside)))
            k.store(go, k.shuffle(value, k.zero(value.type), lanes), i * (together * self.room))

        k.loop(0, trips, 1, several)
        return trips * together

    def channels(self, come: Val, go: Val) -> None:
        """One group of one pixel, and what its last word has too much."""
        k = self.k
        self.run(come, go, self.inside)
        for at in range(self.inside, self.room):
            k.store(go, k.const(0, Type(self.scalar)), at)

    def run(self, come: Val, go: Val, count: int) -> None:
        """Neighbouring bytes. Short ends are done one by one."""
        k = self.k
        lanes = k.target.lanes(self.scalar)
        unroll = 2 if count >= 2 * lanes else 1
        done = count - count % (lanes * unroll)

        def vectors(i: Val) -> None:
            for u in range(unroll):
                self.one(come, go, lanes, i + u * lanes)

        k.loop(0, done, lanes * unroll, vectors)
        size = lanes
        while done < count:
            while size > count - done:
                size //= 2
            self.one(come, go, size, k.index(done))
            done += size

    def one(self, come: Val, go: Val, lanes: int, at: Val) -> None:
        self.k.store(go, self.form(self.k.load(come, Type("i8", lanes), at)), at)

    def form(self, value: Val) -> Val:
        """Bytes as the dot instruction takes them."""
        if self.wide:
            wide = Type("i16", value.type.lanes)
            return self.k.convert(value, wide, "sext" if self.signed else "zext") - self.zero
        return value ^ 0x80 if self.signed else value
