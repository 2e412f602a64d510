"""3x3 and 5x5 convolutions of stride 1 by Winograd's minimal filtering: fewer multiply-adds, paid with transforms and larger weights.

Three kernel calls: transform the input of every tile, one matrix product per point pair (the template of all matrix products), transform
the products back with the epilogue. Operands of one product lie together: [product][tile][channel].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Winograd
from cortado.compiler.kernels.contraction import Weights, lower_contraction
from cortado.compiler.kernels.conv import conv_problem
from cortado.compiler.kernels.driver import GroupAxis
from cortado.compiler.kernels.epilogue import Epilogue, parse_epilogue
from cortado.compiler.kernels.generic import generic_if
from cortado.compiler.kernels.geometry import Geometry, rows_geometry
from cortado.compiler.kernels.grouped import choose_grouped, serves_grouped
from cortado.compiler.kernels.packing import WeightSource
from cortado.compiler.kernels.tiling import FAR_STREAM, Core, SingleCore, core_of, product_cycles
from cortado.compiler.kernels.winograd_algebra import TILES, filtering
from cortado.compiler.kernels.winograd_drivers import Head, Scratch, Tiling, input_driver, output_driver, strips_of, tiles_of
from cortado.compiler.kernels.winograd_tiles import input_kernel, output_kernel
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType

# Cycles of inputs and of outputs per product and vector of channels, loads and stores included, by the products in one dimension.
TRANSFORMS: Mapping[int, tuple[float, float]] = {4: (2.6, 2.2), 6: (2.6, 2.2), 8: (5.2, 2.7)}
# The same where a core does one multiply-add of whole vectors in a cycle.
SINGLE_TRANSFORMS: Mapping[int, tuple[float, float]] = {4: (6.5, 4.8), 6: (6.5, 4.8), 8: (7.5, 4.8)}
GAIN = 0.88  # of the direct way's cycles, at most: below that the larger weights do not pay
LEAST = 4_096  # cycles, some 1.3 us, that it must be faster by: weights grow several times


def serves_winograd(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> bool:
    """Whether the convolution can be done so: as many taps along each axis as there is a filtering for, stride 1, known weights, vectors."""
    w, attrs = node.inputs[1].constant, node.attrs
    if w is None or target.lanes("f32") == 1 or ins[0].type.dtype != "float32" or outs[0].type.size == 0:
        return False
    if w.ndim != 4 or w.shape[1] != w.shape[2] or w.shape[1] not in TILES or w.shape[3] == 0:
        return False
    if attrs["group"] == ins[0].shape[-1] > 1:
        return False
    if set(attrs["strides"]) | set(attrs["dilations"]) != {1} or min(attrs["pads_begin"]) < 0:
        return False
    return not any(entry[0] == "bias" and node.inputs[2].constant is None for entry in attrs["epilogue"])


def taps_of(node: Node) -> int:
    """Along each axis, where `serves_winograd`."""
    return node.inputs[1].type.shape[1]


def tiling_of(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], m: int) -> Tiling:
    """The tiles of F(m, taps). Raises ValueError where there is no such filtering."""
    taps = taps_of(node)
    if m not in TILES[taps]:
        raise ValueError(f"F({m}) is not one of {', '.join(f'F({known})' for known in TILES[taps])}")
    return tiles_of(node, ins, outs, filtering(m, taps))


def choose_winograd(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> Winograd | None:
    """With which tiles Winograd is clearly faster than multiplying directly, or None: also where it cannot be done."""
    if not serves_winograd(node, ins, outs, target):
        return None
    core, group = core_of(target, "f32"), node.attrs["group"]
    channels, outputs, rows = ins[0].shape[-1], outs[0].shape[-1] // group, math.prod(outs[0].shape[:2])
    together = serves_grouped(node, parse_epilogue(node.attrs["epilogue"], 2), core)
    if together and choose_grouped(core, conv_problem(node, ins, outs)[0], group, outputs) is not None:
        return None  # vectors of several groups' outputs are mostly as fast or faster, with a fraction of the weights
    depth = taps_of(node) ** 2 * channels // group
    direct = _seen(node, ins[0], outs[0]) * product_cycles(core, outs[0].shape[2], depth, outputs, rows * group, group)
    best: tuple[float, Winograd] | None = None
    for m in TILES[taps_of(node)]:
        cycles = _cycles(tiling_of(node, ins, outs, m), channels, outs[0].shape[-1], group, core)
        if cycles < min(GAIN * direct, direct - LEAST) and (best is None or cycles < best[0]):
            best = (cycles, Winograd(m))
    return None if best is None else best[1]


def _cycles(tiling: Tiling, channels: int, outputs: int, group: int, core: Core) -> float:
    """Of F(m, taps): its products, the transforms, and the way to memory and back of what the last cache level does not keep between them."""
    size = tiling.f.size
    reading, writing = (SINGLE_TRANSFORMS if isinstance(core, SingleCore) else TRANSFORMS)[size]
    moved = reading * _vectors(core, channels) + writing * _vectors(core, outputs)
    matrices = size**2 * group
    cycles = product_cycles(core, tiling.tiles, channels // group, outputs // group, matrices, matrices)
    between = tiling.tiles * size**2 * (channels + outputs) * core.element
    far = between / FAR_STREAM if between > core.third_level // 4 else 0.0
    return cycles + tiling.tiles * size**2 * moved + far


def _seen(node: Node, x: Operand, out: Operand) -> float:
    """Which part of the taps lies inside of the image: only they are multiplied, directly."""
    taps = taps_of(node)
    inside = [
        sum(0 <= place + tap - before < size for place in range(outputs) for tap in range(taps)) / (outputs * taps)
        for size, outputs, before in zip(x.shape[1:3], out.shape[1:3], node.attrs["pads_begin"], strict=True)
    ]
    return math.prod(inside)


def _vectors(core: Core, channels: int) -> float:
    """For how many vectors the transforms of so many channels count."""
    whole, tail = divmod(channels, core.lanes)
    return whole + (core.width(1, tail) if tail else 0.0)


def product_problem(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], m: int, target: Target
) -> tuple[Geometry, tuple[GroupAxis, ...], int]:
    """The matrix products of all points as one contraction: geometry, groups, and output channels of one."""
    tiling, group = tiling_of(node, ins, outs, m), node.attrs["group"]
    v, sums = _scratch(tiling, ins, outs, target)
    channels, outputs = ins[0].shape[-1] // group, outs[0].shape[-1] // group
    geometry, _ = rows_geometry(
        _matrix(tiling.tiles, channels, v.pitch), _matrix(tiling.tiles, outputs, sums.pitch), None, channels
    )
    points = GroupAxis(v.products, v.stride, group, sums.stride, 0)
    if group == 1:
        return geometry, (points,), sums.pitch  # stores need no masks; weights are zero where there is no channel
    return geometry, (points, GroupAxis(group, channels, 1, outputs, 0)), outputs


def _scratch(tiling: Tiling, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> tuple[Scratch, Scratch]:
    """Where the products' operands lie, and their results."""
    lanes = target.lanes("f32")
    return tiling.scratch("f32", ins[0].shape[-1], lanes), tiling.scratch("f32", outs[0].shape[-1], lanes)


