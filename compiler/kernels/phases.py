"""A transposed convolution as plain convolutions: one for each phase of the strides, with the taps that meet there, written with a stride.

Output cell o (before the cut, o + pad) gets input cell i through tap t where o + pad = i * stride + t. So the cells of one phase,
o = phase + stride * n, see the taps t = r, r + stride, ... with r = (phase + pad) mod stride, at input cells (phase + pad) // stride + n,
one less for each further tap: a convolution of stride 1 with those taps in reverse order. No work is done twice and none for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from cortado.compiler.graph import Node, Value, constant
from cortado.compiler.program import KernelCall, Operand, Ref, contiguous_strides
from cortado.errors import UnsupportedError

TRANSPOSED = ("pads_begin", "pads_end", "output_padding", "strides")  # attributes that mean something else to a plain convolution


@dataclass(frozen=True)
class Phase:
    """One axis of one phase: its first output cell, how many there are, the filter's taps in order, and the pads of its convolution.

    idle: no tap reaches its cells; the one it has stands for none, and only ever meets padding.
    """

    first: int
    count: int
    taps: tuple[int, ...]
    pad_begin: int
    pad_end: int
    idle: bool


def phases(size: int, kernel: int, stride: int, pad: int, out: int) -> list[Phase]:
    """The phases of one axis that have output cells."""
    found = []
    for first in range(min(stride, out)):
        count = -(-(out - first) // stride)
        whole, rest = divmod(first + pad, stride)
        taps = tuple(range(rest, kernel, stride))[::-1]
        begin = len(taps) - 1 - whole if taps else count
        idle, taps = not taps, taps or (0,)
        found.append(Phase(first, count, taps, begin, count + len(taps) - 1 - size - begin, idle))
    return found


@dataclass(frozen=True, eq=False)
class PhaseConvolution:
    """A phase as a node, and its operands. offsets: by kind and index of a Ref, the element at which the phase's part of a tensor starts.

    idle: no tap reaches it: its filter is zero, and it only meets padding.
    """

    node: Node
    ins: list[Operand]
    out: Operand
    offsets: Mapping[tuple[str, int], int]
    idle: bool

    def placed(self, calls: Iterable[KernelCall]) -> list[KernelCall]:
        """The node's kernels, writing to where the phase's cells are."""

        def moved(ref: Ref) -> Ref:
            at = self.offsets.get((ref.kind, ref.index))
            return ref if at is None else replace(ref, offset=at)  # scratch is known by its Ref

        return [replace(call, refs=tuple(map(moved, call.refs))) for call in calls]


def phase_convolutions(node: Node, op: str, ins: Sequence[Operand], out: Operand, residual: int | None) -> list[PhaseConvolution]:
    """x[N,*S,C], w[O,*K,C/group] (constant), other inputs -> out[N,*OS,O]. op: of the plain convolutions. residual: its input's position."""
    weights = node.inputs[1].constant
    if weights is None:
        line = f"{node.op} {node.name}: its filter is computed"
        raise UnsupportedError(f"{line}; it must be constant", [line])
    strides, pads = node.attrs["strides"], node.attrs["pads_begin"]
    axes = [phases(*axis) for axis in zip(ins[0].shape[1:-1], weights.shape[1:-1], strides, pads, out.shape[1:-1], strict=True)]
    return [_convolution(node, op, chosen, weights, ins, out, residual) for chosen in product(*axes)]


def _convolution(
    node: Node, op: str, chosen: Sequence[Phase], weights: np.ndarray, ins: Sequence[Operand], out: Operand, residual: int | None
) -> PhaseConvolution:
    strides, idle = node.attrs["strides"], any(phase.idle for phase in chosen)
    cells = weights[np.ix_(range(weights.shape[0]), *(phase.taps for phase in chosen), range(weights.shape[-1]))]
    quant = node.inputs[1].type.quant
    if idle:
        zeros = np.array((0,) if quant is None else quant.zero_points, weights.dtype)
        cells = np.broadcast_to(zeros.reshape(-1, *[1] * (weights.ndim - 1)), cells.shape)
    taps = constant(np.ascontiguousarray(cells), f"{node.name}/taps", quant=quant)
    view, start = _strided(out, chosen, strides)
    operands = [ins[0], Operand(taps.type, contiguous_strides(taps.shape)), *ins[2:]]
    offsets = {("output", 0): start}
    if residual is not None:
        operands[residual], offsets["input", residual] = _strided(ins[residual], chosen, strides)
    ones = (1,) * len(chosen)
    attrs: dict[str, Any] = {
        **{name: value for name, value in node.attrs.items() if name not in TRANSPOSED},
        "strides": ones, "dilations": ones, "pads_begin": tuple(phase.pad_begin for phase in chosen),
        "pads_end": tuple(phase.pad_end for phase in chosen),
    }  # fmt: skip
    inputs: tuple[Value, ...] = (node.inputs[0], taps, *node.inputs[2:])
    kind = replace(node.types[0], shape=view.shape)
    return PhaseConvolution(Node(op, inputs, attrs, (kind,), node.name, node.origin), operands, view, offsets, idle)


def _strided(operand: Operand, chosen: Sequence[Phase], strides: Sequence[int]) -> tuple[Operand, int]:
    """The phase's cells of a tensor, and the element they start at."""
    shape = (operand.shape[0], *(phase.count for phase in chosen), operand.shape[-1])
    distances = [s * step for s, step in zip(operand.strides[1:-1], strides, strict=True)]
    start = sum(phase.first * s for phase, s in zip(chosen, operand.strides[1:-1], strict=True))
    return Operand(replace(operand.type, shape=shape), (operand.strides[0], *distances, operand.strides[-1])), start
