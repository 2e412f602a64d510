"""Fully connected layers and matrix products: contractions whose pixels are the rows of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Direct
from cortado.compiler.kernels.contraction import Weights, known_weights, lower_contraction
from cortado.compiler.kernels.driver import GroupAxis
from cortado.compiler.kernels.epilogue import Epilogue, parse_epilogue
from cortado.compiler.kernels.generic import generic_if
from cortado.compiler.kernels.geometry import Geometry, rows_geometry
from cortado.compiler.kernels.packing import WeightSource
from cortado.compiler.lang import INDEX, SCALAR_OF, Kernel, Type
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType


def lower_fc(
    node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target, direct: Direct | None = None
) -> list[KernelCall]:
    """x[...,K], w[O,K], then the epilogue's inputs -> out[...,O]; float32 or float64. direct: as for `lower_contraction`."""
    w, out = ins[1], outs[0]
    if out.type.size == 0:
        return []
    epilogue = parse_epilogue(node.attrs["epilogue"], 2)
    geometry, groups, outputs = fc_problem(node, ins, outs)
    source = WeightSource((), w.strides[0], ((w.shape[1], w.strides[1]),), epilogue.bias is not None)
    weights = known_weights(node, epilogue, 1, source)
    return lower_contraction("fc", Ref("input", 0), weights, out, geometry, groups, outputs, epilogue, target, direct, not groups)


def fc_problem(node: Node, ins: Sequence[Operand], outs: Sequence[Operand]) -> tuple[Geometry, tuple[GroupAxis, ...], int]:
    """The layer as a contraction: geometry, groups (rows that strides keep apart), and output channels."""
    outputs, depth = ins[1].shape
    residual = parse_epilogue(node.attrs["epilogue"], 2).residual
    geometry, apart = rows_geometry(ins[0], outs[0], None if residual is None else ins[residual], depth)
    groups = tuple(GroupAxis(axis.outputs, axis.in_stride, 0, axis.out_stride, axis.residual_stride) for axis in apart)
    return geometry, groups, outputs


def lower_batch_matmul(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """a[...,M,K] @ b[...,K,N] -> out[...,M,N], either transposed on request, leading axes broadcast; float32 or float64."""
    out = outs[0]
    if out.type.size == 0:
        return []
    b = _matrices(ins[1], node.attrs["transpose_b"])
    a = _matrices(ins[0], node.attrs["transpose_a"])
    calls: list[KernelCall] = []
    rows = Ref("input", 0)
    if a.columns[1] != 1 and a.columns[0] > 1:
        call, a = _by_rows(a, ins[0].type.dtype, target)
        calls, rows = [call], call.refs[-1]
    batch = out.shape[:-2]
    a_batch, b_batch = _spread(a.batch, len(batch)), _spread(b.batch, len(batch))
    groups, weight_axes, distinct = [], [], 1
    for i in reversed(range(len(batch))):
        shared = b_batch[i][0] == 1
        along = a_batch[i][1] if a_batch[i][0] > 1 else 0
        groups.append(GroupAxis(batch[i], along, 0 if shared else distinct, out.strides[i], 0))
        if not shared:
            weight_axes.append(b_batch[i])
            distinct *= batch[i]
    dtype = out.type.dtype
    left, product = Operand(TensorType(a.shape, dtype), a.strides), Operand(TensorType(out.shape[-2:], dtype), out.strides[-2:])
    geometry, _ = rows_geometry(left, product, None, a.columns[0])
    source = WeightSource(tuple(reversed(weight_axes)), b.columns[1], (b.rows,), False)
    filters = node.inputs[1].constant
    if filters is not None:
        filters = (filters if node.attrs["transpose_b"] else np.swapaxes(filters, -1, -2)).reshape(distinct, b.columns[0], -1)
    weights, outputs = Weights(source, filters, None), b.columns[0]
    in_order = math.prod(batch) == 1
    return calls + lower_contraction(
        "matmul", rows, weights, out, geometry, tuple(reversed(groups)), outputs, Epilogue(), target, None, in_order
    )


@dataclass(frozen=True)
class _Matrices:
    """Matrices as they are multiplied: (size, distance) of the axes before them, of rows and of columns."""

    batch: tuple[tuple[int, int], ...]
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows[0], self.columns[0]

    @property
    def strides(self) -> tuple[int, int]:
        return self.rows[1], self.columns[1]


def _matrices(operand: Operand, transposed: bool) -> _Matrices:
    *batch, rows, columns = zip(operand.shape, operand.strides, strict=True)
    return _Matrices(tuple(batch), *((columns, rows) if transposed else (rows, columns)))


def _spread(batch: tuple[tuple[int, int], ...], rank: int) -> list[tuple[int, int]]:
    """Broadcasting: axes of one in front."""
    return [(1, 0)] * (rank - len(batch)) + list(batch)


def _by_rows(a: _Matrices, dtype: str, target: Target) -> tuple[KernelCall, _Matrices]:
    """A copy whose rows are neighbours in memory, one matrix per task, and how it lies."""
    rows, columns = a.rows[0], a.columns[0]
    kernel = _copy_by_rows(a, SCALAR_OF[dtype], target)
    batch: list[tuple[int, int]] = []
    size = rows * columns
    for count, _ in reversed(a.batch):
        batch.insert(0, (count, size))
        size *= count
    scratch = Ref("scratch", nbytes=TensorType((size,), dtype).nbytes)
    copied = _Matrices(tuple(batch), (rows, columns), (columns, 1))
    generic = generic_if("matrix_by_columns", target.lanes(SCALAR_OF[dtype]) > 1, size)
    return KernelCall(kernel, (Ref("input", 0), scratch), math.prod(count for count, _ in a.batch), generic=generic), copied


def _copy_by_rows(a: _Matrices, scalar: str, target: Target) -> Kernel:
    k = KernelBuilder("matmul_rows", target)
    source, to = k.param("source"), k.param("to")
    begin, end = k.param("begin", INDEX), k.param("end", INDEX)
    (rows, from_row), (columns, from_column) = a.rows, a.columns
    element = Type(scalar)

    def matrix(number: Val) -> None:
        base, rest = k.index(0), number
        for count, distance in reversed(a.batch):
            base, rest = base + (rest % count) * distance, rest // count
        start, at = k.offset(source, base, scalar), k.offset(to, number * (rows * columns), scalar)

        def row(m: Val) -> None:
            k.loop(0, columns, 1, lambda c: k.store(at, k.load(start, element, m * from_row + c * from_column), m * columns + c))

        k.loop(0, rows, 1, row)

    k.loop(begin, end, 1, matrix)
    return k.finish()
