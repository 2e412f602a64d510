"""Quantized depthwise convolution of images: a few output rows and pixels at once, pairs of input rows in 32-bit words.

A word holds a channel's values of two neighbouring input rows; dot2 multiplies both and adds the products. Every pair of rows is put
together once a pixel and serves all output rows that read it: where a row is not theirs, its weight is zero. Padding is rows of
zero points, so nothing is subtracted: what zero points contribute is known and part of the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.geometry import Axis, Segment, segments
from cortado.compiler.kernels.quantized_depthwise_driver import RowsDriver, depthwise_call
from cortado.compiler.kernels.requantize import Requantization, load_bytes, widened
from cortado.compiler.lang import INDEX, PTR, Kernel, Type
from cortado.compiler.program import KernelCall, Operand
from cortado.compiler.target import Target

PIXELS = {1: 8, 2: 4}  # most of a block, by stride
TOGETHER = 2  # pixels that share a load of each weight


@dataclass(frozen=True)
class _Rows:
    """What shapes a block's code. lanes: of i32. rows, pixels: of the output. tail: channels of the last step, 0 where it is whole.

    height, width: of the kernel. columns: per input column of the block, whether it is inside of the image. zero: in the padding.
    x_pixel, out, residual: distances of input pixels, and of rows and pixels. They are part of the code: as parameters they and their sums
    would take more registers than there are.
    """

    lanes: int
    rows: int
    pixels: int
    tail: int
    height: int
    width: int
    step: int
    columns: tuple[bool, ...]
    signed: bool
    zero: int
    epilogue: Requantization
    x_pixel: int
    out: tuple[int, int]
    residual: tuple[int, int]

    @property
    def inputs(self) -> int:
        """Input rows of a block."""
        return (self.rows - 1) * self.step + self.height

    def words(self, row: int) -> list[tuple[int, int]]:
        """In the order of the weights: (column of the kernel, pair of input rows) that an output row reads."""
        first, last = row * self.step, row * self.step + self.height - 1
        return [(column, pair) for column in range(self.width) for pair in range(first // 2, last // 2 + 1)]

    def parameters(self) -> list[tuple[str, Type]]:
        """x0, x1 ...: input rows at the block's first column. w: of the first channels, with the numbers of the epilogue in front.

        count: blocks beside each other. steps: whole steps of channels, w_step words further each.
        """
        names = [(f"x{i}", PTR) for i in range(self.inputs)] + [("w", PTR), ("w_step", INDEX)]
        names += [("residual", PTR)] * self.epilogue.residual
        return [*names, ("out", PTR), ("count", INDEX), ("steps", INDEX)]


class _Block:
    def __init__(self, spec: _Rows, target: Target) -> None:
        self.spec = spec
        self.k = KernelBuilder(f"q_depthwise_{spec.rows}x{spec.pixels}", target, shared=True)
        self.vector = Type("i32", spec.lanes)
        self.p = {name: self.k.param(name, type_) for name, type_ in spec.parameters()}

    def record(self) -> Kernel:
        k, p, spec = self.k, self.p, self.spec

        def block(number: Val) -> None:
            pixel = number * spec.pixels
            come = pixel * (spec.step * spec.x_pixel)
            out = k.offset(p["out"], pixel * spec.out[1], "i8")
            residual = k.offset(p["residual"], pixel * spec.residual[1], "i8") if spec.epilogue.residual else None

            def step(i: Val, count: int) -> None:
                at = i * spec.lanes
                beside = None if residual is None else k.offset(residual, at, "i8")
                self.channels(come + at, k.offset(p["w"], i * p["w_step"], "i32"), k.offset(out, at, "i8"), beside, count)

            k.loop(0, p["steps"], 1, lambda i: step(i, spec.lanes))
            if spec.tail:
                step(p["steps"], spec.tail)

        k.loop(0, p["count"], 1, block)
        return k.finish()

    def channels(self, come: Val, w: Val, out: Val, residual: Val | None, count: int) -> None:
        """All outputs of `count` neighbouring channels, pixel after pixel. come: bytes from the rows' starts.

        A pixel's weights are read from memory by the instructions that multiply them: there is no room for them beside the values of
        the columns that following pixels read, too. The stores in between keep compilers from holding them.
        """
        k, spec, lanes = self.k, self.spec, self.spec.lanes
        header = spec.epilogue.header
        columns: dict[int, list[Val]] = {}
        for start in range(0, spec.pixels, TOGETHER):
            pixels = range(start, min(start + TOGETHER, spec.pixels))
            for r in pixels:
                for position in range(r * spec.step, r * spec.step + spec.width):
                    if position not in columns:
                        columns[position] = self.pairs(come, spec.x_pixel * position, spec.columns[position], count)
            sums = {(row, r): k.load(w, self.vector) for row in range(spec.rows) for r in pixels}
            number = header
            for row in range(spec.rows):
                for column, pair in spec.words(row):
                    weight = k.load(w, self.vector, number * lanes)
                    number += 1
                    for r in pixels:
                        sums[row, r] = k.virtual("dot2", sums[row, r], columns[r * spec.step + column][pair], weight)
            rows = [k.load(w, self.vector, number * lanes) for number in range(1, header)]
            for (row, r), total in sums.items():
                self.finish(row, r, total, rows, out, residual, count)

    def pairs(self, come: Val, distance: int, inside: bool, count: int) -> list[Val]:
        """By pair of input rows: words of one input column, `distance` bytes behind the first."""
        k, spec, lanes = self.k, self.spec, self.spec.lanes
        if not inside:
            word = (spec.zero & 0xFFFF) * 0x10001
            return [k.const(word - (1 << 32) if word >> 31 else word, self.vector)] * -(-spec.inputs // 2)
        rows = [
            load_bytes(k, k.offset(k.offset(self.p[f"x{i}"], come, "i8"), distance, "i8"), lanes, count, 0)
            for i in range(spec.inputs)
        ]
        rows += rows[-1:] * (spec.inputs % 2)  # its weights are zero
        found = []
        for above, below in zip(rows[::2], rows[1::2], strict=True):
            if lanes > 8:  # bytes of so many channels would have to change between the registers' parts to be woven
                low, high = (widened(k, row, spec.signed) for row in (above, below))
                found.append((low & 0xFFFF) | (high << 16))
                continue
            woven = k.shuffle(above, below, [i // 2 + i % 2 * lanes for i in range(2 * lanes)])
            found.append(k.convert(widened(k, woven, spec.signed, "i16"), self.vector, "bitcast"))
        return found

    def finish(self, row: int, r: int, total: Val, rows: list[Val], out: Val, residual: Val | None, count: int) -> None:
        k, spec = self.k, self.spec
        beside: Val | None = None
        if residual is not None:
            place = k.offset(residual, spec.residual[0] * row + spec.residual[1] * r, "i8")
            beside = load_bytes(k, place, spec.lanes, count, 0)
        value = spec.epilogue.narrowed(k, total, rows, beside)
        spec.epilogue.store(k, k.offset(out, spec.out[0] * row + spec.out[1] * r, "i8"), [value], count)


def lower_q_rows(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], w: np.ndarray, epilogue: Requantization, target: Target
) -> list[KernelCall]:
    """x[N,H,W,C], w[C,KH,KW,1] without zero points -> out[N,OH,OW,C], where `serves_rows`."""
    driver = _Driver(node, ins[0], outs[0], ins[3] if epilogue.residual else None, epilogue, target)
    bias = node.inputs[2].constant
    assert bias is not None
    moved = (bias - driver.zero * w.reshape(w.shape[0], -1).sum(axis=1, dtype=np.int64)).astype(np.int32)
    return depthwise_call(node, driver, lambda head: pack_words(w, head, driver.spec), moved, epilogue)


def pack_words(w: np.ndarray, head: np.ndarray, spec: _Rows) -> np.ndarray:
    """int32 [step of channels][head's rows, then every output row's words][channels of the step], zero past the last channel."""
    terms = [*head]
    for row in range(spec.rows):
        for column, pair in spec.words(row):
            both = []
            for tap in (2 * pair - row * spec.step, 2 * pair + 1 - row * spec.step):
                both.append(w[:, tap, column, 0].astype(np.int64) if 0 <= tap < spec.height else np.zeros(len(w), np.int64))
            terms.append(((both[0] & 0xFFFF) | (both[1] << 16)).astype(np.int32))
    steps = -(-len(w) // spec.lanes)
    padded = np.zeros((len(terms), steps * spec.lanes), np.int32)
    padded[:, : len(w)] = np.stack(terms)
    return np.ascontiguousarray(padded.reshape(len(terms), steps, spec.lanes).transpose(1, 0, 2)).reshape(-1)


class _Driver(RowsDriver):
    """As RowsDriver, with blocks of pixels beside each other."""

    def __init__(
        self, node: Node, x: Operand, out: Operand, residual: Operand | None, epilogue: Requantization, target: Target
    ) -> None:
        _, height, width, _ = node.inputs[1].type.shape
        super().__init__(node, x, out, residual, target, min(out.shape[1], 2), height)
        lanes, left = target.lanes("i32"), node.attrs["pads_begin"][1]
        beside = residual.strides[1:3] if residual is not None else (0, 0)
        self.spec = _Rows(
            lanes, self.rows, PIXELS[self.step], x.shape[3] % lanes, height, width, self.step, (), self.signed, self.zero, epilogue,
            x.strides[2], (out.strides[1], out.strides[2]), (beside[0], beside[1]),
        )  # fmt: skip
        self.width = Axis(x.shape[2], out.shape[2], width, self.step, 1, left, x.strides[2], out.strides[2], 0, 0)
        self.row = segments(self.width, self.spec.pixels)
        self.words = lanes * (epilogue.header + sum(len(self.spec.words(row)) for row in range(self.rows)))

    def rows_of(self, image: Val, first: Val, rows: int) -> None:
        for segment in self.row:
            self.segment(segment, image, first, rows)

    def segment(self, segment: Segment, image: Val, first: Val, rows: int) -> None:
        k, x, width = self.k, self.x, self.width
        start = segment.start * width.step - width.pad
        reach = (segment.pixels - 1) * width.step + width.taps
        columns = tuple(0 <= start + i < width.size for i in range(reach))
        s = self.spec
        spec = replace(s, rows=rows, pixels=segment.pixels, columns=columns)
        values: dict[str, Number] = {f"x{i}": x for i, x in enumerate(self.inputs(image, first, spec.inputs, start))}
        values |= {"w": self.w, "w_step": self.words}
        values["out"] = self.place(self.to, self.out, image, first, segment.start)
        if self.beside is not None and self.residual is not None:
            values["residual"] = self.place(self.beside, self.residual, image, first, segment.start)
        values |= {"count": segment.count, "steps": x.shape[3] // s.lanes}
        k.call(_Block(spec, self.target).record(), *(values[name] for name, _ in spec.parameters()))
