"""Choices for several targets at once, such that a layer's packed weights are the same bytes for all of them.

What decides the bytes is the algorithm, the channels of a panel and the parts of k; heights of tiles and cuts of loops are left to each
target's cost model. A panel of more than one target's vectors has the same order of weights, since vectors lie beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cortado.compiler.graph import Node
from cortado.compiler.kernels.candidates import Problem, algorithms, problem_of
from cortado.compiler.kernels.choice import Choice, Depthwise, Direct, Grouped, Winograd
from cortado.compiler.kernels.epilogue import parse_epilogue
from cortado.compiler.kernels.grouped import block_width, choose_grouped, grouped_choices, serves_grouped
from cortado.compiler.kernels.tiling import Core, choose_panels, choose_partition, core_of, panel_choices
from cortado.compiler.kernels.winograd import product_problem, serves_winograd
from cortado.compiler.lang import SCALAR_OF
from cortado.compiler.program import Operand
from cortado.compiler.target import Target
from cortado.compiler.tuning import Tuning

MOST_CHANNELS = 64  # of a panel


@dataclass(frozen=True, eq=False)
class SharedChoices(Tuning):
    """As a table of measurements for `target`, one of `targets`, but by the cost model. reference: the one whose algorithms all take.

    larger: weights may be larger than the file's, for speed.
    """

    target: Target
    targets: tuple[Target, ...]
    reference: Target
    larger: bool

    def choice(self, node: Node, ins: Sequence[Operand], outs: Sequence[Operand]) -> Choice | None:
        found = algorithms(node, ins, outs, self.reference) if node.op in ("conv", "fc") else []
        if not found or isinstance(found[0], Depthwise):
            return None
        scalar = SCALAR_OF[outs[0].type.dtype]
        cores = [core_of(target, scalar) for target in self.targets]
        own, reference = core_of(self.target, scalar), core_of(self.reference, scalar)
        problem = problem_of(node, ins, outs)
        if node.op == "conv" and all(serves_grouped(node, parse_epilogue(node.attrs["epilogue"], 2), core) for core in cores):
            together = _shared_groups(problem, own, cores)
            if together is not None:
                return together
        chosen = found[0]
        if (
            self.larger
            and isinstance(chosen, Winograd)
            and all(serves_winograd(node, ins, outs, target) for target in self.targets)
        ):
            products_of = product_problem(node, ins, outs, chosen.m, self.reference)
            products = _shared_tiles(products_of, own, reference, cores)
            return None if products is None else replace(chosen, products=products)
        return _shared_tiles(problem, own, reference, cores)


def _shared_groups(problem: Problem, own: Core, cores: Sequence[Core]) -> Grouped | None:
    """Blocks of several groups where the core with the longest vectors is faster with them; None where it is not."""
    geometry, groups, outputs = problem
    count = groups[0].count
    if choose_grouped(max(cores, key=lambda core: core.lanes), geometry, count, outputs) is None:
        return None
    fastest = grouped_choices(own, geometry, count, outputs)[0][1]
    return replace(fastest, packed=max(block_width(core, outputs) for core in cores))


def _shared_tiles(problem: Problem, own: Core, reference: Core, cores: Sequence[Core]) -> Direct | None:
    """The fastest tiles of `own` among those whose panels are as wide as is best for all cores together; None where no width suits all."""
    geometry, groups, outputs = problem
    widest = max(core.lanes for core in cores)
    best: tuple[float, int] | None = None
    for width in range(widest, MOST_CHANNELS + 1, widest):
        found = [_tiles(problem, core, width, widest) for core in cores]
        if None not in found:
            cost = sum(cycles for cycles, _ in filter(None, found))
            if best is None or cost < best[0]:
                best = cost, width
    if best is None:
        return None
    mine, its = _tiles(problem, own, best[1], widest), _tiles(problem, reference, best[1], widest)
    assert mine is not None and its is not None
    panels = choose_panels(reference, outputs, geometry.width.outputs, geometry.depth_of_sum, its[1])
    count = 1
    for axis in groups:
        count *= axis.count
    partition = choose_partition(reference, geometry, panels, count, True, its[1])
    return replace(mine[1], k_parts=-(-geometry.channels // partition.k_part))


def _tiles(problem: Problem, core: Core, width: int, widest: int) -> tuple[float, Direct] | None:
    """The fastest tiles with panels of `width` channels, and how much slower than the core's best they are.

    widest: lanes of the widest core: that many channels are the least that a panel holds.
    """
    geometry, _, outputs = problem
    filled = -(-outputs // widest) * widest
    ranked = panel_choices(core, filled, geometry.width.outputs, geometry.depth_of_sum)
    vectors = min(width, filled) // core.lanes
    for cycles, tiles in ranked:
        if tiles.vectors == vectors:
            return cycles / ranked[0][0], replace(tiles, fill=widest // core.lanes)
    return None
