"""Quantized products of two computed matrices: the second is packed into panels of words first, then tiles as of layers multiply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from cortado.compiler.graph import Node
from cortado.compiler.kernels.driver import Contraction, contraction_driver
from cortado.compiler.kernels.geometry import rows_geometry
from cortado.compiler.kernels.matrices import Matrices, by_rows, stack_of
from cortado.compiler.kernels.packing import WeightSource, panel_sizes
from cortado.compiler.kernels.quantized_packing import HEADER, Factors, pack_words
from cortado.compiler.kernels.quantized_stage import stage
from cortado.compiler.kernels.quantized_sums import TAME, dot_core, dot_of
from cortado.compiler.kernels.requantize import Requantization
from cortado.compiler.kernels.tiling import choose_panels, choose_partition
from cortado.compiler.lang import BYTES, I32
from cortado.compiler.ops.quantized_matmul import matmul_scale
from cortado.compiler.ops.requantize import bits_of, scale_of
from cortado.compiler.program import KernelCall, Operand, Ref
from cortado.compiler.target import Target
from cortado.compiler.types import TensorType


def lower_q_matmul(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """a[...,M,K] @ b[...,K,N] -> out[...,M,N], either transposed on request, leading axes broadcast; int8 and uint8.

    Four products at once need b as signed bytes with zero point 0.
    """
    (x, y), (out,) = ins, outs
    if out.type.size == 0:
        return []
    (_, za), (_, zb) = (scale_of(value.type) for value in node.inputs)
    signed = x.type.dtype == "int8"
    dot = dot_of(y.type.dtype == "int8" and zb == 0, signed, target)
    b = Matrices.of(y, node.attrs["transpose_b"])
    calls, ref, dense = by_rows(Matrices.of(x, node.attrs["transpose_a"]), x.type.dtype, target)
    nothing = (0,) * (len(x.shape) - 1)
    staged = stage(dense.operand(x.type.dtype), za, 1, dot, nothing, nothing, target, ref)
    dot = staged.dot
    a, core = Matrices.of(staged.words, False), dot_core(target, dot)
    stack = stack_of(a.batch, b.batch, out)
    product = Operand(TensorType(out.shape[-2:], out.type.dtype), out.strides[-2:])
    geometry, _ = rows_geometry(replace(a, batch=()).operand("int32"), product, None, staged.channels)
    count = math.prod(axis.count for axis in stack.groups)
    panels = choose_panels(core, b.columns[0], geometry.width.outputs, geometry.depth_of_sum)
    partition = choose_partition(core, geometry, panels, count, False)
    layer = Contraction("i32", geometry, stack.groups, panels, partition, _requantization(node))
    kernel = contraction_driver(f"q_matmul_{dot.name}", layer, core, target, dot.tile_kernel)
    moved = za + 128 * signed if dot.name == "dot4" else 0
    scale = matmul_scale([value.type for value in node.inputs], node.attrs)
    factors = Factors(y.type.dtype == "int8", zb, moved, bits_of(scale))
    source = WeightSource(stack.weights, b.columns[1], (b.rows,), False)
    packing, tasks = pack_words(source, factors, panels, dot, target)
    total = panel_sizes(panels, geometry.depth_of_sum, HEADER, layer.weight_groups).total
    packed = Ref("scratch", nbytes=total * BYTES[I32.scalar])
    calls = [*calls, *staged.calls, KernelCall(packing, (Ref("input", 1), packed), tasks)]
    in_order = math.prod(out.shape[:-2]) == 1
    refs = (staged.ref, packed, Ref("output", 0))
    return [*calls, KernelCall(kernel, refs, partition.tasks, partition.blocks if in_order else 0)]


def _requantization(node: Node) -> Requantization:
    attrs = node.attrs
    tame = float(matmul_scale([value.type for value in node.inputs], attrs)) <= TAME
    zero = attrs["quant"].zero_points[0]
    return Requantization(True, rounding=attrs["rounding"], zero=zero, lo=attrs["lo"], hi=attrs["hi"], tame=tame)
