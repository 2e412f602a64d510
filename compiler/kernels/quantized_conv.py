"""Quantized convolution and fully connected layers: the tiles and drivers of the float ones on words of integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Choice, Direct, Winograd
from cortado.compiler.kernels.driver import Contraction, GroupAxis, contraction_driver
from cortado.compiler.kernels.geometry import Geometry, conv_geometry, rows_geometry
from cortado.compiler.kernels.packing import pack_panels
from cortado.compiler.kernels.quantized_depthwise import lower_q_depthwise, serves_q_depthwise
from cortado.compiler.kernels.quantized_patches import patches, serves_patches
from cortado.compiler.kernels.quantized_stage import Staged, stage
from cortado.compiler.kernels.quantized_sums import (
    centred_weights,
    choose_dot,
    dot_core,
    folded_bias,
    packed_words,
    requantization,
)
from cortado.compiler.kernels.quantized_tile import Dot
from cortado.compiler.kernels.quantized_winograd import choose_q_winograd, lower_q_winograd, serves_q_winograd
from cortado.compiler.kernels.requantize import Requantization, multiplier_rows
from cortado.compiler.kernels.tiling import Core, choose_panels, choose_partition
from cortado.compiler.ops.quantized import output_scales
from cortado.compiler.ops.requantize import scale_of
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target


def lower_q_conv_larger(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """As `lower_q_conv`, where larger weights and buffers are worth it for speed."""
    m = choose_q_winograd(node, ins, outs, target)
    if m is not None:
        return lower_q_winograd(node, ins, outs, m, target)
    return lower_q_conv(node, ins, outs, target, None, True)


def lower_q_chosen(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target, choice: Choice | None
) -> list[KernelCall]:
    """A q_conv or q_fc in the way that was chosen for speed; None: by the cost model. Raises ValueError for what cannot be."""
    if choice is None:
        return (lower_q_fc if node.op == "q_fc" else lower_q_conv_larger)(node, ins, outs, target)
    if not isinstance(choice, (Direct, Winograd)):
        raise ValueError("integers are multiplied directly or by Winograd's filtering")
    tiles = choice.products if isinstance(choice, Winograd) else choice
    if tiles is not None and tiles.fill is not None:
        raise ValueError("panels of integers are not filled up")
    if isinstance(choice, Winograd):
        if node.op != "q_conv" or not serves_q_winograd(node, outs, target):
            raise ValueError("it cannot be done by Winograd's filtering")
        return lower_q_winograd(node, ins, outs, choice.m, target, tiles)
    return lower_q_fc(node, ins, outs, target, tiles) if node.op == "q_fc" else lower_q_conv(node, ins, outs, target, tiles, True)


def lower_q_conv(
    node: Node,
    ins: Sequence[Operand],
    outs: Sequence[Operand],
    target: Target,
    choice: Direct | None = None,
    larger: bool = False,
) -> list[KernelCall]:
    """x[N,*S,C], w[O,*K,C/group], bias[O], perhaps a residual -> out[N,*OS,O]; int8 and uint8, 1 to 3 spatial axes.

    choice: tiles and cuts; None for the cost model's. larger: of patches where they pay. Raises ValueError where the choice does not fit.
    """
    if outs[0].type.size == 0:
        return []
    if serves_q_depthwise(node):
        if choice is not None:
            raise ValueError("it is depthwise")
        return lower_q_depthwise(node, ins, outs, centred_weights(node), requantization(node), target)
    return lower_q_sums("q_conv", node, q_conv_sums(node, ins, outs, target, larger), target, choice)


def lower_q_fc(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target, choice: Direct | None = None
) -> list[KernelCall]:
    """x[...,K], w[O,K], bias[O], perhaps a residual -> out[...,O]; int8 and uint8. choice: as of lower_q_conv."""
    if outs[0].type.size == 0:
        return []
    return lower_q_sums("q_fc", node, q_fc_sums(node, ins, outs, target), target, choice)


@dataclass(frozen=True, eq=False)
class Sums:
    """A layer as tiles see it. w: without zero points. outputs: channels of a group."""

    staged: Staged
    core: Core
    w: np.ndarray
    geometry: Geometry
    groups: tuple[GroupAxis, ...]
    outputs: int


def q_conv_sums(
    node: Node,
    ins: Sequence[Operand],
    outs: Sequence[Operand],
    target: Target,
    larger: bool = False,
    staged: Staged | None = None,
) -> Sums:
    """Of a q_conv that is not depthwise. larger: as of `lower_q_conv`. staged: its input, where that has been brought into form."""
    x, out, group = ins[0], outs[0], node.attrs["group"]
    outputs, rank = out.shape[-1] // group, len(x.shape) - 2
    w = centred_weights(node)
    if staged is None:
        dot = choose_dot(node, w, target)
        if larger and serves_patches(node, dot, target):
            return _patched(node, ins, outs, dot, w, target)
        staged = q_conv_staged(node, x, dot, target)
    attrs: dict[str, Any] = dict(node.attrs)
    for i, name in enumerate(("pads_begin", "pads_end")):  # what is still to be done
        attrs[name] = tuple(pad - around[i] for pad, around in zip(attrs[name], staged.around[1:], strict=True))
    beside = ins[3] if len(ins) == 4 else None
    geometry = conv_geometry(staged.words, out, beside, w.shape[1 : 1 + rank], staged.channels, attrs)
    groups = (GroupAxis(group, staged.channels, 1, outputs, outputs),) if group > 1 else ()
    return _sums(staged, w, geometry, groups, outputs, target)


def q_conv_staged(node: Node, x: Operand, dot: Dot, target: Target) -> Staged:
    """The input of a q_conv that is not depthwise, in the form in which its tiles read it."""
    begin, end = (0, *node.attrs["pads_begin"]), (0, *node.attrs["pads_end"])
    return stage(x, scale_of(node.inputs[0].type)[1], node.attrs["group"], dot, begin, end, target)


def _patched(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], dot: Dot, w: np.ndarray, target: Target) -> Sums:
    """Of the words that `patches` makes, by a 1x1 kernel."""
    staged = patches(node, ins[0], outs[0], dot, target)
    attrs = {"group": 1, "strides": (1, 1), "dilations": (1, 1), "pads_begin": (0, 0), "pads_end": (0, 0)}
    beside = ins[3] if len(ins) == 4 else None
    geometry = conv_geometry(staged.words, outs[0], beside, (1, 1), staged.channels, attrs)
    return _sums(staged, w.reshape(len(w), 1, 1, -1), geometry, (), len(w), target)


def q_fc_sums(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> Sums:
    x, out = ins[0], outs[0]
    w, zero = centred_weights(node), scale_of(node.inputs[0].type)[1]
    dot = choose_dot(node, w, target)
    nothing = (0,) * (len(x.shape) - 1)
    staged = stage(x, zero, 1, dot, nothing, nothing, target)
    geometry, apart = rows_geometry(staged.words, out, ins[3] if len(ins) == 4 else None, staged.channels)
    groups = tuple(GroupAxis(axis.outputs, axis.in_stride, 0, axis.out_stride, axis.residual_stride) for axis in apart)
    return _sums(staged, w, geometry, groups, out.shape[-1], target)


def _sums(staged: Staged, w: np.ndarray, geometry: Geometry, groups: tuple[GroupAxis, ...], outputs: int, target: Target) -> Sums:
    return Sums(staged, dot_core(target, staged.dot), w, geometry, groups, outputs)


def lower_q_sums(
    family: str, node: Node, sums: Sums, target: Target, choice: Direct | None = None, pooled: Requantization | None = None
) -> list[KernelCall]:
    """The node's kernels. family: how the first part of their name begins. choice: as of `lower_q_conv`.

    pooled: the epilogue, in the node's own place, for panels of which a task does all pixels.
    """
    staged, core, w = sums.staged, sums.core, sums.w
    dot = staged.dot
    geometry, groups, outputs = sums.geometry, sums.groups, sums.outputs
    panels = choose_panels(core, outputs, geometry.width.outputs, geometry.depth_of_sum, choice)
    count = math.prod(axis.count for axis in groups)
    if pooled is None:
        partition = choose_partition(core, geometry, panels, count, False, choice)
    else:
        tiles = choice or Direct(panels.vectors, panels.rows, panels.last_rows)
        partition = choose_partition(core, geometry, panels, count, False, replace(tiles, blocks=1))
        partition = replace(partition, unit_block=partition.units)
    epilogue = pooled or requantization(node)
    layer = Contraction("i32", geometry, groups, panels, partition, epilogue)
    kernel = contraction_driver(f"{family}_{dot.name}", layer, core, target, dot.tile_kernel)
    types = [value.type for value in node.inputs]
    rows = np.concatenate([folded_bias(node, w, dot)[None], multiplier_rows(output_scales(types, node.attrs), epilogue.rounding)])
    packed_groups = w.shape[0] // outputs
    words = packed_words(w, dot).reshape(packed_groups, outputs, -1)[:, :, geometry.weight_order(partition.k_part)]
    head = rows.T.reshape(packed_groups, outputs, -1)
    weights = Ref("weights", array=pack_panels(np.concatenate([head, words], axis=2), None, panels))
    residual = [Ref("input", 3)] if epilogue.residual else []
    in_order = family == "q_conv" or not groups  # rows of the output are rows of the geometry, not groups
    refs = (staged.ref, weights, *residual, Ref("output", 0))
    return [*staged.calls, KernelCall(kernel, refs, partition.tasks, partition.blocks if in_order and pooled is None else 0)]
