"""Pooling over clipped windows, vectors over channels.

The last spatial axis is cut, while recording, into border columns and an interior; the taps of the other axes are clipped at run time.
Neighbouring outputs share the columns that they have in common: a column is reduced over the outer axes once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.loops import drivers, leading_axes, nest, position, task_loop, vector_row
from cortado.compiler.kernels.scalar import UNSIGNED
from cortado.compiler.lang import SCALAR_OF, Type
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target

MOST_OUTPUTS = 4  # neighbouring outputs of one block
MOST_BORDER = 8  # outputs of a row whose windows hang over the edge and get code of their own
ACCUMULATORS = 8
FEWEST_REGISTERS = 16  # that a target with sum_bits is taken to have


def lower_max_pool(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """Largest cell of each window that is no NaN; the type's lowest number where a window has none. Any number type."""
    dtype = ins[0].type.dtype
    numpy = ins[0].type.numpy
    lowest = float(np.finfo(numpy).min) if numpy.kind == "f" else int(np.iinfo(numpy).min)
    op = "max" if numpy.kind == "f" else "umax" if dtype in UNSIGNED else "smax"
    return lower_pool(node, ins[0], outs[0], target, Reduction(lambda k, total, cell: k.binary(op, cell, total), lowest))


def lower_average_pool(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """Sum of each window's cells over the number of cells inside the image, or over the kernel's area. float32, float64."""
    area = prod(node.attrs["kernel"]) if node.attrs["count_include_pad"] else None
    return lower_pool(node, ins[0], outs[0], target, Reduction(lambda k, a, b: a + b, 0.0, True, area))


@dataclass(frozen=True)
class Reduction:
    """combine: (total, cell) -> total. mean: divide by `area`, or by the number of cells where that is None."""

    combine: Callable[[KernelBuilder, Val, Val], Val]
    start: float
    mean: bool = False
    area: int | None = None

    def load(self, k: KernelBuilder, value: Val) -> Val:
        """What is combined, of a loaded vector."""
        return value

    def finish(self, k: KernelBuilder, total: Val, counts: Sequence[Number]) -> Val:
        """What is stored. counts: cells of the window, per axis."""
        if not self.mean:
            return total
        if self.area is not None:
            return total if self.area == 1 else total / float(self.area)
        cells = k.index(1)
        for count in counts:
            cells = cells * count
        divisor = k.convert(k.max(cells, 1), total.type.with_lanes(1), "sitofp")
        return total / (
            k.const(max(cells.attr, 1), total.type) if cells.kind == "const" else k.broadcast(divisor, total.type.lanes)
        )


@dataclass(frozen=True)
class _Axis:
    """One spatial axis. step_in, step_out: strides in elements of input and output."""

    size: int
    kernel: int
    stride: int
    dilation: int
    pad: int
    out: int
    step_in: int
    step_out: int

    def taps(self, at: int) -> range:
        """Kernel positions whose cell lies in the image, for output `at`."""
        first = at * self.stride - self.pad
        low = max(0, -(first // self.dilation))
        return range(low, max(low, min(self.kernel, -(-(self.size - first) // self.dilation))))

    @property
    def covered(self) -> bool:
        """Whether one window takes in the whole axis."""
        return self.out == 1 and self.pad == 0 and self.dilation == 1 and self.kernel == self.size

    def whole(self) -> tuple[int, int]:
        """The outputs (first, one past the last) whose windows do not hang over an edge."""
        low = min(self.out, max(0, -(-self.pad // self.stride)))
        reach = self.size - 1 + self.pad - (self.kernel - 1) * self.dilation
        return low, max(low, min(self.out, reach // self.stride + 1))

    def clipped(self, k: KernelBuilder, at: Val) -> tuple[Val, Val]:
        """First tap inside and one past the last, of output `at` at run time."""
        if self.whole() == (0, self.out):
            return k.index(0), k.index(self.kernel)
        ceiling = self.pad + self.dilation - 1
        low = k.max(ceiling - at * self.stride, 0) // self.dilation
        high = k.max(ceiling + self.size - at * self.stride, 0) // self.dilation
        return low, k.max(low, k.min(high, self.kernel))


def lower_pool(
    node: Node, x: Operand, y: Operand, target: Target, reduction: Reduction, within: str | None = None
) -> list[KernelCall]:
    """Windows reduced by `reduction`. within: scalar type that values have inside it, where that is not the input's."""
    if y.type.size == 0:
        return []
    a = node.attrs
    geometry = zip(
        x.shape[1:-1], a["kernel"], a["strides"], a["dilations"], a["pads_begin"], y.shape[1:-1], x.strides[1:-1], y.strides[1:-1],
        strict=True,
    )  # fmt: skip
    axes = _as_one([_Axis(*g) for g in geometry])
    channels, memory = x.shape[-1], SCALAR_OF[x.type.dtype]
    scalar = within or memory
    lanes = target.sum_lanes(scalar)
    if channels < lanes:
        lanes = 1 << (channels - 1).bit_length()
    k = KernelBuilder(f"{node.op}_{scalar}", target)
    source, sink = k.param("in0"), k.param("out")
    begin, end = drivers(k)
    types = Type(scalar, lanes), Type(memory, lanes)
    pool = _Pool(k, axes, *types, channels, reduction, (x.shape[0], x.strides[0], y.strides[0]), source, sink)
    tasks = pool.by_columns(begin, end) if pool.outputs else pool.by_windows(begin, end)
    return [KernelCall(k.finish(), (Ref("input", 0), Ref("output", 0)), tasks, tasks)]


def _as_one(axes: list[_Axis]) -> list[_Axis]:
    """Neighbouring axes that one window covers whole, and that are dense, as one axis."""
    joined: list[_Axis] = []
    for axis in axes:
        last = joined[-1] if joined else None
        if last is not None and last.covered and axis.covered and last.step_in == axis.size * axis.step_in:
            cells = last.size * axis.size
            joined[-1] = replace(axis, size=cells, kernel=cells)
        else:
            joined.append(axis)
    return joined


@dataclass(frozen=True)
class _Pool:
    """memory: of a loaded vector. batch: images and their strides in input and output."""

    k: KernelBuilder
    axes: list[_Axis]
    type: Type
    memory: Type
    channels: int
    reduction: Reduction
    batch: tuple[int, int, int]
    source: Val
    sink: Val

    def load(self, count: int, at: Val) -> Val:
        return self.reduction.load(self.k, self.k.load_lanes(self.source, self.memory, count, at))

    @property
    def outputs(self) -> int:
        """Neighbouring outputs that a block of columns makes; 0 where windows are too wide for it or too many have borders."""
        last = self.axes[-1]
        low, high = last.whole()
        if low + last.out - high > MOST_BORDER:
            return 0
        count = min(MOST_OUTPUTS, last.out)
        registers = self.k.target.vector_registers
        if self.k.target.sum_bits and self.type.is_float:  # wide windows are added in another order than blocks of columns
            registers = min(registers, FEWEST_REGISTERS)
        while count and len(self._columns(count)) > registers - 4:
            count -= 1
        return count

    def _columns(self, outputs: int) -> list[int]:
        """Input columns of a block, counted from the first output's first tap."""
        last = self.axes[-1]
        return sorted({o * last.stride + t * last.dilation for o in range(outputs) for t in range(last.kernel)})

    # --- columns shared by neighbouring outputs ---

    def by_columns(self, begin: Val, end: Val) -> int:
        k, outer, last = self.k, self.axes[:-1], self.axes[-1]
        dims = [self.batch[0], *(axis.out for axis in outer)]
        lead = leading_axes(dims)

        def row(coordinates: list[Val]) -> None:
            ranges = [axis.clipped(k, at) for axis, at in zip(outer, coordinates[1:], strict=True)]
            moved = position(k, coordinates, [self.batch[1], *(axis.stride * axis.step_in for axis in outer)])
            first = moved - sum(axis.pad * axis.step_in for axis in outer)
            into = position(k, coordinates, [self.batch[2], *(axis.step_out for axis in outer)])
            low, high = last.whole()
            for at in range(low):
                self._block(k.index(at), [last.taps(at)], first, into, ranges)
            full = [range(last.kernel)] * self.outputs
            stop = high - (high - low) % self.outputs
            k.loop(low, stop, self.outputs, lambda at: self._block(at, full, first, into, ranges))
            if stop < high:
                self._block(k.index(stop), full[: high - stop], first, into, ranges)
            for at in range(high, last.out):
                self._block(k.index(at), [last.taps(at)], first, into, ranges)

        task_loop(k, begin, end, dims[:lead], lambda head: nest(k, dims[lead:], lambda tail: row([*head, *tail])))
        return prod(dims[:lead])

    def _block(self, at: Val, taps: Sequence[range], first: Val, into: Val, ranges: Sequence[tuple[Val, Val]]) -> None:
        """Neighbouring outputs from `at` on, with the taps each has inside the image."""
        k, last = self.k, self.axes[-1]
        cells = [[o * last.stride + t * last.dilation for t in inside] for o, inside in enumerate(taps)]
        columns = sorted({c for own in cells for c in own})
        start = first + (at * last.stride - last.pad) * last.step_in
        counts = [high - low for low, high in ranges]

        def vectors(pieces: list[tuple[Val, int]]) -> None:
            for channel, count in pieces:

                def line(offset: Val, carried: Sequence[Val], channel: Val = channel, count: int = count) -> list[Val]:
                    at = start + offset + channel
                    loaded = [self.load(count, at + c * last.step_in) for c in columns]
                    return [self.reduction.combine(k, a, v) for a, v in zip(carried, loaded, strict=True)]

                carried = [k.const(self.reduction.start, self.type)] * len(columns)
                reduced = dict(zip(columns, self._over_outer(ranges, line, carried), strict=True))
                for o, own in enumerate(cells):
                    total = k.const(self.reduction.start, self.type)
                    for number, c in enumerate(own):
                        total = self.reduction.combine(k, total, reduced[c]) if number else reduced[c]
                    result = self.reduction.finish(k, total, [*counts, len(own)])
                    k.store_lanes(self.sink, result, count, into + (at + o) * last.step_out + channel)

        vector_row(k, self.channels, self.type.lanes, 1, vectors)

    def _over_outer(
        self, ranges: Sequence[tuple[Val, Val]], line: Callable[[Val, Sequence[Val]], list[Val]], carried: Sequence[Val]
    ) -> Sequence[Val]:
        """Carry values through `line` (offset of the taps, values) over the taps of all axes but the last."""

        def level(number: int, offset: Val, inside: Sequence[Val]) -> Sequence[Val]:
            if number == len(ranges):
                return line(offset, inside)
            step = self.axes[number].dilation * self.axes[number].step_in
            return self.k.loop(*ranges[number], 1, lambda tap, *values: level(number + 1, offset + tap * step, values), inside)

        return level(0, self.k.index(0), carried)

    # --- one wide window at a time ---

    def by_windows(self, begin: Val, end: Val) -> int:
        k = self.k
        vectors = -(-self.channels // self.type.lanes)
        held = min(vectors, ACCUMULATORS)
        chunk = held * self.type.lanes
        dims = [self.batch[0], *(axis.out for axis in self.axes), -(-self.channels // chunk)]
        lead = leading_axes(dims)

        def window(coordinates: list[Val]) -> None:
            outer = coordinates[:-1]
            ranges = [axis.clipped(k, at) for axis, at in zip(self.axes, outer[1:], strict=True)]
            start = position(k, outer, [self.batch[1], *(axis.stride * axis.step_in for axis in self.axes)])
            start = start - sum(axis.pad * axis.step_in for axis in self.axes)
            into = position(k, outer, [self.batch[2], *(axis.step_out for axis in self.axes)])
            channel, rest = coordinates[-1] * chunk, self.channels % chunk
            whole = self.channels // chunk

            def some(total: int) -> None:
                self._window(ranges, start + channel, into + channel, total)

            if rest and whole:
                k.if_(k.compare("lt", coordinates[-1], whole), lambda: some(chunk), lambda: some(rest))
            else:
                some(rest or chunk)

        task_loop(k, begin, end, dims[:lead], lambda head: nest(k, dims[lead:], lambda tail: window([*head, *tail])))
        return prod(dims[:lead])

    def _window(self, ranges: Sequence[tuple[Val, Val]], start: Val, into: Val, channels: int) -> None:
        """One output of `channels` neighbouring channels; several accumulators a vector where vectors are few."""
        k, lanes = self.k, self.type.lanes
        pieces = [(at, min(lanes, channels - at)) for at in range(0, channels, lanes)]
        held = len(pieces)
        ways = max(1, ACCUMULATORS // held)
        last = self.axes[-1]
        step = last.dilation * last.step_in

        def add(offset: Val, tap: Val, carried: Sequence[Val]) -> list[Val]:
            at = start + offset + tap * step
            return [
                self.reduction.combine(k, a, self.load(count, at + piece))
                for a, (piece, count) in zip(carried, pieces, strict=True)
            ]

        def line(offset: Val, carried: Sequence[Val]) -> list[Val]:
            low, high = ranges[-1]
            several = low + (high - low) // ways * ways

            def trip(tap: Val, *inside: Val) -> list[Val]:
                return [v for w in range(ways) for v in add(offset, tap + w, inside[w * held : (w + 1) * held])]

            flat = k.loop(low, several, ways, trip, carried)
            rest = k.loop(several, high, 1, lambda tap, *inside: add(offset, tap, inside), flat[:held])
            return [*rest, *flat[held:]]

        sums = self._over_outer(ranges[:-1], line, [k.const(self.reduction.start, self.type)] * (held * ways))
        counts = [high - low for low, high in ranges]
        for number, (piece, count) in enumerate(pieces):
            total = sums[number]
            for w in range(1, ways):
                total = self.reduction.combine(k, total, sums[w * held + number])
            k.store_lanes(self.sink, self.reduction.finish(k, total, counts), count, into + piece)
