"""What convolutions, fully connected layers and matrix products have in common: from a layer's geometry to its kernel calls."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Direct
from cortado.compiler.kernels.driver import Contraction, GroupAxis, contraction_driver
from cortado.compiler.kernels.epilogue import Epilogue
from cortado.compiler.kernels.generic import generic_if
from cortado.compiler.kernels.geometry import Geometry
from cortado.compiler.kernels.packing import WeightSource, pack_kernel, pack_panels, panel_sizes
from cortado.compiler.kernels.tile import tile_kernel
from cortado.compiler.kernels.tiling import choose_panels, choose_partition, core_of, stores_far
from cortado.compiler.lang import BYTES, SCALAR_OF
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target


@dataclass(frozen=True)
class Weights:
    """A layer's weights: where they lie at run time, and their values where all of them are known now.

    filters: [groups, outputs, terms], terms in the order of the filter in memory. bias: [groups, outputs] or None.
    """

    source: WeightSource
    filters: np.ndarray | None
    bias: np.ndarray | None


def lower_contraction(
    family: str,
    a: Ref,
    weights: Weights,
    out: Operand,
    geometry: Geometry,
    groups: tuple[GroupAxis, ...],
    outputs: int,
    epilogue: Epilogue,
    target: Target,
    direct: Direct | None = None,
    in_order: bool = True,
) -> list[KernelCall]:
    """The kernel calls of a layer that is a contraction: perhaps one that packs weights known only at run time, then the layer's.

    outputs: channels of one group of out. direct: the register block and cuts; None for the cost model's.
    in_order: rows of out are rows of the geometry, not groups.
    """
    scalar = SCALAR_OF[out.type.dtype]
    core = core_of(target, scalar)
    count = math.prod(axis.count for axis in groups)
    far = stores_far(core, geometry, outputs, count)
    panels = choose_panels(core, outputs, geometry.width.outputs, geometry.depth_of_sum, direct, far)
    partition = choose_partition(core, geometry, panels, count, weights.filters is not None, direct)
    layer = Contraction(scalar, geometry, groups, panels, partition, epilogue.kind)
    kernel = contraction_driver(f"{family}_{scalar}", layer, core, target, tile_kernel)
    calls, packed = _packed_weights(weights, layer, epilogue, target)
    if (
        family != "matmul" and core.lanes > 1
    ):  # the second of two matrices is data like the first, filters are meant to be constant
        calls = [
            replace(call, generic=generic_if("packed_each_run", True, call.refs[-1].nbytes // core.element)) for call in calls
        ]
    residual = [] if epilogue.residual is None else [Ref("input", epilogue.residual)]
    refs = (a, packed, *residual, Ref("output", 0))
    generic = generic_if("narrow_groups", family == "conv" and count > 1 and outputs < core.lanes, out.type.size)
    return [*calls, KernelCall(kernel, refs, partition.tasks, partition.blocks if in_order else 0, generic)]


def _packed_weights(weights: Weights, layer: Contraction, epilogue: Epilogue, target: Target) -> tuple[list[KernelCall], Ref]:
    """The panels, made now where weights and bias are known, else by a kernel call before the layer's."""
    geometry, panels, source = layer.geometry, layer.panels, weights.source
    if weights.filters is not None:
        order = geometry.weight_order(layer.partition.k_part)
        return [], Ref("weights", array=pack_panels(weights.filters[:, :, order], weights.bias, panels))
    kernel, tasks = pack_kernel(source, panels, layer.scalar, target)
    total = panel_sizes(panels, geometry.depth_of_sum, source.bias, layer.weight_groups).total
    scratch = Ref("scratch", nbytes=total * BYTES[layer.scalar])
    bias = [] if epilogue.bias is None else [Ref("input", epilogue.bias)]
    return [KernelCall(kernel, (Ref("input", 1), *bias, scratch), tasks)], scratch


def known_weights(node: Node, epilogue: Epilogue, groups: int, source: WeightSource) -> Weights:
    """The weights of a node whose input 1 is [groups * outputs, ...] and whose epilogue may have a bias."""
    filters = node.inputs[1].constant
    bias = None if epilogue.bias is None else node.inputs[epilogue.bias].constant
    if filters is None or (bias is None and epilogue.bias is not None):
        return Weights(source, None, None)
    return Weights(
        source, filters.reshape(groups, filters.shape[0] // groups, -1), None if bias is None else bias.reshape(groups, -1)
    )
