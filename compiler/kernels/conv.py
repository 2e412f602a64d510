"""Convolution: tiles over the channels-last input, or blocks of several groups where these have one channel or few."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Depthwise, Direct, Grouped
from cortado.compiler.kernels.contraction import known_weights, lower_contraction
from cortado.compiler.kernels.depthwise import lower_depthwise, serves_depthwise
from cortado.compiler.kernels.driver import GroupAxis
from cortado.compiler.kernels.epilogue import parse_epilogue
from cortado.compiler.kernels.geometry import Geometry, conv_geometry
from cortado.compiler.kernels.grouped import choose_grouped, lower_grouped, serves_grouped
from cortado.compiler.kernels.packing import WeightSource
from cortado.compiler.kernels.tiling import core_of
from cortado.compiler.lang import SCALAR_OF
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target


def lower_conv(
    node: Node,
    ins: Sequence[Operand],
    outs: Sequence[Operand],
    target: Target,
    choice: Direct | Depthwise | Grouped | None = None,
) -> list[KernelCall]:
    """x[N,*S,C], w[O,*K,C/group], then the epilogue's inputs -> out[N,*OS,O]; float32 or float64, 1 to 3 spatial axes.

    choice: how to cut it; None for the cost model's. Raises ValueError for one of another kind.
    """
    out = outs[0]
    if out.type.size == 0:
        return []
    epilogue = parse_epilogue(node.attrs["epilogue"], 2)
    if serves_depthwise(node, epilogue):
        if isinstance(choice, Direct | Grouped):
            raise ValueError("it is depthwise")
        return lower_depthwise(node, ins, outs, epilogue, target, choice)
    if isinstance(choice, Depthwise):
        raise ValueError("it is not depthwise")
    w, group = ins[1], node.attrs["group"]
    geometry, groups, outputs = conv_problem(node, ins, outs)
    core = core_of(target, SCALAR_OF[out.type.dtype])
    if serves_grouped(node, epilogue, core):
        choice = choice or choose_grouped(core, geometry, group, outputs)
        if choice is not None and not isinstance(choice, Direct):
            return lower_grouped(node, ins, outs, geometry, epilogue, target, choice)
    if isinstance(choice, Grouped):
        raise ValueError("its groups do not share vectors")
    source = WeightSource(((group, outputs * w.strides[0]),), w.strides[0], _filter_terms(w, geometry), epilogue.bias is not None)
    weights = known_weights(node, epilogue, group, source)
    return lower_contraction("conv", Ref("input", 0), weights, out, geometry, groups, outputs, epilogue, target, choice)


def conv_problem(node: Node, ins: Sequence[Operand], outs: Sequence[Operand]) -> tuple[Geometry, tuple[GroupAxis, ...], int]:
    """The convolution as a contraction: geometry, groups, and output channels of a group."""
    group, residual = node.attrs["group"], parse_epilogue(node.attrs["epilogue"], 2).residual
    inside, outputs = ins[0].shape[-1] // group, outs[0].shape[-1] // group
    beside = None if residual is None else ins[residual]
    geometry = conv_geometry(ins[0], outs[0], beside, ins[1].shape[1:-1], inside, node.attrs)
    return geometry, (GroupAxis(group, inside, 1, outputs, outputs),) if group > 1 else (), outputs


def _filter_terms(w: Operand, geometry: Geometry) -> tuple[tuple[int, int], ...]:
    """(size, distance) of the filter's axes after the first, in the order of the loops; axes of one cell are left out."""
    inner = [
        (size, stride, math.prod(w.shape[i + 2 :]))
        for i, (size, stride) in enumerate(zip(w.shape[1:], w.strides[1:], strict=True))
    ]
    distance = {place: stride for size, stride, place in inner if size > 1}
    taps = [
        (axis.taps, distance[axis.weight_stride]) for axis in (geometry.depth, geometry.height, geometry.width) if axis.taps > 1
    ]
    channels = [(size, stride) for size, stride, place in inner if size > 1 and place < geometry.channels]
    return (*taps, *channels)
