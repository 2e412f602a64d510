"""The block of depthwise convolutions: vectors over channels, several pixels of a row, every loaded input used by all its taps.

Blocks are shared kernels, as the tiles of `tile.py` are: which pixels see which column of the kernel is part of the code, distances
and trips are parameters. Channels are the inner loop, so memory is read and written in order; kernel rows are a run-time loop around
the unrolled columns, with bounds that leave out rows outside the image. Where a channel has several outputs there are as many
accumulators, woven together before the epilogue.
"""

from __future__ import annotations

from dataclasses import dataclass

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.kernels.epilogue import EpilogueKind
from cortado.compiler.lang import INDEX, PTR, Kernel, Type
from cortado.compiler.target import Target


@dataclass(frozen=True)
class BlockSpec:
    """What shapes a block's code.

    scalar: "f32" or "f64". lanes: of a vector. vectors: of channels at a time. tail: channels of the last step, 0 where there is none.
    multiplier: outputs per channel. pixels: of a tile. step, dilation: of the width axis.
    columns: for each kernel column the pixels [first, stop) that see it. loops: 0, 1 (kernel rows) or 2 (and planes).
    ring: input rows lie in a ring, which may start over between kernel rows.
    """

    scalar: str
    lanes: int
    vectors: int
    tail: int
    multiplier: int
    pixels: int
    step: int
    dilation: int
    columns: tuple[tuple[int, int], ...]
    loops: int
    epilogue: EpilogueKind
    ring: bool = False

    def parameters(self) -> list[tuple[str, Type]]:
        """Names and types of the kernel's parameters, in order; distances in elements.

        a: first column of the first pixel. w: that tap's weights of the first channels, w_step further those of the next ones.
        bias: of the first channels. residual, out: at the first pixel. count: tiles, one after another. steps: full steps of channels.
        column: distance of input columns. wrap: distance to the end of the ring, whose size is ring.
        """
        names = [("a", PTR), ("w", PTR), ("w_step", INDEX)] + [("bias", PTR)] * self.epilogue.bias
        names += [("residual", PTR), ("residual_pixel", INDEX)] * self.epilogue.residual
        names += [("out", PTR), ("out_pixel", INDEX), ("count", INDEX), ("steps", INDEX), ("column", INDEX)]
        if self.loops >= 1:
            names += [("kernel_rows", INDEX), ("a_row", INDEX), ("w_row", INDEX)]
        if self.loops >= 2:
            names += [("planes", INDEX), ("a_plane", INDEX), ("w_plane", INDEX)]
        return names + [("wrap", INDEX), ("ring", INDEX)] * self.ring


def block_kernel(spec: BlockSpec, target: Target) -> Kernel:
    """Record the block. Called with the values of `spec.parameters()`."""
    return Block(spec, target).record()


