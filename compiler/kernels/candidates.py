"""The choices that are worth measuring for a node: algorithms, then blocks of registers for one, then the loops around."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Choice, Depthwise, Direct, Grouped, Winograd
from cortado.compiler.kernels.conv import conv_problem
from cortado.compiler.kernels.dense import fc_problem
from cortado.compiler.kernels.depthwise import block_choices, choose_cuts, serves_depthwise
from cortado.compiler.kernels.driver import GroupAxis
from cortado.compiler.kernels.epilogue import parse_epilogue
from cortado.compiler.kernels.geometry import Geometry
from cortado.compiler.kernels.grouped import choose_grouped, grouped_choices, serves_grouped
from cortado.compiler.kernels.tiling import Core, choose_panels, choose_partition, core_of, panel_choices, stores_far
from cortado.compiler.kernels.winograd import choose_winograd, product_problem, serves_winograd, tiling_of
from cortado.compiler.kernels.winograd_algebra import POINTS
from cortado.compiler.lang import SCALAR_OF
from cortado.compiler.program import Operand
from cortado.compiler.target import Target

Problem = tuple[Geometry, tuple[GroupAxis, ...], int]  # geometry, groups, and output channels of a group
MOST_SHAPES = 24  # of register blocks
SLOWEST = 1.7  # times the cost model's best: what it finds slower than that is not measured


def algorithms(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[Choice]:
    """Every algorithm that can do a node, as the cost model would use it; the one it chooses is first. None where nothing is to be chosen."""
    if outs[0].type.size == 0 or node.op not in ("conv", "fc") or node.inputs[1].constant is None:
        return []
    core = core_of(target, SCALAR_OF[outs[0].type.dtype])
    if node.op == "conv" and serves_depthwise(node, parse_epilogue(node.attrs["epilogue"], 2)):
        return [_blocks(node, ins, outs, core)[0]]
    problem = problem_of(node, ins, outs)
    found: list[Choice] = [_tiles(core, problem, 1)[0]]
    if node.op == "conv" and serves_grouped(node, parse_epilogue(node.attrs["epilogue"], 2), core):
        groups = _groups(core, problem)
        return [groups[0], *found] if choose_grouped(core, *_one_axis(problem)) is not None else [*found, groups[0]]
    if node.op == "conv" and serves_winograd(node, ins, outs, target):
        chosen = choose_winograd(node, ins, outs, target)
        found = [*([] if chosen is None else [chosen]), *found, *(Winograd(m) for m in POINTS)]
    return list(dict.fromkeys(found))


def shapes(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target, choice: Choice) -> list[Choice]:
    """Other blocks of registers for the algorithm of a choice, the best of the cost model first."""
    core = core_of(target, SCALAR_OF[outs[0].type.dtype])
    if isinstance(choice, Depthwise):
        return list(_blocks(node, ins, outs, core))
    if isinstance(choice, Direct):
        return list(_tiles(core, problem_of(node, ins, outs), MOST_SHAPES))
    if isinstance(choice, Grouped):
        return list(_groups(core, problem_of(node, ins, outs)))
    problem = product_problem(tiling_of(node, ins, outs, choice.m), outs[0].shape[-1], ins[0].shape[-1])
    return [replace(choice, products=tiles) for tiles in _tiles(core, problem, MOST_SHAPES // 2)]


def cuts(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target, choice: Choice) -> list[Choice]:
    """Other ways to cut the loops around the tiles of a choice."""
    core = core_of(target, SCALAR_OF[outs[0].type.dtype])
    if isinstance(choice, Direct):
        return list(_cuts(core, problem_of(node, ins, outs), choice))
    if isinstance(choice, Winograd):
        problem = product_problem(tiling_of(node, ins, outs, choice.m), outs[0].shape[-1], ins[0].shape[-1])
        products = choice.products or _tiles(core, problem, 1)[0]
        return [replace(choice, products=cut) for cut in _cuts(core, problem, products)]
    return []


def problem_of(node: Node, ins: Sequence[Operand], outs: Sequence[Operand]) -> Problem:
    """A conv or fc as tiles see it."""
    return (conv_problem if node.op == "conv" else fc_problem)(node, ins, outs)


def _tiles(core: Core, problem: Problem, most: int) -> list[Direct]:
    """Register blocks, the one that the cost model chooses first."""
    geometry, groups, outputs = problem
    pixels, depth = geometry.width.outputs, geometry.depth_of_sum
    far = stores_far(core, geometry, outputs, math.prod(axis.count for axis in groups))
    panels = choose_panels(core, outputs, pixels, depth, far=far)
    best = Direct(panels.vectors, panels.rows or panels.last_rows, panels.last_rows or panels.rows)
    ranked = panel_choices(core, outputs, pixels, depth, far)
    others = [tiles for cycles, tiles in ranked if cycles <= SLOWEST * ranked[0][0]]
    return [best, *(tiles for tiles in others if tiles != best)][:most]


def _groups(core: Core, problem: Problem) -> list[Grouped]:
    """Blocks of several groups, the best of the cost model first."""
    ranked = grouped_choices(core, *_one_axis(problem))
    return [block for cycles, block in ranked if cycles <= SLOWEST * ranked[0][0]]


def _one_axis(problem: Problem) -> tuple[Geometry, int, int]:
    """The geometry of a convolution, the number of its groups, and output channels of one."""
    geometry, groups, outputs = problem
    return geometry, groups[0].count, outputs


def _cuts(core: Core, problem: Problem, tiles: Direct) -> list[Direct]:
    geometry, groups, outputs = problem
    panels = choose_panels(core, outputs, geometry.width.outputs, geometry.depth_of_sum, tiles)
    count = math.prod(axis.count for axis in groups)
    plain = choose_partition(core, geometry, panels, count, True, tiles)
    blocks = {max(1, plain.blocks * factor // 4) for factor in (1, 2, 8, 16)} | {1}
    parts = -(-geometry.channels // plain.k_part)
    k_parts = {k for k in (1, parts - 1, parts + 1, 2 * parts, 4) if 1 <= k <= max(1, geometry.channels // 32)}
    found = [replace(tiles, blocks=number) for number in sorted(blocks - {plain.blocks})]
    found += [replace(tiles, k_parts=number) for number in sorted(k_parts - {parts})]
    return [*found, *([replace(tiles, ahead=plain.ahead == 0)] if core.prefetch else [])]


def _blocks(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], core: Core) -> list[Depthwise]:
    geometry = conv_problem(node, ins, outs)[0]
    channels = ins[0].shape[-1]
    multiplier = outs[0].shape[-1] // channels
    best = Depthwise(*choose_cuts(core, geometry, channels, multiplier)[:2])
    ranked = sorted(block_choices(core, geometry, channels, multiplier), key=lambda entry: entry[0])
    return [best, *(block for _, block in ranked if block != best)]
