"""Quantized 3x3 convolutions of stride 1 by Winograd's minimal filtering in whole numbers: the same bits as multiplying directly.

Transformed inputs and weights are int16, their products are summed by dot2. Against four-byte dot instructions that is half the rate,
against two-byte ones no loss, for 2.25 or 4 times fewer multiply-adds. Which sums are exact is proven from the weights
(`quantized_filtering`). Three kernel calls, as in `winograd`: inputs, matrix products, outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Direct
from cortado.compiler.kernels.driver import Contraction, GroupAxis, contraction_driver
from cortado.compiler.kernels.epilogue import EpilogueKind
from cortado.compiler.kernels.geometry import Geometry, conv_geometry, rows_geometry
from cortado.compiler.kernels.packing import pack_panels
from cortado.compiler.kernels.quantized_filtering import WholeFiltering, whole_filtering
from cortado.compiler.kernels.quantized_sums import centred_weights, choose_dot, dot_core, packed_words, requantization
from cortado.compiler.kernels.quantized_tile import Dot
from cortado.compiler.kernels.quantized_winograd_tiles import input_kernel, output_kernel
from cortado.compiler.kernels.requantize import multiplier_rows
from cortado.compiler.kernels.tiling import Core, choose_panels, choose_partition, panel_cycles
from cortado.compiler.kernels.winograd import GAIN
from cortado.compiler.kernels.winograd_algebra import POINTS, TAPS
from cortado.compiler.kernels.winograd_drivers import Head, Tiling, input_driver, output_driver, tiles_of
from cortado.compiler.ops.quantized import output_scales
from cortado.compiler.ops.requantize import scale_of
from cortado.compiler.program import KernelCall, Operand, Ref, contiguous_strides
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType

TRANSFORM_INPUT, TRANSFORM_OUTPUT = 3.0, 3.5  # cycles per product and vector of channels, loads and stores included
STREAM = 5.0  # bytes a cycle that weights arrive with: those of networks whose weights outgrow all caches
LEAST_LANES = 8  # of int16: with fewer the transforms of inputs do not pay


def serves_q_winograd(node: Node, outs: Sequence[Operand], target: Target) -> bool:
    """Whether the convolution can be done so: 3x3 of stride 1 without groups, whole vectors of channels, vectors of integers."""
    w, attrs = node.inputs[1].constant, node.attrs
    if w is None or node.inputs[2].constant is None or outs[0].type.size == 0 or target.lanes("i32") == 1:
        return False
    if (
        w.ndim != 4
        or w.shape[1:3] != (TAPS, TAPS)
        or attrs["group"] != 1
        or set(attrs["strides"]) | set(attrs["dilations"]) != {1}
    ):
        return False
    return w.shape[0] % target.lanes("i32") == 0 and w.shape[3] % LEAST_LANES == 0 and min(attrs["pads_begin"]) >= 0


def choose_q_winograd(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> int | None:
    """The m of F(m, 3) with which Winograd is clearly faster than multiplying directly, or None: also where it cannot be done."""
    if not serves_q_winograd(node, outs, target):
        return None
    x, out, w = ins[0], outs[0], centred_weights(node)
    direct_dot = choose_dot(node, w, target)
    channels, outputs = x.shape[-1], out.shape[-1]
    geometry = conv_geometry(x, out, None, (TAPS, TAPS), -(-channels // direct_dot.neighbours), node.attrs)
    direct = geometry.rows * _cycles(dot_core(target, direct_dot), outputs, geometry.width.outputs, geometry.depth_of_sum)
    core = dot_core(target, Dot("dot2"), narrows=False)
    best: tuple[float, int] | None = None
    for m in POINTS:
        f = whole_filtering(m)
        tiling = tiles_of(node, ins, outs, f)
        products = f.size**2
        cycles = products * _cycles(core, outputs, tiling.tiles, channels // 2)
        weights = products * channels * outputs * 2
        cycles = max(cycles, weights / STREAM if weights > core.second_level // 2 else 0.0)
        moved = TRANSFORM_INPUT * channels / input_lanes(channels, target) + TRANSFORM_OUTPUT * outputs / core.lanes
        cycles += tiling.tiles * products * moved
        if cycles < GAIN * direct and (best is None or cycles < best[0]) and f.exact(w):
            best = (cycles, m)
    return None if best is None else best[1]


def _cycles(core: Core, outputs: int, pixels: int, depth: int) -> float:
    return panel_cycles(core, choose_panels(core, outputs, pixels, depth), pixels, depth)


def input_lanes(channels: int, target: Target) -> int:
    """Lanes of the vectors that channels of inputs are transformed in: whole ones."""
    return math.gcd(channels, target.lanes("i16"))


@dataclass(frozen=True)
class _Plan:
    """v_stride, m_stride: elements from one product's operands and results to the next product's."""

    f: WholeFiltering
    tiling: Tiling
    target: Target
    v_stride: int
    m_stride: int


def exact_filterings(node: Node) -> tuple[int, ...]:
    """The m for which F(m, 3) of the node's weights is exact."""
    w = centred_weights(node)
    return tuple(m for m in POINTS if whole_filtering(m).exact(w))


