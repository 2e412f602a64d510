"""The matmul-shaped block that convolutions, fully connected layers and matrix products are made of.

A tile is `rows` output pixels by `vectors` vectors of output channels, all of it in registers. Its inner step loads the packed
weights of one k (`vectors` vectors), takes each pixel's A element straight from the channels-last tensor (no im2col, no packing of A)
and multiplies and adds. k runs over the channels of every tap (kernel cell).

Tiles are shared kernels: which pixels see which taps, the register block and the epilogue are part of the code; every distance and
trip count is a parameter, so all layers with the same register block run the same code. That costs nothing in the inner step, where
addresses are a row pointer (`rows` of them, in general registers) plus k, and it keeps code small.

Borders: a tile at the left or right border has several `groups`: neighbouring taps of one kernel row that the same pixels see.
The other pixels' multiply-adds are not recorded, so padding costs neither work nor a padded copy. Rows of the kernel above and below
the image are left out by run-time bounds, which the driver computes once a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.kernels.epilogue import EpilogueKind
from cortado.compiler.kernels.tiling import halves
from cortado.compiler.lang import BYTES, INDEX, PTR, Kernel, Type
from cortado.compiler.target import Target

LINE = 64  # bytes of a cache line


@dataclass(frozen=True)
class Part:
    """Which part of a k range that is split into blocks a tile does: the first starts from the bias, the others from what the
    output holds; the last one finishes the epilogue. The residual is read in the first, before anything is written over it.
    """

    first: bool = True
    last: bool = True


@dataclass(frozen=True)
class TileSpec:
    """What shapes a tile's code.

    scalar: "f32" or "f64". rows: output pixels. vectors: vectors of output channels, the last of which has `tail` lanes (or as many
    are missing before it, where tail is negative).
    groups: per group of taps the pixels [first, stop) that see it, in the order of the weights; taps nobody sees may have an empty one.
    merged: the taps of a group are neighbours in memory, so its k is one run; else there is a loop over taps.
    loops: 0 where the kernel has one row, 1 for a loop over kernel rows, 2 for one over kernel planes around it.
    unroll: steps of k per trip; exact: it divides every run. splits: independent partial sums per accumulator, which hide the latency
    of small tiles; it divides unroll.
    by_lane: A is loaded as a vector of k and multiplied lane by lane (cores with four lanes; unroll is a multiple of the lanes).
    epilogue: what is done to the sums; it says of which type the output is.
    ahead: cache lines that each trip fetches of the weights that the tiles after this one will use.
    """

    scalar: str
    rows: int
    vectors: int
    tail: int
    groups: tuple[tuple[int, int], ...]
    merged: bool
    loops: int
    unroll: int
    exact: bool
    splits: int
    by_lane: bool
    epilogue: EpilogueKind
    part: Part
    ahead: int = 0

    @property
    def stored(self) -> str:
        """Scalar type of the output."""
        return self.epilogue.stored(self.scalar)

    @property
    def takes_bias(self) -> bool:
        return self.epilogue.bias and self.part.first

    @property
    def takes_residual(self) -> bool:
        return self.epilogue.residual and self.part.first

    def parameters(self) -> list[tuple[str, Type]]:
        """Names and types of the kernel's parameters, in order. All but the pointers are counts or distances in elements.

        a: first tap of the first pixel. w: weights of that tap. bias, residual, out: at the first pixel and channel.
        count: tiles to do one after another, each `rows` pixels further. a_pixel, residual_pixel, out_pixel: distance of pixels.
        ahead: distance to the weights that are used next, and tile: number of the first tile among all that use these (where `ahead`).
        run: channels of a tap (of all taps of group i, run_i, where they are merged). taps_i: taps of group i, tap: their distance.
        kernel_rows, a_row, w_row and planes, a_plane, w_plane: trips and distances of the loops around.
        """
        names = [("a", PTR), ("w", PTR)]
        names += [("bias", PTR)] * self.takes_bias + [("residual", PTR), ("residual_pixel", INDEX)] * self.takes_residual
        names += [("out", PTR), ("out_pixel", INDEX), ("count", INDEX), ("a_pixel", INDEX)]
        names += [("ahead", INDEX), ("tile", INDEX)] * (self.ahead > 0)
        if self.merged:
            names += [(f"run_{i}", INDEX) for i in range(len(self.groups))]
        else:
            names += [("run", INDEX), ("tap", INDEX)] + [(f"taps_{i}", INDEX) for i in range(len(self.groups))]
        if self.loops >= 1:
            names += [("kernel_rows", INDEX), ("a_row", INDEX), ("w_row", INDEX)]
        if self.loops >= 2:
            names += [("planes", INDEX), ("a_plane", INDEX), ("w_plane", INDEX)]
        return names


@lru_cache(maxsize=1024)
def tile_kernel(spec: TileSpec, target: Target) -> Kernel:
    """Record the tile, once for all layers that have it. Called with the values of `spec.parameters()`."""
    return Tile(spec, target).record()


def lines_of_trip(scalar: str, elements: int) -> int:
    """Cache lines of the weights of one trip."""
    return max(1, elements * BYTES[scalar] // LINE)


def lines_ahead(scalar: str, elements: int, tiles: int) -> int:
    """How many of the lines ahead a trip, which uses so many elements, must fetch so that all tiles together fetch all; 0 for no tiles."""
    return -(-lines_of_trip(scalar, elements) // tiles) if tiles else 0


def _family(spec: TileSpec) -> str:
    ends = "" if spec.part == Part() else f"_{'first' if spec.part.first else 'last' if spec.part.last else 'middle'}"
    return f"tile_{spec.scalar}_{spec.rows}x{spec.vectors}{ends}"


class Tile:
    """Recording of one tile. Accumulators are a flat list: [split][row][vector]."""

    def __init__(self, spec: TileSpec, target: Target, family: str = "") -> None:
        self.spec = spec
        self.lanes = target.lanes(spec.scalar)
        self.k = KernelBuilder(family or _family(spec), target, shared=True)
        self.element = Type(spec.scalar)
        self.vector = Type(spec.scalar, self.lanes)
        self.panel = spec.vectors * self.lanes
        self.sum = self.vector.with_lanes(self.lanes // 2) if halves(self.lanes, spec.vectors, spec.tail) else self.vector
        self.p = {name: self.k.param(name, type_) for name, type_ in spec.parameters()}
        self.next_line: Val | None = None

    def record(self) -> Kernel:
        self.k.loop(0, self.p["count"], 1, self.one)
        return self.k.finish()

    # --- one tile ---

    def one(self, number: Val) -> None:
        k, p, spec = self.k, self.p, self.spec
        first = number * spec.rows
        out = k.offset(p["out"], first * p["out_pixel"], spec.stored)
        outs = self.pixels(out, p["out_pixel"], spec.stored)
        if spec.ahead:
            self.next_line = self.line_of(number)
        accumulators = self.start(outs)
        a = k.offset(p["a"], first * p["a_pixel"], spec.scalar)
        accumulators = self.planes(a, p["w"], accumulators)
        self.finish(self.combine(accumulators), outs, first)

    def line_of(self, number: Val) -> Val:
        """Distance from a trip's weights to the first line that it fetches. A trip uses several lines: each tile fetches others of them."""
        spec, line = self.spec, LINE // BYTES[self.spec.scalar]
        lines = lines_of_trip(spec.scalar, spec.unroll * self.panel)
        return self.p["ahead"] + (number + self.p["tile"]) * spec.ahead % lines * line

    def pixels(self, base: Val, distance: Val, scalar: str) -> list[Val]:
        return [self.k.offset(base, distance * r, scalar) for r in range(self.spec.rows)]

    def start(self, outs: Sequence[Val]) -> list[Val]:
        k, spec = self.k, self.spec
        if not spec.part.first:
            start = [self.load_out(out, v) for out in outs for v in range(spec.vectors)]
        elif spec.epilogue.bias:
            start = [k.load(self.p["bias"], self.vector, v * self.lanes) for v in range(spec.vectors)] * spec.rows
        else:
            start = [k.zero(self.vector)] * (spec.rows * spec.vectors)
        return start + [k.zero(self.vector)] * ((spec.splits - 1) * spec.rows * spec.vectors)

    def load_out(self, base: Val, v: int) -> Val:
        return self.k.load_lanes(base, self.vector, self.lanes_of(v), v * self.lanes)

    def lanes_of(self, v: int) -> int:
        return min(self.lanes, max(0, self.spec.tail + (self.spec.vectors - 1 - v) * self.lanes))

    def combine(self, accumulators: list[Val]) -> list[Val]:
        """Sums of the partial sums, pairwise."""
        size = self.spec.rows * self.spec.vectors
        parts = [accumulators[i : i + size] for i in range(0, len(accumulators), size)]
        while len(parts) > 1:
            half = (len(parts) + 1) // 2
            paired = [[x + y for x, y in zip(*both, strict=True)] for both in zip(parts[:half], parts[half:], strict=False)]
            parts = paired + parts[len(paired) : half]
        return parts[0]

    def finish(self, accumulators: list[Val], outs: Sequence[Val], first: Val) -> None:
        k, spec = self.k, self.spec
        kind = spec.epilogue
        residuals: list[Val] = []
        if spec.takes_residual:
            base = k.offset(self.p["residual"], first * self.p["residual_pixel"], spec.scalar)
            at = self.pixels(base, self.p["residual_pixel"], spec.scalar)
            residuals = [self.load_out(pixel, v) for pixel in at for v in range(spec.vectors)]
        kind = EpilogueKind(kind.bias, spec.takes_residual, kind.activation if spec.part.last else None)
        values = kind.finish(k, accumulators, residuals)
        for i, value in enumerate(values):
            row, v = divmod(i, spec.vectors)
            k.store_lanes(outs[row], value, self.lanes_of(v), v * self.lanes)

    # --- loops over taps ---

    def planes(self, a: Val, w: Val, accumulators: list[Val]) -> list[Val]:
        if self.spec.loops < 2:
            return self.kernel_rows(a, w, accumulators)
        return self.walk("planes", "a_plane", "w_plane", a, w, accumulators, self.kernel_rows)

    def kernel_rows(self, a: Val, w: Val, accumulators: list[Val]) -> list[Val]:
        if self.spec.loops < 1:
            return self.groups(a, w, accumulators)
        return self.walk("kernel_rows", "a_row", "w_row", a, w, accumulators, self.groups)

    def walk(
        self, trips: str, a_step: str, w_step: str, a: Val, w: Val, accumulators: list[Val], body: Callable[..., list[Val]]
    ) -> list[Val]:
        k, p, scalar = self.k, self.p, self.spec.scalar

        def once(i: Val, *carried: Val) -> list[Val]:
            return body(k.offset(a, i * p[a_step], scalar), k.offset(w, i * p[w_step], scalar), list(carried))

        return list(k.loop(0, p[trips], 1, once, accumulators))

    def groups(self, a: Val, w: Val, accumulators: list[Val]) -> list[Val]:
        k, p, spec = self.k, self.p, self.spec
        for i, (first, stop) in enumerate(spec.groups):
            if spec.merged:
                run = moved = p[f"run_{i}"]
                if first < stop:
                    accumulators = self.run(self.pixels(a, p["a_pixel"], spec.scalar), w, run, (first, stop), accumulators)
            else:
                run, moved = p["run"] * p[f"taps_{i}"], p["tap"] * p[f"taps_{i}"]
                if first < stop:
                    accumulators = self.taps(a, w, p[f"taps_{i}"], (first, stop), accumulators)
            a, w = k.offset(a, moved, spec.scalar), k.offset(w, run * self.panel, spec.scalar)
        return accumulators

    def taps(self, a: Val, w: Val, taps: Val, seen: tuple[int, int], accumulators: list[Val]) -> list[Val]:
        k, p, scalar = self.k, self.p, self.spec.scalar

        def once(i: Val, *carried: Val) -> list[Val]:
            rows = self.pixels(k.offset(a, i * p["tap"], scalar), p["a_pixel"], scalar)
            return self.run(rows, k.offset(w, i * (p["run"] * self.panel), scalar), p["run"], seen, list(carried))

        return list(k.loop(0, taps, 1, once, accumulators))

    # --- the run of k ---

    def run(self, rows: Sequence[Val], w: Val, run: Val, seen: tuple[int, int], accumulators: list[Val]) -> list[Val]:
        """k over [0, run) for the pixels in `seen`, which begin at `rows`; only their accumulators are carried."""
        spec, k = self.spec, self.k
        size = spec.rows * spec.vectors
        live = [s * size + r * spec.vectors + v for s in range(spec.splits) for r in range(*seen) for v in range(spec.vectors)]

        def trip(steps: int) -> Callable[..., list[Val]]:
            def body(at: Val, *carried: Val) -> list[Val]:
                values = dict(zip(live, carried, strict=True))
                here = {r: k.offset(rows[r], at, spec.scalar) for r in range(*seen)}
                weights = k.offset(w, at * self.panel, spec.scalar)
                if self.next_line is not None and steps == spec.unroll:
                    for number in range(spec.ahead):
                        k.virtual(
                            "prefetch", k.offset(weights, self.next_line + number * LINE // BYTES[spec.scalar], spec.scalar)
                        )
                (self.steps_by_lane if spec.by_lane and steps > 1 else self.steps)(here, weights, steps, values)
                return [values[i] for i in live]

            return body

        whole = run if spec.exact or spec.unroll == 1 else run - run % spec.unroll
        carried = k.loop(0, whole, spec.unroll, trip(spec.unroll), [self.resized(accumulators[i], self.sum) for i in live])
        if whole is not run:
            carried = k.loop(whole, run, 1, trip(1), carried)
        result = list(accumulators)
        for i, value in zip(live, carried, strict=True):
            result[i] = self.resized(value, self.vector)
        return result

    def resized(self, value: Val, type_: Type) -> Val:
        """The first lanes of a value, or those and unspecified ones."""
        given, wanted = value.type.lanes, type_.lanes
        return value if given == wanted else self.k.shuffle(value, value, [i if i < given else -1 for i in range(wanted)])

    def load_element(self, row: Val, step: int) -> Val:
        return self.k.load(row, self.element, step)

    def spread_element(self, row: Val, step: int) -> Val:
        """An element of A in every lane."""
        return self.k.broadcast(self.load_element(row, step), self.sum.lanes)

    def multiply_add(self, values: dict[int, Val], step: int, r: int, v: int, a: Val, w: Val) -> None:
        spec = self.spec
        i = ((step % spec.splits) * spec.rows + r) * spec.vectors + v
        values[i] = self.k.virtual("fma", a, w, values[i])

    def weight(self, w: Val, step: int, v: int) -> Val:
        return self.k.load(w, self.sum, (step * self.spec.vectors + v) * self.lanes)

    def steps(self, rows: dict[int, Val], w: Val, steps: int, values: dict[int, Val]) -> None:
        """A element by element. The smaller side of the tile is held in registers, the larger one passes through one register."""
        vectors = self.spec.vectors
        for step in range(steps):
            if len(rows) >= vectors:
                weights = [self.weight(w, step, v) for v in range(vectors)]
                for r in rows:
                    a = self.spread_element(rows[r], step)
                    for v in range(vectors):
                        self.multiply_add(values, step, r, v, a, weights[v])
            else:
                elements = {r: self.spread_element(rows[r], step) for r in rows}
                for v in range(vectors):
                    weight = self.weight(w, step, v)
                    for r in rows:
                        self.multiply_add(values, step, r, v, elements[r], weight)

    def steps_by_lane(self, rows: dict[int, Val], w: Val, steps: int, values: dict[int, Val]) -> None:
        """A as vectors of k; the multiply-add takes one lane of them."""
        k, vectors = self.k, self.spec.vectors
        for start in range(0, steps, self.lanes):
            parts = {r: k.load(rows[r], self.vector, start) for r in rows}
            for lane in range(self.lanes):
                weights = [self.weight(w, start + lane, v) for v in range(vectors)]
                for r in rows:
                    a = k.shuffle(parts[r], parts[r], [lane] * self.lanes)
                    for v in range(vectors):
                        self.multiply_add(values, start + lane, r, v, a, weights[v])
