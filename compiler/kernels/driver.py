"""The driver around tiles: loops over tasks, panels of output channels, parts of k and rows of pixels of one layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.kernels.epilogue import EpilogueKind
from cortado.compiler.kernels.geometry import Geometry, Segment, segments
from cortado.compiler.kernels.packing import panel_sizes
from cortado.compiler.kernels.rows import find_row, tiles_of_piece
from cortado.compiler.kernels.tile import Part, TileSpec, lines_ahead
from cortado.compiler.kernels.tiling import Core, Panels, Partition, choose_unroll, runs_of
from cortado.compiler.lang import INDEX, Kernel
from cortado.compiler.target import Target


@dataclass(frozen=True)
class GroupAxis:
    """Independent problems of the same shape; distances in elements, that of the weights in groups of packed panels."""

    count: int
    a: int
    weights: int
    out: int
    residual: int


@dataclass(frozen=True)
class Contraction:
    """One layer: out[pixel, o] = epilogue(bias[o] + sum over taps and channels of a[...] * weights[...]) in every group."""

    scalar: str
    geometry: Geometry
    groups: tuple[GroupAxis, ...]
    panels: Panels
    partition: Partition
    epilogue: EpilogueKind

    @property
    def group_count(self) -> int:
        return math.prod(axis.count for axis in self.groups)

    @property
    def weight_groups(self) -> int:
        """Groups of packed panels: fewer than groups where a matrix is broadcast."""
        return 1 + sum((axis.count - 1) * axis.weights for axis in self.groups)


@lru_cache(maxsize=256)
def contraction_driver(
    family: str, layer: Contraction, core: Core, target: Target, tile_kernel: Callable[[TileSpec, Target], Kernel]
) -> Kernel:
    """A driver (a, packed weights, [residual], out, begin, end). tile_kernel: records the tiles. Networks repeat layers, so it is kept."""
    return _Driver(family, layer, core, target, tile_kernel).record()


@dataclass(frozen=True)
class _Family:
    """Panels of one kind: how many there are of it in a group and in a chunk, and what their tiles look like."""

    per_group: int
    chunk: int
    vectors: int
    tail: int
    first_channel: int
    header: int
    size: int
    start: int
    row: tuple[Segment, ...]


@dataclass(frozen=True)
class _At:
    """Where the loops stand: pointers of the panel, of its weights, and of the pixels."""

    family: _Family
    a: Val
    w: Val
    bias: Val
    residual: Val | None
    out: Val


class _Driver:
    def __init__(
        self, family: str, layer: Contraction, core: Core, target: Target, tile_kernel: Callable[[TileSpec, Target], Kernel]
    ) -> None:
        self.layer, self.core, self.target, self.tile_kernel = layer, core, target, tile_kernel
        self.k = KernelBuilder(family, target)
        self.a, self.w = self.k.param("a"), self.k.param("w")
        self.residual = self.k.param("residual") if layer.epilogue.residual else None
        self.out = self.k.param("out")
        self.tiles: dict[TileSpec, Kernel] = {}

    def record(self) -> Kernel:
        k = self.k
        begin, end = k.param("begin", INDEX), k.param("end", INDEX)
        k.loop(begin, end, 1, self.task)
        return k.finish()

    def moved(self, ptr: Val, index: Number) -> Val:
        return self.k.offset(ptr, index, self.layer.scalar)

    def moved_out(self, ptr: Val, index: Number) -> Val:
        return self.k.offset(ptr, index, self.layer.epilogue.stored(self.layer.scalar))

    def moved_residual(self, ptr: Val, index: Number) -> Val:
        return self.k.offset(ptr, index, self.layer.epilogue.added(self.layer.scalar))

    def families(self) -> list[_Family]:
        layer, panels, split = self.layer, self.layer.panels, self.layer.partition
        width, groups = layer.geometry.width, layer.weight_groups
        sizes = panel_sizes(panels, layer.geometry.depth_of_sum, layer.epilogue.header, groups)
        found = []
        if panels.bodies:
            row = segments(width, panels.rows)
            found.append(
                _Family(panels.bodies, split.body_chunk, panels.vectors, panels.lanes, 0, sizes.header, sizes.body, 0, row)
            )
        if panels.last:
            row, first = segments(width, panels.last_rows), panels.bodies * panels.vectors * panels.lanes
            start = groups * panels.bodies * sizes.body
            found.append(_Family(1, split.last_chunk, panels.last, panels.tail, first, sizes.last_header, sizes.last, start, row))
        return found

    # --- loops over tasks, panels and units ---

    def task(self, number: Val) -> None:
        k, split = self.k, self.layer.partition
        block, chunk = number // split.chunks, number % split.chunks
        if split.blocks == 1:
            block = k.index(0)
        first = block * split.unit_block
        stop = k.min(first + split.unit_block, split.units)
        for family in self.families():
            count = family.per_group * self.layer.group_count
            low: Number = chunk * family.chunk if split.chunks > 1 else 0
            high: Number = k.min(low + family.chunk, count) if isinstance(low, Val) else count
            k.loop(low, high, 1, self.panel(family, first, stop))

    def panel(self, family: _Family, first: Val, stop: Val) -> Callable[[Val], None]:
        def body(number: Val) -> None:
            k, panels = self.k, self.layer.panels
            group, inside = number // family.per_group, number % family.per_group
            if self.layer.group_count == 1:
                group, inside = k.index(0), number
            a: Val = k.index(self.layer.geometry.offset)
            channel = inside * (panels.vectors * panels.lanes) + family.first_channel
            weights, out, residual = k.index(0), channel, channel
            for axis in reversed(self.layer.groups):
                here = group % axis.count
                group = group // axis.count
                a, weights = a + here * axis.a, weights + here * axis.weights
                out, residual = out + here * axis.out, residual + here * axis.residual
            w = self.moved(self.w, (weights * family.per_group + inside) * family.size + family.start)
            beside = self.moved_residual(self.residual, residual) if self.residual is not None else None
            kind, result = self.layer.epilogue, self.moved_out(self.out, out)
            place = kind.opened(k, result, family.vectors, panels.lanes)
            self.k_parts(_At(family, self.moved(self.a, a), self.moved(w, family.header), w, beside, place), first, stop)
            kind.closed(k, place, result, panels.lanes, (family.vectors - 1) * panels.lanes + family.tail)

        return body

    def k_parts(self, at: _At, first: Val, stop: Val) -> None:
        """All units for one range of channels, then for the next."""
        k, channels, size = self.k, self.layer.geometry.channels, self.layer.partition.k_part
        parts = max(1, -(-channels // max(1, size)))
        taps = self.layer.geometry.depth_of_sum // max(1, channels)
        step = taps * size * at.family.vectors * self.layer.panels.lanes

        def sweep(number: Number, run: int, part: Part) -> None:
            moved = _At(at.family, self.moved(at.a, number * size), self.moved(at.w, number * step), at.bias, at.residual, at.out)
            k.loop(first, stop, 1, lambda unit: self.unit(moved, unit, run, part))

        if parts == 1:
            sweep(0, channels, Part())
            return
        sweep(0, size, Part(first=True, last=False))
        k.loop(1, parts - 1, 1, lambda i: sweep(i, size, Part(first=False, last=False)))
        sweep(parts - 1, channels - (parts - 1) * size, Part(first=False, last=True))

    # --- one unit ---

    def unit(self, at: _At, unit: Val, run: int, part: Part) -> None:
        k, geometry = self.k, self.layer.geometry
        row = find_row(k, geometry, unit, self.layer.partition.row_parts)
        one = geometry.width.taps * run * at.family.vectors * self.layer.panels.lanes
        loops: dict[str, Number] = {
            "planes": row.planes,
            "a_plane": geometry.depth.dilation * geometry.depth.in_stride,
            "w_plane": one * geometry.height.taps,
            "kernel_rows": row.kernel_rows,
            "a_row": geometry.height.dilation * geometry.height.in_stride,
            "w_row": one,
            "ahead": one * geometry.height.taps * geometry.depth.taps if run < geometry.channels else at.family.size,
            "tile": unit * sum(segment.count for segment in at.family.row) if self.layer.partition.ahead else 0,
        }
        residual = None if at.residual is None else self.moved_residual(at.residual, row.residual)
        a, w = self.moved(at.a, row.a), self.moved(at.w, row.first_tap * one)
        here = _At(at.family, a, w, at.bias, residual, self.moved_out(at.out, row.out))
        for number in range(len(at.family.row)):
            self.segment(here, number, row.piece, run, part, loops)
            loops["tile"] = loops["tile"] + at.family.row[number].count

    def segment(self, at: _At, number: int, piece: Number, run: int, part: Part, loops: dict[str, Number]) -> None:
        """The call of a segment's tiles, of those alone that belong to this part of the row."""
        k, width, segment, split = self.k, self.layer.geometry.width, at.family.row[number], self.layer.partition
        start, count = tiles_of_piece(k, at.family.row, number, piece, split.row_parts)
        kernel, spec = self.tile(at.family, segment, run, part)
        position = start * (width.step * width.in_stride) + (segment.first_tap * width.dilation - width.pad) * width.in_stride
        values: dict[str, Number] = {
            "a": self.moved(at.a, position),
            "w": self.moved(at.w, segment.first_tap * run * spec.vectors * self.layer.panels.lanes),
            "bias": at.bias,
            "out": self.moved_out(at.out, start * width.out_stride),
            "count": count,
            "a_pixel": width.step * width.in_stride,
            "out_pixel": width.out_stride,
            "run": run,
            "tap": width.dilation * width.in_stride,
            **loops,
        }
        if at.residual is not None:
            values |= {
                "residual": self.moved_residual(at.residual, start * width.residual_stride),
                "residual_pixel": width.residual_stride,
            }
        for i, (_, _, taps) in enumerate(segment.groups):
            values |= {f"run_{i}": taps * run, f"taps_{i}": taps}
        k.call(kernel, *(values[name] for name, _ in spec.parameters()))

    def tile(self, family: _Family, segment: Segment, run: int, part: Part) -> tuple[Kernel, TileSpec]:
        layer, core = self.layer, self.core
        merged = layer.geometry.merged and layer.partition.k_part == layer.geometry.channels
        if layer.geometry.width.taps == 1:
            merged = True
        splits = core.splits(segment.pixels, family.vectors)
        unroll, exact = choose_unroll(core, segment.pixels * family.vectors, splits, runs_of(segment, run, merged))
        groups = tuple((first, stop) for first, stop, _ in segment.groups)
        spec = TileSpec(
            layer.scalar, segment.pixels, family.vectors, family.tail, groups, merged, layer.geometry.loops,
            unroll, exact, splits, core.by_lane, layer.epilogue, part,
            lines_ahead(layer.scalar, unroll * family.vectors * layer.panels.lanes, layer.partition.ahead),
        )  # fmt: skip
        if spec not in self.tiles:
            self.tiles[spec] = self.tile_kernel(spec, self.target)
        return self.tiles[spec], spec
