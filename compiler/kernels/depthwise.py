"""Depthwise convolution: the driver around the blocks of `depthwise_block`.

All channels of a few pixels are done before the next pixels: memory is then read and written in order. Blocks of channels whose rows
stay in the first cache level were measured to be slower (Zen 3: 1.0 to 1.3 times), since their lines are too far apart to be fetched
ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cortado.compiler.builder import KernelBuilder, Number, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Depthwise
from cortado.compiler.kernels.depthwise_block import BlockSpec, block_kernel
from cortado.compiler.kernels.epilogue import Epilogue, EpilogueKind
from cortado.compiler.kernels.geometry import Geometry, Segment, conv_geometry, segments
from cortado.compiler.kernels.rows import Row, find_row, tiles_of_piece
from cortado.compiler.kernels.tiling import ISSUE, Core, core_of
from cortado.compiler.lang import INDEX, SCALAR_OF, Kernel
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target

MOST_PIXELS = 8  # of a block
MOST_OUTPUTS = 4  # per channel; with more, the outputs of one channel are vectors of a grouped convolution

LINE = 64  # bytes of a cache line
STREAMS = 18  # lines that can be read side by side from beyond the second cache level
CROWDED = 0.08  # of a trip, for each more
CONFLICT = 1.5  # times: pixels whose distance puts them on the same cache sets drive out each other's half-used lines


def serves_depthwise(node: Node, epilogue: Epilogue) -> bool:
    """Whether the convolution is depthwise with few outputs per channel, and weights and bias are known."""
    group, outputs = node.attrs["group"], node.types[0].shape[-1]
    known = all(node.inputs[i].constant is not None for i in (1, epilogue.bias) if i is not None)
    return known and group > 1 and group == node.inputs[0].shape[-1] and outputs <= MOST_OUTPUTS * group


def lower_depthwise(
    node: Node,
    ins: Sequence[Operand],
    outs: Sequence[Operand],
    epilogue: Epilogue,
    target: Target,
    choice: Depthwise | None = None,
) -> list[KernelCall]:
    """x[N,*S,C], w[C*multiplier,*K,1] and the epilogue's inputs -> out[N,*OS,C*multiplier]. choice: None for the cost model's."""
    x, w, out = ins[0], ins[1], outs[0]
    scalar, channels = SCALAR_OF[out.type.dtype], x.shape[-1]
    core, multiplier = core_of(target, scalar), out.shape[-1] // channels
    beside = None if epilogue.residual is None else ins[epilogue.residual]
    geometry = conv_geometry(x, out, beside, w.shape[1:-1], 1, node.attrs)
    cuts = choose_cuts(core, geometry, channels, multiplier, choice)
    layer = Layer(scalar, geometry, channels, multiplier, epilogue.kind, core.lanes, *cuts)
    filters, bias = node.inputs[1].constant, None if epilogue.bias is None else node.inputs[epilogue.bias].constant
    assert filters is not None
    packed = Ref("weights", array=pack_steps(filters, None if bias is None else bias[:, None], layer))
    residual = [] if epilogue.residual is None else [Ref("input", epilogue.residual)]
    kernel = depthwise_driver(layer, target, block_kernel)
    return [KernelCall(kernel, (Ref("input", 0), packed, *residual, Ref("output", 0)), layer.tasks, layer.tasks)]


@dataclass(frozen=True)
class Layer:
    """One layer and how it is cut. vectors: of channels in a step of the block. pixels: most of a tile. row_parts: units of a row.

    channels, multiplier: of the input, and outputs of each; of the output, and 1, where groups have several channels each.
    unit_block: units of a task. ring: the input is one image without planes, of whose rows the last so many are there, each in the place
    of its number modulo ring; 0 where all are. packed: channels whose weights are together; 0 for those of a step, else a multiple.
    """

    scalar: str
    geometry: Geometry
    channels: int
    multiplier: int
    epilogue: EpilogueKind
    lanes: int
    vectors: int
    pixels: int
    row_parts: int
    unit_block: int
    ring: int = 0
    packed: int = 0

    @property
    def step(self) -> int:
        """Channels of one step."""
        return self.vectors * self.lanes

    @property
    def packed_row(self) -> int:
        """Elements of one packed term, or one row of the head, of all outputs that are packed together."""
        return (self.packed or self.step) * self.multiplier

    @property
    def packed_step(self) -> int:
        """Elements of packed bias and weights from one step, or several that are packed together, to the next."""
        return self.packed_row * (self.geometry.depth_of_sum + self.epilogue.header)

    @property
    def units(self) -> int:
        return self.geometry.rows * self.row_parts

    @property
    def tasks(self) -> int:
        return -(-self.units // self.unit_block)


def choose_cuts(
    core: Core, geometry: Geometry, channels: int, multiplier: int, choice: Depthwise | None = None
) -> tuple[int, int, int, int]:
    """vectors, pixels, row_parts and unit_block of a layer, by a cost model of the core. choice: the first two, where they are chosen."""
    if choice is None:
        best: tuple[float, Depthwise] | None = None
        for cycles, possible in block_choices(core, geometry, channels, multiplier):
            if best is None or cycles < 0.99 * best[0]:
                best = (cycles, possible)
        assert best is not None, "one pixel and one vector always fit"
        choice = best[1]
    elif not _block_fits(core, geometry, multiplier, choice.vectors, choice.pixels):
        raise ValueError(f"blocks of {choice.pixels} pixels by {choice.vectors} vectors are too large")
    return choice.vectors, choice.pixels, *choose_units(geometry, channels * multiplier, choice.pixels)


def choose_units(geometry: Geometry, outputs: int, pixels: int) -> tuple[int, int]:
    """row_parts and unit_block of a layer with so many output channels, in tiles of `pixels`."""
    wanted = max(1, min(48, geometry.rows * geometry.width.outputs * outputs * geometry.depth_of_sum // 100_000))
    row_parts = max(1, min(-(-geometry.width.outputs // pixels) // 2, -(-wanted // geometry.rows)))
    return row_parts, max(1, geometry.rows * row_parts // wanted)


def block_choices(core: Core, geometry: Geometry, channels: int, multiplier: int) -> list[tuple[float, Depthwise]]:
    """Every block that fits, with its cycles by the cost model, the largest first."""
    found = []
    for vectors in (2, 1):
        if vectors * core.lanes > max(channels, core.lanes):
            continue
        for pixels in range(min(MOST_PIXELS, geometry.width.outputs), 0, -1):
            if _block_fits(core, geometry, multiplier, vectors, pixels):
                cycles = _row_cycles(core, geometry, channels, multiplier, vectors, pixels)
                found.append((cycles, Depthwise(vectors, pixels)))
    return found


def _block_fits(core: Core, geometry: Geometry, multiplier: int, vectors: int, pixels: int) -> bool:
    held = min(geometry.width.taps, 3) * multiplier + 1 + (0 if core.fused else 1)
    fits = pixels == 1 or pixels * vectors * multiplier + held <= core.registers
    return fits and pixels <= MOST_PIXELS and vectors <= core.registers


def _row_cycles(core: Core, geometry: Geometry, channels: int, multiplier: int, vectors: int, pixels: int) -> float:
    width = geometry.width
    positions = len({r * width.step + t * width.dilation for r in range(pixels) for t in range(width.taps)})
    work, loads = pixels * width.taps * vectors * multiplier, (positions + width.taps * multiplier) * vectors
    trip = max(work / 2, loads / 2, (work + loads + positions + 4) / ISSUE)
    if vectors * core.lanes * core.element < LINE and width.in_stride * core.element % (core.first_level // 16) == 0:
        trip *= CONFLICT
    streams = positions * geometry.height.taps * geometry.depth.taps
    if geometry.height.size * geometry.height.in_stride * core.element > core.second_level:
        trip *= 1.0 + CROWDED * max(0, streams - STREAMS)
    steps, tiles = -(-channels // (vectors * core.lanes)), -(-width.outputs // pixels)
    return tiles * steps * (trip * geometry.height.taps * geometry.depth.taps + pixels * vectors * multiplier)


def pack_steps(filters: np.ndarray, head: np.ndarray | None, layer: Layer) -> np.ndarray:
    """[channels that are packed together][head, then terms of the sum][output of a channel][channel], zero past the last channel.

    filters[O,*K,C], with channels within a tap. head[O, rows]: the bias and whatever else the epilogue reads.
    """
    channels, multiplier = layer.channels, layer.multiplier
    terms = filters.reshape(channels, multiplier, -1)[:, :, layer.geometry.weight_order(layer.geometry.channels)]
    if head is not None:
        terms = np.concatenate([head.reshape(channels, multiplier, -1), terms], axis=2)
    width = layer.packed or layer.step
    steps = -(-channels // width)
    padded = np.zeros((steps * width, *terms.shape[1:]), filters.dtype)
    padded[:channels] = terms
    return np.ascontiguousarray(padded.reshape(steps, width, *terms.shape[1:]).transpose(0, 3, 2, 1)).reshape(-1)


def depthwise_driver(
    layer: Layer, target: Target, block_kernel: Callable[[BlockSpec, Target], Kernel], family: str = "depthwise"
) -> Kernel:
    """A driver (a, weights, [residual], out, begin, end). block_kernel: records the blocks. family: its name."""
    return _Driver(layer, target, block_kernel, family).record()


class _Driver:
    def __init__(self, layer: Layer, target: Target, block_kernel: Callable[[BlockSpec, Target], Kernel], family: str) -> None:
        self.layer, self.target = layer, target
        self.k = KernelBuilder(f"{family}_{layer.scalar}", target)
        self.a, self.w = self.k.param("a"), self.k.param("w")
        self.residual = self.k.param("residual") if layer.epilogue.residual else None
        self.out = self.k.param("out")
        self.row = segments(layer.geometry.width, layer.pixels)
        self.blocks = {segment: _block_of(segment, layer) for segment in self.row}
        self.kernels = {spec: block_kernel(spec, target) for spec in self.blocks.values()}

    def record(self) -> Kernel:
        k = self.k
        begin, end = k.param("begin", INDEX), k.param("end", INDEX)
        k.loop(begin, end, 1, self.task)
        return k.finish()

    def task(self, number: Val) -> None:
        k, layer = self.k, self.layer
        first = number * layer.unit_block
        k.loop(first, k.min(first + layer.unit_block, layer.units), 1, self.unit)

    def unit(self, unit: Val) -> None:
        row = find_row(self.k, self.layer.geometry, unit, self.layer.row_parts)
        if self.layer.ring:
            row = replace(row, a=row.a % self.ring)
        for number in range(len(self.row)):
            self.segment(row, number)

    def segment(self, row: Row, number: int) -> None:
        k, layer, geometry, segment = self.k, self.layer, self.layer.geometry, self.row[number]
        width, one = geometry.width, layer.packed_row * geometry.channels
        start, count = tiles_of_piece(k, self.row, number, row.piece, layer.row_parts)
        position = start * (width.step * width.in_stride) + (segment.first_tap * width.dilation - width.pad) * width.in_stride
        taps = row.first_tap * width.taps + segment.first_tap
        values: dict[str, Number] = {
            "a": self.moved(self.a, geometry.offset + row.a + position),
            "w": k.offset(self.w, taps * one + layer.packed_row * layer.epilogue.header, layer.scalar),
            "w_step": layer.packed_step,
            "bias": self.w,
            "out": self.moved(self.out, row.out + start * width.out_stride),
            "out_pixel": width.out_stride,
            "count": count,
            "steps": layer.channels // layer.step,
            "column": width.in_stride,
            "kernel_rows": row.kernel_rows,
            "a_row": geometry.height.dilation * geometry.height.in_stride,
            "w_row": one * width.taps,
            "planes": row.planes,
            "a_plane": geometry.depth.dilation * geometry.depth.in_stride,
            "w_plane": one * width.taps * geometry.height.taps,
        }
        if self.residual is not None:
            values["residual"] = self.moved(self.residual, row.residual + start * width.residual_stride)
            values["residual_pixel"] = width.residual_stride
        if layer.ring:
            values |= {"wrap": self.ring - row.a, "ring": self.ring}
        spec = self.blocks[segment]
        k.call(self.kernels[spec], *(values[name] for name, _ in spec.parameters()))

    @property
    def ring(self) -> int:
        """Elements of the ring."""
        return self.layer.ring * self.layer.geometry.height.in_stride

    def moved(self, ptr: Val, index: Number) -> Val:
        """Elements of input, residual and output."""
        return self.k.offset(ptr, index, self.layer.epilogue.stored(self.layer.scalar))


def _block_of(segment: Segment, layer: Layer) -> BlockSpec:
    columns = tuple((first, stop) for first, stop, taps in segment.groups for _ in range(taps))
    width = layer.geometry.width
    return BlockSpec(
        layer.scalar, layer.lanes, layer.vectors, layer.channels % layer.step, layer.multiplier, segment.pixels,
        width.step, width.dilation, columns, layer.geometry.loops, layer.epilogue, layer.ring > 0,
    )  # fmt: skip
