"""Transposed convolution in floats: the convolutions of its phases."""

from __future__ import annotations

from collections.abc import Sequence

from cortado.compiler.graph import Node
from cortado.compiler.kernels.conv import lower_conv
from cortado.compiler.kernels.epilogue import parse_epilogue
from cortado.compiler.kernels.phases import phase_convolutions
from cortado.compiler.program import KernelCall, Operand
from cortado.compiler.target import Target


def lower_conv_transpose(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """x[N,*S,C], w[O,*K,C/group] (constant), then the epilogue's inputs -> out[N,*OS,O]."""
    if outs[0].type.size == 0:
        return []
    parts = phase_convolutions(node, "conv", ins, outs[0], parse_epilogue(node.attrs["epilogue"], 2).residual)
    return [call for part in parts for call in part.placed(lower_conv(part.node, part.ins, [part.out], target))]
