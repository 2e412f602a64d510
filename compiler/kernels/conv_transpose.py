"""Transposed convolution as plain convolutions: one for each phase of the strides, with the taps that meet there, written with a stride.

Output cell o (before the cut, o + pad) gets input cell i through tap t where o + pad = i * stride + t. So the cells of one phase,
o = phase + stride * n, see the taps t = r, r + stride, ... with r = (phase + pad) mod stride, at input cells (phase + pad) // stride + n,
one less for each further tap: a convolution of stride 1 with those taps in reverse order. No work is done twice and none for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from cortado.compiler.graph import Node, Value, constant
from cortado.compiler.kernels.conv import lower_conv
from cortado.compiler.kernels.epilogue import parse_epilogue
from cortado.compiler.program import KernelCall, Operand
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType
from cortado.errors import UnsupportedError


@dataclass(frozen=True)
class Phase:
    """One axis of one phase: its first output cell, how many there are, the filter's taps in order, and the pads of its convolution."""

    first: int
    count: int
    taps: tuple[int, ...]
    pad_begin: int
    pad_end: int


def phases(size: int, kernel: int, stride: int, pad: int, out: int) -> list[Phase]:
    """The phases of one axis that have output cells. One that no tap reaches has a tap that only ever meets padding."""
    found = []
    for first in range(min(stride, out)):
        count = -(-(out - first) // stride)
        whole, rest = divmod(first + pad, stride)
        taps = tuple(range(rest, kernel, stride))[::-1]
        begin = len(taps) - 1 - whole if taps else count
        taps = taps or (0,)
        found.append(Phase(first, count, taps, begin, count + len(taps) - 1 - size - begin))
    return found


def lower_conv_transpose(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """x[N,*S,C], w[O,*K,C/group] (constant), then the epilogue's inputs -> out[N,*OS,O]."""
    out, x = outs[0], ins[0]
    if out.type.size == 0:
        return []
    weights = node.inputs[1].constant
    if weights is None:
        line = f"conv_transpose {node.name}: its filter is computed"
        raise UnsupportedError(f"{line}; it must be constant", [line])
    strides = node.attrs["strides"]
    axes = [
        phases(*axis)
        for axis in zip(x.shape[1:-1], weights.shape[1:-1], strides, node.attrs["pads_begin"], out.shape[1:-1], strict=True)
    ]
    calls: list[KernelCall] = []
    for chosen in product(*axes):
        calls += _one_phase(node, chosen, weights, ins, out, target)
    return calls


def _one_phase(
    node: Node, chosen: Sequence[Phase], weights: np.ndarray, ins: Sequence[Operand], out: Operand, target: Target
) -> list[KernelCall]:
    strides = node.attrs["strides"]
    cells = weights[np.ix_(range(weights.shape[0]), *(phase.taps for phase in chosen), range(weights.shape[-1]))]
    view, start = _strided(out, chosen, strides)
    residual = parse_epilogue(node.attrs["epilogue"], 2).residual
    operands = [ins[0], Operand(TensorType(cells.shape, ins[1].type.dtype), _dense(cells.shape)), *ins[2:]]
    beside = 0
    if residual is not None:
        operands[residual], beside = _strided(ins[residual], chosen, strides)
    plain = _plain(node, chosen, np.ascontiguousarray(cells), view.type)
    moved = {("output", 0): start, ("input", residual): beside}
    return [_moved(call, moved) for call in lower_conv(plain, operands, [view], target)]


def _plain(node: Node, chosen: Sequence[Phase], cells: np.ndarray, kind: TensorType) -> Node:
    """The phase's convolution."""
    ones = (1,) * len(chosen)
    attrs: dict[str, Any] = {
        "strides": ones, "dilations": ones, "pads_begin": tuple(phase.pad_begin for phase in chosen),
        "pads_end": tuple(phase.pad_end for phase in chosen), "group": node.attrs["group"], "epilogue": node.attrs["epilogue"],
    }  # fmt: skip
    inputs: tuple[Value, ...] = (node.inputs[0], constant(cells, f"{node.name}/taps"), *node.inputs[2:])
    return Node("conv", inputs, attrs, (kind,), node.name, node.origin)


def _strided(operand: Operand, chosen: Sequence[Phase], strides: Sequence[int]) -> tuple[Operand, int]:
    """The phase's cells of a tensor, and the element they start at."""
    shape = (operand.shape[0], *(phase.count for phase in chosen), operand.shape[-1])
    distances = [s * step for s, step in zip(operand.strides[1:-1], strides, strict=True)]
    start = sum(phase.first * s for phase, s in zip(chosen, operand.strides[1:-1], strict=True))
    return Operand(TensorType(shape, operand.type.dtype), (operand.strides[0], *distances, operand.strides[-1])), start


def _dense(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))


def _moved(call: KernelCall, offsets: Mapping[tuple[str, int | None], int]) -> KernelCall:
    refs = tuple(
        replace(ref, offset=offsets[ref.kind, ref.index]) if offsets.get((ref.kind, ref.index)) else ref for ref in call.refs
    )
    return replace(call, refs=refs)