def may_filter(node: Node, m: int) -> bool:
    """Whether F(m, 3) is exact for the node's weights, if it is a filtering of such a node at all."""
    w = node.inputs[1].constant
    return m not in POINTS or w is None or w.ndim != 4 or w.shape[1:3] != (TAPS, TAPS) or m in exact_filterings(node)


def q_product_problem(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], m: int, target: Target
) -> tuple[Core, tuple[Geometry, tuple[GroupAxis, ...], int]]:
    """The matrix products of all points as one contraction: the core, geometry, groups, and output channels."""
    tiling = tiles_of(node, ins, outs, whole_filtering(m))
    channels, outputs = ins[0].shape[-1], outs[0].shape[-1]
    return _product_problem(tiling, tiling.stride(channels), tiling.stride(outputs), channels, outputs, target)


def _product_problem(
    tiling: Tiling, v_stride: int, m_stride: int, channels: int, outputs: int, target: Target
) -> tuple[Core, tuple[Geometry, tuple[GroupAxis, ...], int]]:
    words = channels // 2
    geometry, _ = rows_geometry(_matrix(tiling.tiles, words), _matrix(tiling.tiles, outputs), None, words)
    groups = (GroupAxis(tiling.f.size**2, v_stride // 2, 1, m_stride, 0),)
    return dot_core(target, Dot("dot2"), narrows=False), (geometry, groups, outputs)


def lower_q_winograd(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], m: int, target: Target, tiles: Direct | None = None
) -> list[KernelCall]:
    """x[N,H,W,C], w[O,3,3,C], bias[O], perhaps a residual -> out[N,OH,OW,O], where `serves_q_winograd` and F(m, 3) is exact.

    tiles: of the matrix products; None for the cost model's. Raises ValueError where these, m or the weights do not fit.
    """
    if m not in POINTS:
        raise ValueError(f"F({m}) is not one of {', '.join(f'F({known})' for known in POINTS)}")
    x, out, f, w = ins[0], outs[0], whole_filtering(m), centred_weights(node)
    if not f.exact(w):
        raise ValueError(f"F({m}) is not exact for the weights of {node.name}")
    tiling = tiles_of(node, ins, outs, f)
    outputs, channels = w.shape[0], w.shape[3]
    plan = _Plan(f, tiling, target, tiling.stride(channels), tiling.stride(outputs))
    products, tasks = f.size**2, tiling.images * tiling.rows
    v, sums = Ref("scratch", nbytes=products * plan.v_stride * 2), Ref("scratch", nbytes=products * plan.m_stride * 4)
    flip = node.inputs[0].type.dtype == "uint8"
    blank = scale_of(node.inputs[0].type)[1] - (128 if flip else 0)
    kind = requantization(node)
    bias = node.inputs[2].constant
    assert bias is not None
    moved = bias - blank * w.reshape(outputs, -1).sum(axis=1, dtype=np.int64)
    rows = multiplier_rows(output_scales([value.type for value in node.inputs], node.attrs), kind.rounding)
    head = Ref("weights", array=np.concatenate([moved.astype(np.int32)[None], rows]))
    residual = [Ref("input", 3)] if kind.residual else []
    beside = ins[3] if kind.residual else None
    lanes = input_lanes(channels, target)
    readers = tuple(input_kernel(f, at_border, flip, blank, lanes, target) for at_border in (False, True))
    writers = tuple(output_kernel(f, at_border, kind, target) for at_border in (False, True))
    read_tiles = input_driver("q_winograd_input", tiling, x, ("i8", "i16"), plan.v_stride, readers, target)
    own = Head(("head",), (outputs,))
    write_tiles = output_driver("q_winograd_output", tiling, out, beside, ("i32", "i8"), own, plan.m_stride, writers, target)
    return [
        KernelCall(read_tiles, (Ref("input", 0), v), tasks, tasks),
        _products(plan, w, v, sums, tiles),
        KernelCall(write_tiles, (sums, head, *residual, Ref("output", 0)), tasks, tasks),
    ]


def _products(plan: _Plan, w: np.ndarray, v: Ref, sums: Ref, tiles: Direct | None) -> KernelCall:
    products, dot = plan.f.size**2, Dot("dot2")
    core, problem = _product_problem(plan.tiling, plan.v_stride, plan.m_stride, w.shape[3], w.shape[0], plan.target)
    geometry, groups, outputs = problem
    panels = choose_panels(core, outputs, plan.tiling.tiles, geometry.depth_of_sum, tiles)
    partition = choose_partition(core, geometry, panels, products, True, tiles)
    layer = Contraction("i32", geometry, groups, panels, partition, EpilogueKind())
    kernel = contraction_driver("q_winograd", layer, core, plan.target, dot.tile_kernel)
    packed = packed_words(plan.f.filters(w), dot)[:, :, geometry.weight_order(partition.k_part)]
    return KernelCall(
        kernel, (v, Ref("weights", array=pack_panels(packed, None, panels)), sums), partition.tasks, partition.blocks
    )


def _matrix(rows: int, columns: int) -> Operand:
    return Operand(TensorType((rows, columns), "int32"), contiguous_strides((rows, columns)))
