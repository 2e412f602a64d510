"""Quantized depthwise convolution of images where four products of bytes are one instruction.

A 32-bit word holds a channel's bytes of four neighbouring input rows. The words of an input column are put together once and serve the
pixels beside each other that read it, and both output rows of a block: where an input row is not theirs, its weight is zero. So a 3x3
kernel takes three instructions instead of nine. Along a row the columns that the next pixel reads again stay in registers.

Interleaving and packing of bytes work inside of 16 bytes each, so the four registers of words of a step hold its channels in the order
of `channel_order`; packing at the end undoes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.quantized_depthwise_driver import RowsDriver, depthwise_call, serves_rows
from cortado.compiler.kernels.quantized_sums import choose_dot, folded_bias
from cortado.compiler.kernels.requantize import Requantization, joined, load_bytes, store_some
from cortado.compiler.lang import INDEX, PTR, Kernel, Type
from cortado.compiler.program import KernelCall, Operand
from cortado.compiler.target import Target

ROWS = 4  # input rows whose bytes are a word
BLOCK = 16  # bytes that x86's interleaving and packing instructions work on
HELD = 3  # columns of words that a pixel reads, at most: more do not fit the registers


@dataclass(frozen=True)
class _Quads:
    """What shapes a block's code. step_bytes: channels of a step. tail: of the last step, 0 where it is whole. rows: of the output.

    height, width: of the kernel. before: per column that the first pixel shares with none before it, whether it is inside of the image.
    after: for each pixel behind those whose columns are all inside, the same of its new columns. zero: the byte of padding.
    x_pixel, out: distances of input pixels, and of output rows and pixels.
    """

    step_bytes: int
    tail: int
    rows: int
    height: int
    width: int
    step: int
    before: tuple[bool, ...]
    after: tuple[tuple[bool, ...], ...]
    signed: bool
    zero: int
    epilogue: Requantization
    x_pixel: int
    out: tuple[int, int]

    @property
    def inputs(self) -> int:
        """Input rows of a block."""
        return (self.rows - 1) * self.step + self.height

    @property
    def groups(self) -> int:
        """Words of a column."""
        return -(-self.inputs // ROWS)

    @property
    def terms(self) -> list[tuple[int, int, int]]:
        """In the order of the weights: output row, column of the kernel, word of the column."""
        found = []
        for row in range(self.rows):
            first, last = row * self.step, row * self.step + self.height - 1
            found += [(row, column, group) for column in range(self.width) for group in range(first // ROWS, last // ROWS + 1)]
        return found

    @property
    def step_words(self) -> int:
        """Words of a whole step's weights: per term and header row four registers, which hold as many words as the step has channels."""
        return (self.epilogue.header + len(self.terms)) * self.step_bytes

    @property
    def last_bytes(self) -> int:
        """Channels that the last step has room for."""
        room = self.step_bytes
        while room // 2 >= max(self.tail, BLOCK):
            room //= 2
        return room

    def parameters(self) -> list[tuple[str, Type]]:
        """x0, x1 ...: input rows at the first pixel's first new column. w: of the first channels, with the numbers of the epilogue in
        front; w_step: words of a whole step.

        count: pixels whose columns are all inside. steps: whole steps of channels.
        """
        rows = [(f"x{i}", PTR) for i in range(self.inputs)]
        return [*rows, ("w", PTR), ("w_step", INDEX), ("out", PTR), ("count", INDEX), ("steps", INDEX)]


def channel_order(room: int) -> np.ndarray:
    """int[room]: the channel in each word of a step's four registers of words, one register after another."""
    return np.arange(room).reshape(-1, 4, 4).transpose(1, 0, 2).reshape(-1)


class _Block:
    def __init__(self, spec: _Quads, target: Target) -> None:
        self.spec = spec
        self.k = KernelBuilder(f"q_depthwise_{spec.rows}_rows", target, shared=True)
        self.p = {name: self.k.param(name, type_) for name, type_ in spec.parameters()}

    def record(self) -> Kernel:
        k, p, spec = self.k, self.p, self.spec
        k.loop(0, p["steps"], 1, lambda i: self.channels(i, spec.step_bytes, spec.step_bytes))
        if spec.tail:
            self.channels(p["steps"], spec.last_bytes, spec.tail)
        return k.finish()

    def channels(self, number: Val, room: int, count: int) -> None:
        """All pixels of `count` neighbouring channels. number: of the step."""
        k, p, spec = self.k, self.p, self.spec
        at = number * spec.step_bytes
        sweep = _Sweep(self, room, count, at, k.offset(p["w"], number * p["w_step"], "i32"), k.offset(p["out"], at, "i8"))
        shared = len(spec.before)
        held = [sweep.column(k.index(position), inside) for position, inside in zip(range(-shared, 0), spec.before, strict=True)]
        flat = [word for column in held for word in column]

        def pixel(i: Val, *carried: Val) -> list[Val]:
            return sweep.pixel(i, list(carried), (True,) * spec.step)

        flat = list(k.loop(0, p["count"], 1, pixel, flat))
        for number_after, new in enumerate(spec.after):
            flat = sweep.pixel(p["count"] + number_after, flat, new)


