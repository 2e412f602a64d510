"""The loops of products by Strassen's scheme: over images, over pieces of their pairs and panels of both halves of the outputs, and tiles.

Where the weights are light, the sums of inputs of a piece are made just before its products, in a few cache lines that the next piece takes
again. Else all weights would pass for every piece; there a kernel before this one makes all sums, and each panel passes over all pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.kernels.epilogue import EpilogueKind
from cortado.compiler.kernels.geometry import Segment, segments
from cortado.compiler.kernels.packing import panel_sizes
from cortado.compiler.kernels.rows import start_of_piece, tiles_of_piece
from cortado.compiler.kernels.strassen_sums import SCALAR, Pairing, sum_pairs
from cortado.compiler.kernels.strassen_tile import PRODUCTS, PairSpec, pair_kernel
from cortado.compiler.kernels.tile import Part, lines_ahead
from cortado.compiler.kernels.tiling import LATENCY, Core, Panels, Partition, SingleCore, choose_unroll
from cortado.compiler.lang import BYTES, INDEX, Kernel
from cortado.compiler.target import Target


@dataclass(frozen=True)
class Cut:
    """How an image's work is cut. panels: of half of the outputs, of one height. partition: its units are pieces of the pairs, in tiles.

    together: sums are made piece by piece.
    """

    panels: Panels
    partition: Partition
    together: bool

    def tiles(self, pairing: Pairing) -> tuple[Segment, ...]:
        """An image's pairs in tiles; the last one on its own where the last pair is a pixel alone."""
        *before, last = segments(pairing.geometry.width, max(self.panels.rows, self.panels.last_rows))
        if pairing.pixels % 2 == 0 or last.count == 1:
            return (*before, last)
        return (*before, replace(last, count=last.count - 1), replace(last, start=last.stop - last.pixels, count=1))

    def room(self, pairing: Pairing) -> int:
        """Elements of the sums that a task holds at a time, or of those of an image."""
        if not self.together:
            return pairing.pairs * pairing.pitch
        tiles = self.tiles(pairing)
        most = -(-sum(segment.count for segment in tiles) // self.partition.row_parts)
        return min(pairing.pairs, most * tiles[0].pixels) * pairing.pitch

    def nbytes(self, pairing: Pairing) -> int:
        """Of all sums that are held at a time."""
        return pairing.images * (self.partition.tasks if self.together else 1) * self.room(pairing) * BYTES[SCALAR]


def products_driver(pairing: Pairing, cut: Cut, kind: EpilogueKind, core: Core, target: Target) -> Kernel:
    """(a, s, weights, [bias], [residual], out, begin, end): all outputs. Tasks are those of the partition, of image after image."""
    return _Driver(pairing, cut, kind, core, target).record()


@dataclass(frozen=True)
class _Family:
    """Panels of one kind: how many there are, in all and in a chunk, what their tiles look like, and where their weights are."""

    count: int
    chunk: int
    vectors: int
    tail: int
    first_channel: int
    size: int
    start: int


class _Driver:
    def __init__(self, pairing: Pairing, cut: Cut, kind: EpilogueKind, core: Core, target: Target) -> None:
        self.pairing, self.cut, self.split, self.kind = pairing, cut, cut.partition, kind
        self.core, self.target = core, target
        self.row = cut.tiles(pairing)
        self.k = KernelBuilder("strassen_products", target)
        pointers = ["a", "s", "w", *["bias"] * kind.bias, *["residual"] * kind.residual, "out"]
        self.pointers = {name: self.k.param(name) for name in pointers}

    def record(self) -> Kernel:
        k = self.k
        begin, end = k.param("begin", INDEX), k.param("end", INDEX)
        k.loop(begin, end, 1, self.task)
        return k.finish()

    def families(self) -> list[_Family]:
        panels, split = self.cut.panels, self.split
        sizes = panel_sizes(panels, PRODUCTS * self.pairing.run, 0, 1)
        first, start = panels.bodies * panels.vectors * panels.lanes, panels.bodies * sizes.body
        bodies = _Family(panels.bodies, split.body_chunk, panels.vectors, panels.lanes, 0, sizes.body, 0)
        last = _Family(1, split.last_chunk, panels.last, panels.tail, first, sizes.last, start)
        return [bodies] * (panels.bodies > 0) + [last] * (panels.last > 0)

    def moved(self, ptr: Val, index: Number) -> Val:
        return self.k.offset(ptr, index, SCALAR)

    # --- loops over tasks, pieces and panels ---

    def task(self, number: Val) -> None:
        k, split = self.k, self.split
        image, inside = number // split.tasks, number % split.tasks
        block, chunk = inside // split.chunks, inside % split.chunks
        first = block * split.unit_block
        stop = k.min(first + split.unit_block, split.units)
        at = self.image(image)
        at["s"] = self.moved(at["s"], (number if self.cut.together else image) * self.cut.room(self.pairing))
        if self.cut.together:
            k.loop(first, stop, 1, lambda unit: self.piece(at, unit))
        else:
            self.panels(at, chunk, lambda family, here: k.loop(first, stop, 1, lambda unit: self.unit(family, here, unit, 0)))

    def image(self, number: Val) -> dict[str, Val]:
        """The pointers at an image, but for that of sums."""
        tensors = {"a": self.pairing.a, "residual": self.pairing.residual, "out": self.pairing.out}
        distances = {name: tensor.image for name, tensor in tensors.items() if tensor is not None}
        return {name: self.moved(ptr, number * distances.get(name, 0)) for name, ptr in self.pointers.items()}

    def piece(self, at: dict[str, Val], unit: Val) -> None:
        """Sums, then all products of a piece of the pairs."""
        first, stop = (start_of_piece(self.k, self.row, piece, self.split.row_parts) for piece in (unit, unit + 1))
        sum_pairs(self.k, self.pairing, at["a"], at["s"], first, stop)
        self.panels(at, self.k.index(0), lambda family, here: self.unit(family, here, unit, first))

    def panels(self, at: dict[str, Val], chunk: Val, body: Callable[[_Family, dict[str, Val]], object]) -> None:
        """body: gets the pointers at each panel of a chunk."""
        k, panels, several = self.k, self.cut.panels, self.split.chunks > 1

        def panel(family: _Family, number: Val) -> None:
            channel = number * (panels.vectors * panels.lanes) + family.first_channel
            here = {name: self.moved(ptr, channel) if name in ("bias", "residual", "out") else ptr for name, ptr in at.items()}
            here["w"] = self.moved(at["w"], number * family.size + family.start)
            body(family, here)

        for family in self.families():
            low: Number = chunk * family.chunk if several else 0
            high: Number = k.min(low + family.chunk, family.count) if isinstance(low, Val) else family.count
            k.loop(low, high, 1, partial(panel, family))

    # --- one piece in one panel ---

    def unit(self, family: _Family, at: dict[str, Val], unit: Val, summed: Number) -> None:
        """summed: the first pair whose sums are held."""
        tile: Number = unit * sum(segment.count for segment in self.row) if self.split.ahead else 0
        for number, segment in enumerate(self.row):
            self.segment(family, at, number, unit, (summed, tile))
            tile = tile + segment.count

    def segment(self, family: _Family, at: dict[str, Val], number: int, piece: Val, before: tuple[Number, Number]) -> None:
        """The call of a segment's tiles, of those alone that belong to this piece. before: first summed pair, tiles before the segment."""
        k, pairing = self.k, self.pairing
        start, count = tiles_of_piece(k, self.row, number, piece, self.split.row_parts)
        summed, tile = before
        spec = self.spec(family, number)
        values: dict[str, Number] = {
            "s": self.moved(at["s"], (start - summed) * pairing.pitch),
            "s_pixel": pairing.pitch,
            "s_part": pairing.part,
            "w": at["w"],
            "right": pairing.half,
            "run": pairing.run,
            "count": count,
            "ahead": family.size,
            "tile": tile,
        }
        if "bias" in at:
            values["bias"] = at["bias"]
        for name, tensor in (("a", pairing.a), ("residual", pairing.residual), ("out", pairing.out)):
            if tensor is not None:
                values[name] = self.moved(at[name], start * (2 * tensor.pixel))
                values |= {f"{name}_pixel": 2 * tensor.pixel, f"{name}_second": tensor.pixel}
        k.call(pair_kernel(spec, self.target), *(values[name] for name, _ in spec.parameters()))

    def spec(self, family: _Family, number: int) -> PairSpec:
        core, pairs, tiles = self.core, self.row[number].pixels, self.split.ahead
        work = pairs * family.vectors
        # Seven loops are much code already. More sums than hide the latency gain nothing, nor do more steps, unless lines are fetched ahead.
        splits = 1 if isinstance(core, SingleCore) and work >= LATENCY else core.splits(pairs, family.vectors)
        unroll, exact = 1, True
        if core.by_lane or splits > 1 or tiles:
            unroll, exact = choose_unroll(core, work, splits, [self.pairing.run])
        alone = self.pairing.pixels % 2 == 1 and number == len(self.row) - 1
        return PairSpec(
            SCALAR, pairs, family.vectors, family.tail, ((0, pairs),), True, 0, unroll, exact, splits, core.by_lane, self.kind,
            Part(), lines_ahead(SCALAR, unroll * family.vectors * self.cut.panels.lanes, tiles), pairs - alone,
        )  # fmt: skip
