"""Fully connected layers and matrix products: contractions whose pixels are the rows of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cortado.compiler.graph import Node
from cortado.compiler.kernels.choice import Direct
from cortado.compiler.kernels.contraction import Weights, known_weights, lower_contraction
from cortado.compiler.kernels.driver import GroupAxis
from cortado.compiler.kernels.epilogue import Epilogue, parse_epilogue
from cortado.compiler.kernels.geometry import Geometry, rows_geometry
from cortado.compiler.kernels.matrices import Matrices, by_rows, stack_of
from cortado.compiler.kernels.packing import WeightSource
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
    dtype = out.type.dtype
    b = Matrices.of(ins[1], node.attrs["transpose_b"])
    calls, rows, a = by_rows(Matrices.of(ins[0], node.attrs["transpose_a"]), dtype, target)
    stack = stack_of(a.batch, b.batch, out)
    left, product = replace(a, batch=()).operand(dtype), Operand(TensorType(out.shape[-2:], dtype), out.strides[-2:])
    geometry, _ = rows_geometry(left, product, None, a.columns[0])
    source = WeightSource(stack.weights, b.columns[1], (b.rows,), False)
    filters = node.inputs[1].constant
    if filters is not None:
        filters = filters if node.attrs["transpose_b"] else np.swapaxes(filters, -1, -2)
        filters = filters.reshape(stack.distinct, b.columns[0], -1)
    weights, in_order = Weights(source, filters, None), math.prod(out.shape[:-2]) == 1
    return calls + lower_contraction(
        "matmul", rows, weights, out, geometry, stack.groups, b.columns[0], Epilogue(), target, None, in_order
    )
