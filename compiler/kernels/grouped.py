"""Convolutions whose groups have few output channels: blocks of `grouped_block` in the depthwise driver, where they are faster than tiles."""

from __future__ import annotations

from collections.abc import Sequence

from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Grouped
from cortado.compiler.kernels.depthwise import Layer, choose_units, depthwise_driver, pack_steps
from cortado.compiler.kernels.epilogue import Epilogue
from cortado.compiler.kernels.geometry import Geometry, balanced
from cortado.compiler.kernels.grouped_block import Groups
from cortado.compiler.kernels.tiling import PER_CYCLE, Core, SingleCore, choose_panels, core_of, panel_cycles
from cortado.compiler.lang import SCALAR_OF
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target

MOST_PIXELS = 16  # of a block
MOST_POINTS = 8  # the same where every pixel has its own input: nothing is gained by more
MOST_INPUTS = 16  # of a group: all of them are in the code of a block
UNROLLED = 512  # multiply-adds of a kernel row of a block, at most
WIDE = 32  # bytes of a vector beyond which groups that fill one by themselves are left to tiles: they have too many permutations

# Cycles, measured on Zen 4: of a block, of one of several kernel rows (for each input of a group, and at most), of a permutation behind
# multiply-adds, and of an input vector for which there is no register, where a single tap hides it. SINGLE: of whole 512 bits, and of a
# permutation that nothing hides.
TILE, TURN, TRIP, SHUFFLE, SPILL = 3.0, 1.25, 10.0, 0.3, 1.0
SINGLE_TRIP, SINGLE_SHUFFLE, SINGLE_SPILL, SINGLE_ALONE = 5.0, 0.1, 3.0, 1.15
APART, SINGLE_APART = 1.15, 0.85  # times what the cost model of tiles expects: what they take where groups follow each other


def serves_grouped(node: Node, epilogue: Epilogue, core: Core) -> bool:
    """Whether vectors can be filled with the outputs of whole groups, and weights and bias are known."""
    group = node.attrs["group"]
    inputs, outputs = (value.shape[-1] // group for value in (node.inputs[0], node.out()))
    known = all(node.inputs[i].constant is not None for i in (1, epilogue.bias) if i is not None)
    few = group > 1 and core.lanes > 1 and inputs <= MOST_INPUTS
    return known and few and max(core.lanes, outputs) % min(core.lanes, outputs) == 0


def grouped_choices(core: Core, geometry: Geometry, count: int, outputs: int) -> list[tuple[float, Grouped]]:
    """Every block that fits, with its cycles for a row of pixels by the cost model, fewest first. count: groups. outputs: of one."""
    most = MOST_PIXELS if geometry.width.taps > 1 else MOST_POINTS
    found = []
    for pixels in range(1, min(most, geometry.width.outputs) + 1):
        tiles = balanced(geometry.width.outputs, pixels)
        if tiles[0] == pixels and _fits(core, geometry, outputs, pixels):
            cycles = sum(tiles.count(size) * _tile_cycles(core, geometry, outputs, size) for size in {tiles[0], tiles[-1]})
            found.append((-(-count * outputs // block_width(core, outputs)) * cycles, Grouped(pixels)))
    return sorted(found, key=lambda entry: entry[0])


def choose_grouped(core: Core, geometry: Geometry, count: int, outputs: int) -> Grouped | None:
    """The fastest block by the cost model; None where tiles for each group are faster."""
    whole = outputs == core.lanes and (core.by_lane or core.lanes * core.element > WIDE)
    if outputs > core.lanes or whole:
        return None
    cycles, best = grouped_choices(core, geometry, count, outputs)[0]
    pixels, depth = geometry.width.outputs, geometry.depth_of_sum
    tiles = panel_cycles(core, choose_panels(core, outputs, pixels, depth), pixels, depth)
    return best if cycles < count * tiles * (SINGLE_APART if isinstance(core, SingleCore) else APART) else None


def block_width(core: Core, outputs: int) -> int:
    """Output channels of a block: of whole groups."""
    return max(core.lanes, outputs)


def _fits(core: Core, geometry: Geometry, outputs: int, pixels: int) -> bool:
    held = min(geometry.width.taps, 3) + 2 + (0 if core.fused else 1)
    sums = pixels * block_width(core, outputs) // core.lanes
    return pixels == 1 or (sums + held <= core.registers and sums * geometry.width.taps * geometry.channels <= UNROLLED)


def _tile_cycles(core: Core, geometry: Geometry, outputs: int, pixels: int) -> float:
    """Cycles of a tile of `pixels` pixels and one block's channels."""
    width, inputs, vectors = geometry.width, geometry.channels, block_width(core, outputs) // core.lanes
    positions = len({r * width.step + t * width.dilation for r in range(pixels) for t in range(width.taps)})
    sources = -(-inputs // outputs)
    work = pixels * width.taps * inputs * vectors
    shuffles = positions * vectors * (inputs * sources - (inputs == outputs))
    rows = geometry.height.taps * geometry.depth.taps
    spills = max(0, positions * sources + pixels * vectors + 4 - core.registers)
    if isinstance(core, SingleCore):
        trip = max(work + SINGLE_SHUFFLE * shuffles, SINGLE_ALONE * shuffles) + SINGLE_TRIP + SINGLE_SPILL * spills
    else:
        trip = work / PER_CYCLE + SHUFFLE * shuffles + min(TRIP, TURN * inputs) * (rows > 1) + SPILL * spills / width.taps
    return trip * rows + pixels * vectors + TILE


def lower_grouped(
    node: Node,
    ins: Sequence[Operand],
    outs: Sequence[Operand],
    geometry: Geometry,
    epilogue: Epilogue,
    target: Target,
    choice: Grouped,
) -> list[KernelCall]:
    """x[N,*S,C], w[O,*K,C/group] and the epilogue's inputs -> out[N,*OS,O]. Raises ValueError for a choice that does not fit."""
    out = outs[0]
    scalar, channels = SCALAR_OF[out.type.dtype], out.shape[-1]
    core, outputs = core_of(target, scalar), channels // node.attrs["group"]
    width = block_width(core, outputs)
    groups = Groups(geometry.channels, outputs, choice.packed or width)
    if choice.pixels > MOST_PIXELS or not _fits(core, geometry, outputs, choice.pixels) or groups.packed % width:
        raise ValueError(f"blocks of {choice.pixels} pixels by {width} of {groups.packed} channels do not fit")
    units = choose_units(geometry, channels, choice.pixels)
    layer = Layer(
        scalar, geometry, channels, 1, epilogue.kind, core.lanes, width // core.lanes, choice.pixels, *units, packed=groups.packed
    )
    filters, bias = node.inputs[1].constant, None if epilogue.bias is None else node.inputs[epilogue.bias].constant
    assert filters is not None
    packed = Ref("weights", array=pack_steps(groups.in_turns(filters), None if bias is None else bias[:, None], layer))
    residual = [] if epilogue.residual is None else [Ref("input", epilogue.residual)]
    kernel = depthwise_driver(layer, target, groups.block_kernel, "grouped")
    return [KernelCall(kernel, (Ref("input", 0), packed, *residual, Ref("output", 0)), layer.tasks, layer.tasks)]
