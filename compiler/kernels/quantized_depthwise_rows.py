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
from cortado.compiler.kernels.requantize import Requantization, load_bytes, multiplier_rows, widened
from cortado.compiler.lang import INDEX, PTR, Kernel, Type
from cortado.compiler.ops.quantized import output_scales
from cortado.compiler.ops.requantize import scale_of
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target

PIXELS = {1: 8, 2: 4}  # most of a block, by stride
TOGETHER = 2  # pixels that share a load of each weight
MOST_TAPS = 7  # of a kernel's side
TASK = 60_000  # multiply-adds that are worth a task of their own


def serves_q_rows(node: Node, target: Target) -> bool:
    """Two spatial axes, one output per channel, taps beside each other, vectors of integers."""
    w, attrs = node.inputs[1].type.shape, node.attrs
    plain = len(w) == 4 and attrs["group"] == node.inputs[0].type.shape[-1] == w[0]
    small = plain and max(w[1:3]) <= MOST_TAPS and set(attrs["dilations"]) == {1} and len(set(attrs["strides"])) == 1
    return small and attrs["strides"][0] <= 2 and min(attrs["pads_begin"]) >= 0 and target.lanes("i32") > 1


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
    """x[N,H,W,C], w[C,KH,KW,1] without zero points -> out[N,OH,OW,C], where `serves_q_rows`."""
    x, out = ins[0], outs[0]
    kind = node.inputs[0].type
    zero, signed = scale_of(kind)[1], kind.dtype == "int8"
    step, lanes = node.attrs["strides"][0], target.lanes("i32")
    rows = min(out.shape[1], 2)
    beside = ins[3].strides[1:3] if epilogue.residual else (0, 0)
    spec = _Rows(
        lanes, rows, PIXELS[step], x.shape[3] % lanes, w.shape[1], w.shape[2], step, (), signed, zero, epilogue,
        x.strides[2], (out.strides[1], out.strides[2]), (beside[0], beside[1]),
    )  # fmt: skip
    bias = node.inputs[2].constant
    assert bias is not None
    moved = (bias - zero * w.reshape(w.shape[0], -1).sum(axis=1, dtype=np.int64)).astype(np.int32)
    scales = output_scales([value.type for value in node.inputs], node.attrs)
    head = np.concatenate([moved[None], multiplier_rows(scales, epilogue.rounding)])
    blank = np.full((x.shape[2] - 1) * x.strides[2] + x.shape[3], zero & 0xFF, np.uint8)
    residual = [Ref("input", 3)] if epilogue.residual else []
    driver = _Driver(node, spec, x, out, ins[3] if epilogue.residual else None, target)
    refs = (
        Ref("input", 0),
        Ref("weights", array=pack_words(w, head, spec)),
        Ref("weights", array=blank),
        *residual,
        Ref("output", 0),
    )
    kernel = driver.record()
    return [KernelCall(kernel, refs, driver.tasks, driver.tasks if driver.tasks == driver.units else 0)]


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


class _Driver:
    """(x, weights, blank, [residual], out, begin, end); a unit is `rows` output rows of an image, a task some units."""

    def __init__(self, node: Node, spec: _Rows, x: Operand, out: Operand, residual: Operand | None, target: Target) -> None:
        self.spec, self.x, self.out, self.residual, self.target = spec, x, out, residual, target
        self.top, left = node.attrs["pads_begin"]
        self.width = Axis(x.shape[2], out.shape[2], spec.width, spec.step, 1, left, x.strides[2], out.strides[2], 0, 0)
        self.row = segments(self.width, spec.pixels)
        self.words = spec.lanes * (spec.epilogue.header + sum(len(spec.words(row)) for row in range(spec.rows)))
        self.groups = -(-out.shape[1] // spec.rows)
        self.units = out.shape[0] * self.groups
        macs = out.type.size * spec.height * spec.width
        self.tasks = max(1, min(self.units, 48, macs // TASK))

    def record(self) -> Kernel:
        self.k = k = KernelBuilder("q_depthwise", self.target)
        self.source, self.w, self.blank = k.param("x"), k.param("w"), k.param("blank")
        self.beside = k.param("residual") if self.residual is not None else None
        self.to = k.param("out")
        begin, end = k.param("begin", INDEX), k.param("end", INDEX)
        low, high = begin * self.units // self.tasks, end * self.units // self.tasks
        k.loop(low, high, 1, self.unit)
        return k.finish()

    def unit(self, number: Val) -> None:
        k, spec = self.k, self.spec
        image, group = number // self.groups, number % self.groups
        if self.x.shape[0] == 1:
            image, group = k.index(0), number
        first = group * spec.rows
        left = self.out.shape[1] % spec.rows

        def rows(count: int) -> None:
            for segment in self.row:
                self.segment(segment, image, first, count)

        if left == 0:
            rows(spec.rows)
        else:
            k.if_(first + spec.rows <= self.out.shape[1], lambda: rows(spec.rows), lambda: rows(left))

    def segment(self, segment: Segment, image: Val, first: Val, rows: int) -> None:
        k, x, width = self.k, self.x, self.width
        start = segment.start * width.step - width.pad
        reach = (segment.pixels - 1) * width.step + width.taps
        columns = tuple(0 <= start + i < width.size for i in range(reach))
        s = self.spec
        spec = replace(s, rows=rows, pixels=segment.pixels, columns=columns)
        base = k.offset(self.source, image * x.strides[0], "i8")
        values: dict[str, Number] = {}
        for i in range(spec.inputs):
            y = first * s.step + (i - self.top)
            row = k.select(k.compare("ult", y, x.shape[1]), k.offset(base, y * x.strides[1], "i8"), self.blank)
            values[f"x{i}"] = k.offset(row, start * x.strides[2], "i8")
        values |= {"w": self.w, "w_step": self.words}
        for name, base_, operand in (("out", self.to, self.out), ("residual", self.beside, self.residual)):
            if operand is not None and base_ is not None:
                at = image * operand.strides[0] + first * operand.strides[1] + segment.start * operand.strides[2]
                values |= {
                    name: k.offset(base_, at, "i8"),
                    f"{name}_row": operand.strides[1],
                    f"{name}_pixel": operand.strides[2],
                }
        values |= {"count": segment.count, "steps": x.shape[3] // s.lanes}
        k.call(_Block(spec, self.target).record(), *(values[name] for name, _ in spec.parameters()))
