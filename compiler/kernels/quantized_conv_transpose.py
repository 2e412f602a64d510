"""Quantized transposed convolution: the convolutions of its phases, which read one staged input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cortado.compiler.graph import Node
from cortado.compiler.kernels.phases import PhaseConvolution, phase_convolutions
from cortado.compiler.kernels.quantized_conv import lower_q_conv, lower_q_sums, q_conv_sums
from cortado.compiler.kernels.quantized_depthwise import serves_q_depthwise
from cortado.compiler.kernels.quantized_stage import Staged, stage
from cortado.compiler.kernels.quantized_sums import centred_weights, choose_dot
from cortado.compiler.ops.requantize import scale_of
from cortado.compiler.program import KernelCall, Operand
from cortado.compiler.target import Target


def lower_q_conv_transpose(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """x[N,*S,C], w[O,*K,C/group], bias[O], perhaps a residual -> out[N,*OS,O]; int8 and uint8, 1 to 3 spatial axes."""
    if outs[0].type.size == 0:
        return []
    parts = phase_convolutions(node, "q_conv", ins, outs[0], 3 if len(ins) == 4 else None)
    if serves_q_depthwise(node):
        return [call for part in parts for call in part.placed(lower_q_conv(part.node, part.ins, [part.out], target))]
    staged = _stage(node, parts, ins[0], target)
    calls = list(staged.calls)
    for part in parts:
        sums = q_conv_sums(part.node, part.ins, [part.out], target, staged=replace(staged, calls=[]))
        calls += part.placed(lower_q_sums("q_conv", part.node, sums, target))
    return calls


def _stage(node: Node, parts: Sequence[PhaseConvolution], x: Operand, target: Target) -> Staged:
    """The input with as much padding as any phase needs; sums of idle ones are zero whatever they read."""
    pads = [[(0, *part.node.attrs[name]) for part in parts if not part.idle] for name in ("pads_begin", "pads_end")]
    begin, end = ([max(axis) for axis in zip([0] * (len(x.shape) - 1), *of_parts, strict=True)] for of_parts in pads)
    dot = choose_dot(node, centred_weights(node), target)
    return stage(x, scale_of(node.inputs[0].type)[1], node.attrs["group"], dot, begin, end, target)
