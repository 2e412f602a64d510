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
from cortado.compiler.kernels.quantized_filtering import TAPS, TILES, WholeFiltering, whole_filtering
from cortado.compiler.kernels.quantized_sums import centred_weights, choose_dot, dot_core, packed_words, requantization
from cortado.compiler.kernels.quantized_tile import Dot
from cortado.compiler.kernels.quantized_winograd_tiles import input_kernel, output_kernel
from cortado.compiler.kernels.requantize import multiplier_rows
from cortado.compiler.kernels.tiling import Core, choose_panels, choose_partition, panel_cycles
from cortado.compiler.kernels.winograd import GAIN
from cortado.compiler.kernels.winograd_drivers import Head, Scratch, Tiling, input_driver, output_driver, strips_of, tiles_of
from cortado.compiler.ops.quantized import output_scales
from cortado.compiler.ops.requantize import scale_of
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType

TRANSFORM_INPUT, TRANSFORM_OUTPUT = 3.0, 3.5  # cycles per product and vector of channels, loads and stores included
STREAM = 5.0  # bytes a cycle that weights arrive with: those of networks whose weights outgrow all caches


def serves_q_winograd(node: Node, outs: Sequence[Operand], target: Target) -> bool:
    """Whether the convolution can be done so: 3x3 of stride 1 without groups, known weights, vectors of integers."""
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
    return w.shape[3] > 0 and min(attrs["pads_begin"]) >= 0


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
    for m in TILES:
        f = whole_filtering(m)
        tiling = tiles_of(node, ins, outs, f)
        products = f.size**2
        cycles = products * _cycles(core, outputs, tiling.tiles, -(-channels // 2))
        weights = products * channels * outputs * 2
        cycles = max(cycles, weights / STREAM if weights > core.second_level // 2 else 0.0)
        moved = TRANSFORM_INPUT * math.ceil(channels / target.lanes("i16")) + TRANSFORM_OUTPUT * math.ceil(outputs / core.lanes)
        cycles += tiling.tiles * products * moved
        if cycles < GAIN * direct and (best is None or cycles < best[0]) and f.exact(w):
            best = (cycles, m)
    return None if best is None else best[1]


def _cycles(core: Core, outputs: int, pixels: int, depth: int) -> float:
    return panel_cycles(core, choose_panels(core, outputs, pixels, depth), pixels, depth)


@dataclass(frozen=True)
class _Plan:
    """v: operands of the products, words of two channels. sums: their results, of as many channels as whole vectors hold."""

    tiling: Tiling
    target: Target
    v: Scratch
    sums: Scratch


def _plan_of(tiling: Tiling, channels: int, outputs: int, target: Target) -> _Plan:
    lanes = target.lanes("i32")
    v = tiling.scratch("i16", channels + channels % 2, target.lanes("i16"))
    return _Plan(tiling, target, v, tiling.scratch("i32", -(-outputs // lanes) * lanes, lanes))


def exact_filterings(node: Node) -> tuple[int, ...]:
    """The m for which F(m, 3) of the node's weights is exact."""
    w = centred_weights(node)
    return tuple(m for m in TILES if whole_filtering(m).exact(w))


def may_filter(node: Node, m: int) -> bool:
    """Whether F(m, 3) is exact for the node's weights, if it is a filtering of such a node at all."""
    w = node.inputs[1].constant
    return m not in TILES or w is None or w.ndim != 4 or w.shape[1:3] != (TAPS, TAPS) or m in exact_filterings(node)


def q_product_problem(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], m: int, target: Target
) -> tuple[Core, tuple[Geometry, tuple[GroupAxis, ...], int]]:
    """The matrix products of all points as one contraction: the core, geometry, groups, and output channels."""
    channels, outputs = ins[0].shape[-1], outs[0].shape[-1]
    return _product_problem(_plan_of(tiles_of(node, ins, outs, whole_filtering(m)), channels, outputs, target), channels)


def _product_problem(plan: _Plan, channels: int) -> tuple[Core, tuple[Geometry, tuple[GroupAxis, ...], int]]:
    words, tiles, outputs = -(-channels // 2), plan.tiling.tiles, plan.sums.pitch
    geometry, _ = rows_geometry(_matrix(tiles, words, plan.v.pitch // 2), _matrix(tiles, outputs, outputs), None, words)
    groups = (GroupAxis(plan.v.products, plan.v.stride // 2, 1, plan.sums.stride, 0),)
    return dot_core(plan.target, Dot("dot2"), narrows=False), (geometry, groups, outputs)


def lower_q_winograd(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], m: int, target: Target, tiles: Direct | None = None
) -> list[KernelCall]:
    """x[N,H,W,C], w[O,3,3,C], bias[O], perhaps a residual -> out[N,OH,OW,O], where `serves_q_winograd` and F(m, 3) is exact.

    tiles: of the matrix products; None for the cost model's. Raises ValueError where these, m or the weights do not fit.
    """
    if m not in TILES:
        raise ValueError(f"F({m}) is not one of {', '.join(f'F({known})' for known in TILES)}")
    x, out, f, w = ins[0], outs[0], whole_filtering(m), centred_weights(node)
    if not f.exact(w):
        raise ValueError(f"F({m}) is not exact for the weights of {node.name}")
    tiling = tiles_of(node, ins, outs, f)
    outputs, channels = w.shape[0], w.shape[3]
    plan = _plan_of(tiling, channels, outputs, target)
    v, sums, tasks = Ref("scratch", nbytes=plan.v.nbytes), Ref("scratch", nbytes=plan.sums.nbytes), tiling.images * tiling.rows
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
    readers = strips_of(
        channels, target.lanes("i16"), lambda at_border, tail: input_kernel(f, at_border, tail, flip, blank, target)
    )
    writers = strips_of(outputs, target.lanes("i32"), lambda at_border, tail: output_kernel(f, at_border, tail, kind, target))
    read_tiles = input_driver("q_winograd_input", tiling, x, "i8", plan.v, readers, target)
    own = Head(("head",), (outputs,))
    write_tiles = output_driver("q_winograd_output", tiling, out, beside, "i8", own, plan.sums, writers, target)
    return [
        KernelCall(read_tiles, (Ref("input", 0), v), tasks, tasks),
        _products(plan, f, w, v, sums, tiles),
        KernelCall(write_tiles, (sums, head, *residual, Ref("output", 0)), tasks, tasks),
    ]


def _products(plan: _Plan, f: WholeFiltering, w: np.ndarray, v: Ref, sums: Ref, tiles: Direct | None) -> KernelCall:
    dot = Dot("dot2")
    core, (geometry, groups, outputs) = _product_problem(plan, w.shape[3])
    panels = choose_panels(core, outputs, plan.tiling.tiles, geometry.depth_of_sum, tiles)
    partition = choose_partition(core, geometry, panels, plan.v.products, True, tiles)
    layer = Contraction("i32", geometry, groups, panels, partition, EpilogueKind())
    kernel = contraction_driver("q_winograd", layer, core, plan.target, dot.tile_kernel)
    filters = np.pad(f.filters(w), ((0, 0), (0, outputs - len(w)), (0, 0)))
    packed = packed_words(filters, dot)[:, :, geometry.weight_order(partition.k_part)]
    return KernelCall(
        kernel, (v, Ref("weights", array=pack_panels(packed, None, panels)), sums), partition.tasks, partition.blocks
    )


def _matrix(rows: int, columns: int, pitch: int) -> Operand:
    return Operand(TensorType((rows, columns), "int32"), (pitch, 1))