def lower_winograd(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], choice: Winograd, target: Target
) -> list[KernelCall]:
    """x[N,H,W,C], constant w[O,taps,taps,C/group], then the epilogue's inputs -> out[N,OH,OW,O]; float32, where `serves_winograd`."""
    tiling = tiling_of(node, ins, outs, choice.m)
    epilogue = parse_epilogue(node.attrs["epilogue"], 2)
    at_v, at_sums = _scratch(tiling, ins, outs, target)
    v, sums = Ref("scratch", nbytes=at_v.nbytes), Ref("scratch", nbytes=at_sums.nbytes)
    bias = [] if epilogue.bias is None else [Ref("weights", array=node.inputs[epilogue.bias].constant)]
    residual = [] if epilogue.residual is None else [Ref("input", epilogue.residual)]
    beside = None if epilogue.residual is None else ins[epilogue.residual]
    tasks, kind, lanes = tiling.images * tiling.rows, epilogue.kind, target.lanes("f32")
    readers = strips_of(ins[0].shape[-1], lanes, lambda border, tail: input_kernel(tiling.f, border, tail, target))
    writers = strips_of(outs[0].shape[-1], lanes, lambda border, tail: output_kernel(tiling.f, border, tail, kind, target))
    read_tiles = input_driver("winograd_input", tiling, ins[0], "f32", at_v, readers, target)
    head = Head(("bias",) if kind.bias else (), ())
    write_tiles = output_driver("winograd_output", tiling, outs[0], beside, "f32", head, at_sums, writers, target)
    return [
        KernelCall(read_tiles, (Ref("input", 0), v), tasks, tasks),
        *_products(node, ins, outs, choice, (v, sums), target),
        KernelCall(write_tiles, (sums, *bias, *residual, Ref("output", 0)), tasks, tasks),
    ]


def _products(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], choice: Winograd, refs: tuple[Ref, Ref], target: Target
) -> list[KernelCall]:
    """All matrix products, of what lies at the first of refs, to the second."""
    geometry, groups, outputs = product_problem(node, ins, outs, choice.m, target)
    w, group = node.inputs[1].constant, node.attrs["group"]
    assert w is not None
    filters = filtering(choice.m, taps_of(node)).filters(w)
    filters = filters.reshape(len(filters) * group, -1, w.shape[3])
    filters = np.pad(filters, ((0, 0), (0, outputs - filters.shape[1]), (0, 0)))
    source = WeightSource(((len(filters), outputs * w.shape[3]),), w.shape[3], ((w.shape[3], 1),), False)
    out = _matrix(geometry.rows * geometry.width.outputs, outputs, outputs)
    weights = Weights(source, filters, None)
    calls = lower_contraction("winograd", refs[0], weights, out, geometry, groups, outputs, Epilogue(), target, choice.products)
    generic = generic_if("narrow_groups", group > 1 and outputs < target.lanes("f32"), outs[0].type.size)
    return [
        replace(call, refs=tuple(refs[1] if ref.kind == "output" else ref for ref in call.refs), generic=generic)
        for call in calls
    ]


def _matrix(rows: int, columns: int, pitch: int) -> Operand:
    return Operand(TensorType((rows, columns)), (pitch, 1))