@dataclass
class _Sweep:
    """One step of channels along a row of pixels. room: lanes; count: of them, channels. at: the first one. w, out: of these channels."""

    block: _Block
    room: int
    count: int
    at: Val
    w: Val
    out: Val

    @property
    def vector(self) -> Type:
        return Type("i32", self.room // 4)

    def column(self, position: Val, inside: bool) -> list[Val]:
        """Registers of words, four a group. position: of the column, counted from the first pixel's first new one."""
        k, spec = self.block.k, self.block.spec
        if not inside:
            word = (spec.zero & 0xFF) * 0x01010101
            return [k.const(word - (1 << 32) if word >> 31 else word, self.vector)] * (4 * spec.groups)
        rows = []
        for i in range(spec.inputs):
            place = k.offset(k.offset(self.block.p[f"x{i}"], self.at, "i8"), position * spec.x_pixel, "i8")
            value = load_bytes(k, place, self.room, self.count, 0)
            rows.append(value ^ 0x80 if spec.signed else value)
        rows += rows[-1:] * (-len(rows) % ROWS)  # their weights are zero
        found: list[Val] = []
        for first in range(0, len(rows), ROWS):
            found += self.woven(rows[first : first + ROWS])
        return found

    def woven(self, rows: Sequence[Val]) -> list[Val]:
        """The four registers whose words hold a byte of each row, channels in `channel_order`."""
        k = self.block.k
        halves = [self.interleaved(a, b) for a, b in (rows[:2], rows[2:])]
        found = []
        for above, below in zip(*halves, strict=True):
            pairs = [k.convert(half, Type("i16", self.room // 2), "bitcast") for half in (above, below)]
            found += [k.convert(words, self.vector, "bitcast") for words in self.interleaved(*pairs)]
        return found

    def interleaved(self, a: Val, b: Val) -> tuple[Val, Val]:
        """Elements of a and b in turn: of the lower halves of every 16 bytes, and of the upper ones."""
        lanes = a.type.lanes
        width = lanes * BLOCK // self.room
        low = [i + x for start in range(0, lanes, width) for i in range(start, start + width // 2) for x in (0, lanes)]
        return self.block.k.shuffle(a, b, low), self.block.k.shuffle(a, b, [i + width // 2 for i in low])

    def pixel(self, number: Val, held: list[Val], new: tuple[bool, ...]) -> list[Val]:
        """One pixel of all output rows. held: words of the columns that it shares with the pixel before. Gives those of the next one."""
        k, spec = self.block.k, self.block.spec
        size = 4 * spec.groups
        first = number * spec.step
        words = [*held]
        for i, inside in enumerate(new):
            words += self.column(first + i, inside)
        columns = [words[at : at + size] for at in range(0, len(words), size)]
        lanes = self.vector.lanes
        rows = [[k.load(self.w, self.vector, (4 * row + j) * lanes) for j in range(4)] for row in range(spec.epilogue.header)]
        sums = [list(rows[0]) for _ in range(spec.rows)]
        for term, (row, column, group) in enumerate(spec.terms, spec.epilogue.header):
            for j in range(4):
                weight = k.load(self.w, self.vector, (4 * term + j) * lanes)
                sums[row][j] = k.virtual("dot4", sums[row][j], columns[column][4 * group + j], weight)
        for row, totals in enumerate(sums):
            values = [spec.epilogue.narrowed(k, total, [of[j] for of in rows[1:]], None) for j, total in enumerate(totals)]
            packed = spec.epilogue.bytes_of(k, joined(k, values))
            ordered = k.shuffle(packed, packed, [int(i) for i in np.argsort(channel_order(self.room))])
            place = k.offset(self.out, number * spec.out[1] + spec.out[0] * row, "i8")
            store_some(k, place, ordered, 0, self.count)
        return [word for column in columns[spec.step :] for word in column]


def serves_q_quads(node: Node, w: np.ndarray, epilogue: Requantization, target: Target) -> bool:
    """Beyond what `serves_rows` asks for: the instruction, kernels whose columns fit the registers, an epilogue of vectors."""
    lanes = target.lanes("i32")
    if not serves_rows(node, target) or choose_dot(node, w, target).name != "dot4" or 4 * lanes < BLOCK:
        return False
    _, height, width, _ = node.inputs[1].type.shape
    step, left = node.attrs["strides"][0], node.attrs["pads_begin"][1]
    groups = -(-((_output_rows(node) - 1) * step + height) // ROWS)
    narrow = epilogue.converts(target, lanes) and not epilogue.residual
    return narrow and groups * width <= HELD and step <= width and left <= width - step


def _output_rows(node: Node) -> int:
    """Of a block. Rows two apart share too little of the input."""
    return 2 if node.attrs["strides"][0] == 1 and node.types[0].shape[1] > 1 else 1


def lower_q_quads(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], w: np.ndarray, epilogue: Requantization, target: Target
) -> list[KernelCall]:
    """x[N,H,W,C], w[C,KH,KW,1] without zero points -> out[N,OH,OW,C], where `serves_q_quads`."""
    driver = _Driver(node, ins[0], outs[0], epilogue, target)
    bias = folded_bias(node, w, choose_dot(node, w, target))
    return depthwise_call(node, driver, lambda head: pack_quads(w, head, driver.spec), bias, epilogue)


def pack_quads(w: np.ndarray, head: np.ndarray, spec: _Quads) -> np.ndarray:
    """int32 [step of channels][head's rows, then the terms][channels of the step in their order], zero past the last channel."""
    terms = [*head.astype(np.int32)]
    for row, column, group in spec.terms:
        word = np.zeros((len(w), ROWS), np.int8)
        for i in range(ROWS):
            tap = ROWS * group + i - row * spec.step
            if 0 <= tap < spec.height:
                word[:, i] = w[:, tap, column, 0]
        terms.append(word.view("<i4")[:, 0].astype(np.int32))
    rows = np.stack(terms)
    steps = []
    for start in range(0, len(w), spec.step_bytes):
        room = spec.step_bytes if len(w) - start >= spec.step_bytes else spec.last_bytes
        part = np.zeros((len(rows), room), np.int32)
        here = rows[:, start : start + room]
        part[:, : here.shape[1]] = here
        steps.append(part[:, channel_order(room)].reshape(-1))
    return np.concatenate(steps)


class _Driver(RowsDriver):
    """As RowsDriver; a unit is one or two output rows of an image."""

    def __init__(self, node: Node, x: Operand, out: Operand, epilogue: Requantization, target: Target) -> None:
        _, height, width, _ = node.inputs[1].type.shape
        step, left = node.attrs["strides"][0], node.attrs["pads_begin"][1]
        super().__init__(node, x, out, None, target, _output_rows(node), height)
        size, outputs = x.shape[2], out.shape[2]
        self.first = width - step - left  # column: the first pixel's first new one
        last = [self.first + r * step + step - 1 < size for r in range(outputs)]
        self.inner = sum(last)
        columns = [[self.first + r * step + i < size for i in range(step)] for r in range(self.inner, outputs)]
        lanes = 4 * target.lanes("i32")
        self.spec = _Quads(
            lanes, x.shape[3] % lanes, self.rows, height, width, step,
            tuple(0 <= i - left < size for i in range(width - step)), tuple(map(tuple, columns)),
            self.signed, self.zero ^ (0x80 if self.signed else 0), epilogue, x.strides[2], (out.strides[1], out.strides[2]),
        )  # fmt: skip

    def rows_of(self, image: Val, first: Val, rows: int) -> None:
        """A row that is left over has the weights of a block's first one."""
        spec = replace(self.spec, rows=rows)
        values: dict[str, Number] = {f"x{i}": x for i, x in enumerate(self.inputs(image, first, spec.inputs, self.first))}
        values |= {"w": self.w, "count": self.inner}
        values |= {"w_step": self.spec.step_words, "steps": self.x.shape[3] // spec.step_bytes}
        values["out"] = self.place(self.to, self.out, image, first, 0)
        self.k.call(_Block(spec, self.target).record(), *(values[name] for name, _ in spec.parameters()))
