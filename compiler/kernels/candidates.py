"""The choices that are worth measuring for a node: algorithms, then blocks of registers for one, then the loops around."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cortado.compiler.graph import Node
from cortado.compiler.kernels.algorithm import choose_algorithm
from cortado.compiler.kernels.chain import chain_pays
from cortado.compiler.kernels.choice import Chain, Choice, Depthwise, Direct, Grouped, Strassen, Winograd
from cortado.compiler.kernels.conv import conv_problem
from cortado.compiler.kernels.dense import fc_problem
from cortado.compiler.kernels.depthwise import block_choices, choose_cuts, serves_depthwise
from cortado.compiler.kernels.driver import GroupAxis
from cortado.compiler.kernels.epilogue import parse_epilogue
from cortado.compiler.kernels.geometry import Geometry
from cortado.compiler.kernels.grouped import choose_grouped, grouped_choices, serves_grouped
from cortado.compiler.kernels.quantized_conv import q_conv_sums, q_fc_sums
from cortado.compiler.kernels.quantized_depthwise import serves_q_depthwise
from cortado.compiler.kernels.quantized_winograd import choose_q_winograd, exact_filterings, q_product_problem, serves_q_winograd
from cortado.compiler.kernels.strassen import light, pair_problem, serves_strassen, tile_core
from cortado.compiler.kernels.tiling import Core, choose_panels, choose_partition, core_of, panel_choices, stores_far
from cortado.compiler.kernels.winograd import product_problem, serves_winograd, taps_of
from cortado.compiler.kernels.winograd_algebra import TILES
from cortado.compiler.lang import SCALAR_OF
from cortado.compiler.program import Operand
from cortado.compiler.target import Target
from cortado.compiler.tuning import QUANTIZED

Problem = tuple[Geometry, tuple[GroupAxis, ...], int]  # geometry, groups, and output channels of a group
MOST_SHAPES = 24  # of register blocks
SLOWEST = 1.7  # times the cost model's best: what it finds slower than that is not measured


@dataclass(frozen=True)
class _Tiled:
    """What tiles are chosen for. far: as `tiling.stores_far`. packable: weights may be in parts of k."""

    core: Core
    problem: Problem
    far: bool
    packable: bool

    @property
    def groups(self) -> int:
        return math.prod(axis.count for axis in self.problem[1])


def algorithms(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[Choice]:
    """Every algorithm that can do a node, as the cost model would use it; the one it chooses is first. None where nothing is to be chosen.

    Of a conv_chain: whether it should be one, as planned for one thread.
    """
    if node.op == "conv_chain":
        fused = chain_pays(node.inputs, node.attrs, target, 1)
        return [Chain(fused), Chain(not fused)]
    if outs[0].type.size == 0 or node.op not in ("conv", "fc", *QUANTIZED) or node.inputs[1].constant is None:
        return []
    if node.op in QUANTIZED:
        return _q_algorithms(node, ins, outs, target)
    if node.op == "conv" and serves_depthwise(node, parse_epilogue(node.attrs["epilogue"], 2)):
        return [_blocks(node, ins, outs, target)[0]]
    tiled = _tiled(node, ins, outs, target)
    found: list[Choice] = [_tiles(tiled, 1)[0]]
    if node.op == "conv" and serves_grouped(node, parse_epilogue(node.attrs["epilogue"], 2), tiled.core):
        groups = _groups(tiled)
        found = [groups[0], *found] if choose_grouped(tiled.core, *_one_axis(tiled.problem)) is not None else [*found, groups[0]]
    if node.op == "conv" and serves_winograd(node, ins, outs, target):
        found += [Winograd(m) for m in TILES[taps_of(node)]]
    if serves_strassen(node, ins, outs, target):
        found.append(Strassen())
    chosen = choose_algorithm(node, ins, outs, target)
    return list(dict.fromkeys([*([] if chosen is None else [chosen]), *found]))


def _q_algorithms(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[Choice]:
    if node.inputs[2].constant is None or (node.op == "q_conv" and serves_q_depthwise(node)):
        return []
    found: list[Choice] = [_tiles(_tiled(node, ins, outs, target), 1)[0]]
    if node.op == "q_conv" and serves_q_winograd(node, outs, target):
        m = choose_q_winograd(node, ins, outs, target)
        found = [*([] if m is None else [Winograd(m)]), *found, *map(Winograd, exact_filterings(node))]
    return list(dict.fromkeys(found))


def shapes(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target, choice: Choice) -> list[Choice]:
    """Other blocks of registers for the algorithm of a choice, the best of the cost model first."""
    if isinstance(choice, Chain):
        return []
    if isinstance(choice, Depthwise):
        return list(_blocks(node, ins, outs, target))
    if isinstance(choice, Direct):
        return list(_tiles(_tiled(node, ins, outs, target), MOST_SHAPES))
    if isinstance(choice, Grouped):
        return list(_groups(_tiled(node, ins, outs, target)))
    products = _tiles(_products(node, ins, outs, target, choice), MOST_SHAPES // 2)
    if isinstance(choice, Strassen):  # all panels have tiles of one height
        products = list(dict.fromkeys(replace(tiles, last_rows=tiles.rows) for tiles in products))
    return [replace(choice, products=tiles) for tiles in products]


def cuts(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target, choice: Choice) -> list[Choice]:
    """Other ways to cut the loops around the tiles of a choice."""
    if isinstance(choice, Direct):
        return list(_cuts(_tiled(node, ins, outs, target), choice))
    if isinstance(choice, Winograd | Strassen):
        products = _products(node, ins, outs, target, choice)
        if isinstance(choice, Strassen) and light(products.core, products.problem[2], products.problem[0].depth_of_sum):
            return []
        tiles = choice.products or _tiles(products, 1)[0]
        return [replace(choice, products=cut) for cut in _cuts(products, tiles)]
    return []


def problem_of(node: Node, ins: Sequence[Operand], outs: Sequence[Operand]) -> Problem:
    """A conv or fc as tiles see it."""
    return (conv_problem if node.op == "conv" else fc_problem)(node, ins, outs)


def _tiled(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> _Tiled:
    """A layer that is done directly."""
    if node.op in QUANTIZED:
        what = (node, ins, outs, target)
        sums = q_fc_sums(*what) if node.op == "q_fc" else q_conv_sums(*what, larger=True)
        return _Tiled(sums.core, (sums.geometry, sums.groups, sums.outputs), False, False)
    return _float(core_of(target, SCALAR_OF[outs[0].type.dtype]), problem_of(node, ins, outs))


def _products(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target, choice: Winograd | Strassen) -> _Tiled:
    """The matrix products of an algorithm."""
    core = core_of(target, SCALAR_OF[outs[0].type.dtype])
    if isinstance(choice, Strassen):
        return _Tiled(tile_core(core), pair_problem(node, ins, outs, target), False, False)
    if node.op in QUANTIZED:
        return _Tiled(*q_product_problem(node, ins, outs, choice.m, target), False, True)
    return _float(core, product_problem(node, ins, outs, choice.m, target))


def _float(core: Core, problem: Problem) -> _Tiled:
    geometry, groups, outputs = problem
    return _Tiled(core, problem, stores_far(core, geometry, outputs, math.prod(axis.count for axis in groups)), True)


def _tiles(tiled: _Tiled, most: int) -> list[Direct]:
    """Register blocks, the one that the cost model chooses first."""
    geometry, _, outputs = tiled.problem
    pixels, depth = geometry.width.outputs, geometry.depth_of_sum
    panels = choose_panels(tiled.core, outputs, pixels, depth, far=tiled.far)
    best = Direct(panels.vectors, panels.rows or panels.last_rows, panels.last_rows or panels.rows)
    ranked = panel_choices(tiled.core, outputs, pixels, depth, tiled.far)
    others = [tiles for cycles, tiles in ranked if cycles <= SLOWEST * ranked[0][0]]
    return [best, *(tiles for tiles in others if tiles != best)][:most]


def _groups(tiled: _Tiled) -> list[Grouped]:
    """Blocks of several groups, the best of the cost model first."""
    ranked = grouped_choices(tiled.core, *_one_axis(tiled.problem))
    return [block for cycles, block in ranked if cycles <= SLOWEST * ranked[0][0]]


def _one_axis(problem: Problem) -> tuple[Geometry, int, int]:
    """The geometry of a convolution, the number of its groups, and output channels of one."""
    geometry, groups, outputs = problem
    return geometry, groups[0].count, outputs


def _cuts(tiled: _Tiled, tiles: Direct) -> list[Direct]:
    core, (geometry, _, outputs) = tiled.core, tiled.problem
    panels = choose_panels(core, outputs, geometry.width.outputs, geometry.depth_of_sum, tiles)
    plain = choose_partition(core, geometry, panels, tiled.groups, tiled.packable, tiles)
    blocks = {max(1, plain.blocks * factor // 4) for factor in (1, 2, 8, 16)} | {1}
    found = [replace(tiles, blocks=number) for number in sorted(blocks - {plain.blocks})]
    if tiled.packable:
        parts = -(-geometry.channels // plain.k_part)
        k_parts = {k for k in (1, parts - 1, parts + 1, 2 * parts, 4) if 1 <= k <= max(1, geometry.channels // 32)}
        found += [replace(tiles, k_parts=number) for number in sorted(k_parts - {parts})]
    return [*found, *([replace(tiles, ahead=plain.ahead == 0)] if core.prefetch else [])]


def _blocks(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[Depthwise]:
    core = core_of(target, SCALAR_OF[outs[0].type.dtype])
    geometry = conv_problem(node, ins, outs)[0]
    channels = ins[0].shape[-1]
    multiplier = outs[0].shape[-1] // channels
    best = Depthwise(*choose_cuts(core, geometry, channels, multiplier)[:2])
    ranked = sorted(block_choices(core, geometry, channels, multiplier), key=lambda entry: entry[0])
    return [best, *(block for _, block in ranked if block != best)]