class Block:
    """Recording of one block. Accumulators are a flat list: [output of a channel][pixel][vector]."""

    family = "depthwise"
    halves = True  # whether few channels may be half a vector

    def __init__(self, spec: BlockSpec, target: Target) -> None:
        self.spec, self.stored = spec, spec.epilogue.stored(spec.scalar)
        self.k = KernelBuilder(f"{self.family}_{spec.scalar}_{spec.pixels}x{spec.vectors}", target, shared=True)
        self.vector = Type(spec.scalar, spec.lanes)
        self.p = {name: self.k.param(name, type_) for name, type_ in spec.parameters()}

    def record(self) -> Kernel:
        self.k.loop(0, self.p["count"], 1, self.tile)
        return self.k.finish()

    def moved(self, ptr: Val, index: Number) -> Val:
        """Elements of input, residual and output."""
        return self.k.offset(ptr, index, self.stored)

    def moved_words(self, ptr: Val, index: Number) -> Val:
        """Elements of what is packed."""
        return self.k.offset(ptr, index, self.spec.scalar)

    def tile(self, number: Val) -> None:
        k, p, spec = self.k, self.p, self.spec
        width = spec.vectors * spec.lanes
        first = number * spec.pixels
        a = self.moved(p["a"], first * spec.step * p["column"])
        out = self.moved(p["out"], first * p["out_pixel"])
        residual = self.moved(p["residual"], first * p["residual_pixel"]) if spec.epilogue.residual else None

        def at(step: Val, channels: int) -> None:
            weights = self.packed(step)
            bias = self.moved_words(p["bias"], weights) if spec.epilogue.bias else None
            inside, outside = step * self.inputs(width), step * (width * spec.multiplier)
            beside = None if residual is None else self.moved(residual, outside)
            self.channels(
                self.moved(a, inside), self.moved_words(p["w"], weights), bias, beside, self.moved(out, outside), channels
            )

        k.loop(0, p["steps"], 1, lambda step: at(step, width))
        if spec.tail:
            at(p["steps"], spec.tail)

    def inputs(self, channels: int) -> int:
        """How many channels of the input so many neighbouring channels of a step read."""
        return channels

    def packed(self, step: Val) -> Val:
        """Where a step's weights begin, in elements from those of the first."""
        return step * self.p["w_step"]

    def channels(self, a: Val, w: Val, bias: Val | None, residual: Val | None, out: Val, channels: int) -> None:
        """All pixels of the tile for `channels` neighbouring channels."""
        k, p, spec = self.k, self.p, self.spec
        vectors = -(-channels // spec.lanes)
        start: list[Val] = []
        for m in range(spec.multiplier):
            row = [self.start(bias, m * spec.vectors + v, self.vector_of(v, channels)) for v in range(vectors)]
            start += row * spec.pixels

        def walk(depth: int, a: Val, w: Val, sums: list[Val]) -> list[Val]:
            if depth == 0:
                return self.columns(a, w, channels, sums)
            if depth == 1:
                return self.kernel_rows(a, w, channels, sums)
            trips, a_step, w_step = "planes", "a_plane", "w_plane"

            def once(i: Val, *carried: Val) -> list[Val]:
                return walk(depth - 1, self.moved(a, i * p[a_step]), self.moved_words(w, i * p[w_step]), list(carried))

            return list(k.loop(0, p[trips], 1, once, sums))

        sums = walk(spec.loops, a, w, start)
        for r in range(spec.pixels):
            of_pixel = [[sums[(m * spec.pixels + r) * vectors + v] for v in range(vectors)] for m in range(spec.multiplier)]
            self.finish(of_pixel, r, bias, residual, out, channels)

    def kernel_rows(self, a: Val, w: Val, channels: int, sums: list[Val]) -> list[Val]:
        """All kernel rows of a plane that are inside the image."""
        k, p = self.k, self.p

        def once(i: Val, *carried: Val) -> list[Val]:
            return self.columns(self.moved(a, i * p["a_row"]), self.moved_words(w, i * p["w_row"]), channels, list(carried))

        def once_around(i: Val, a: Val, left: Val, *carried: Val) -> list[Val]:
            """a: the row, carried since LLVM else keeps one address for each column. left: elements from it to the end of the ring."""
            found = self.columns(a, self.moved_words(w, i * p["w_row"]), channels, list(carried))
            left = left - p["a_row"]
            again = k.select(left > 0, k.index(0), p["ring"])
            return [self.moved(a, p["a_row"] - again), left + again, *found]

        if self.spec.ring:
            return list(k.loop(0, p["kernel_rows"], 1, once_around, [a, p["wrap"], *sums])[2:])
        return list(k.loop(0, p["kernel_rows"], 1, once, sums))

    def start(self, bias: Val | None, number: int, vector: Type) -> Val:
        return self.k.zero(vector) if bias is None else self.k.load(bias, vector, number * self.spec.lanes)

    def vector_of(self, v: int, count: int) -> Type:
        """Of vector v of `count` channels. Half a vector takes half the time of a long one where one of these starts in a cycle."""
        lanes = self.spec.lanes
        short = self.halves and self.spec.multiplier == 1 and lanes >= 16 and self.lanes_of(v, count) <= lanes // 2
        return self.vector.with_lanes(lanes // 2) if short else self.vector

    def lanes_of(self, v: int, count: int) -> int:
        return min(self.spec.lanes, count - v * self.spec.lanes)

    def columns(self, a: Val, w: Val, channels: int, sums: list[Val]) -> list[Val]:
        """One kernel row. Each input vector is loaded once and used by every tap that wants it."""
        spec = self.spec
        sums = list(sums)
        vectors, width = -(-channels // spec.lanes), spec.vectors * spec.lanes
        users = self.users()
        for v in range(vectors):
            weights: dict[tuple[int, int], Val] = {}
            for position in sorted(users):
                column = self.moved(a, self.p["column"] * position)
                value = self.load(column, self.vector_of(v, channels), self.lanes_of(v, channels), v * spec.lanes)
                for tap, r in users[position]:
                    for m in range(spec.multiplier):
                        if (tap, m) not in weights:
                            place = (tap * spec.multiplier + m) * width + v * spec.lanes
                            weights[tap, m] = self.load_weight(w, place, value.type)
                        i = (m * spec.pixels + r) * vectors + v
                        sums[i] = self.multiply_add(value, weights[tap, m], sums[i])
        return sums

    def users(self) -> dict[int, list[tuple[int, int]]]:
        """For every position along the row that is read: the taps and pixels that want it."""
        spec = self.spec
        found: dict[int, list[tuple[int, int]]] = {}
        for tap, (first, stop) in enumerate(spec.columns):
            for r in range(first, stop):
                found.setdefault(r * spec.step + tap * spec.dilation, []).append((tap, r))
        return found

    def load(self, column: Val, vector: Type, count: int, at: int) -> Val:
        """The first `count` channels from `at` on."""
        return self.k.load_lanes(column, vector, count, at)

    def load_weight(self, w: Val, at: int, vector: Type) -> Val:
        return self.k.load(w, vector, at)

    def multiply_add(self, value: Val, weight: Val, total: Val) -> Val:
        return self.k.virtual("fma", value, weight, total)

    def finish(self, sums: list[list[Val]], r: int, head: Val | None, residual: Val | None, out: Val, channels: int) -> None:
        """Store one pixel. sums: [output of a channel][vector]. head: the numbers before the weights."""
        k, p, spec = self.k, self.p, self.spec
        values = self.woven(sums)
        outputs = channels * spec.multiplier
        values = values[: -(-outputs // spec.lanes)]
        counts = [self.lanes_of(v, outputs) for v in range(len(values))]
        beside: list[Val] = []
        if residual is not None:
            at = self.moved(residual, p["residual_pixel"] * r)
            beside = [
                k.load_lanes(at, value.type, count, v * spec.lanes)
                for v, (value, count) in enumerate(zip(values, counts, strict=True))
            ]
        pixel = self.moved(out, p["out_pixel"] * r)
        for v, value in enumerate(spec.epilogue.finish(k, values, beside)):
            k.store_lanes(pixel, value, counts[v], v * spec.lanes)

    def woven(self, sums: list[list[Val]]) -> list[Val]:
        """Vectors in the order of the output's channels: those of one input channel are neighbours."""
        spec, k = self.spec, self.k
        if spec.multiplier == 1:
            return sums[0]
        if spec.lanes == 1:
            return [sums[m][v] for v in range(len(sums[0])) for m in range(spec.multiplier)]
        result = []
        for number in range(spec.multiplier * len(sums[0])):
            source = [divmod(number * spec.lanes + lane, spec.multiplier) for lane in range(spec.lanes)]
            woven: Val | None = None
            for m in range(spec.multiplier):
                for v in sorted({c // spec.lanes for c, which in source if which == m}):
                    mine = [which == m and c // spec.lanes == v for c, which in source]
                    keep = [spec.lanes + source[i][0] % spec.lanes if own else i for i, own in enumerate(mine)]
                    first = sums[m][v] if woven is None else woven
                    woven = k.shuffle(first, sums[m][v], keep)
            assert woven is not None
            result.append(woven)
        return result
