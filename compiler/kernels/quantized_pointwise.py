"""Quantized elementwise kernels: quantize, dequantize, add, mul. Their float operations are those of the operators' records, one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels.pointwise import map_elements
from cortado.compiler.kernels.requantize import clamped, rounded_even, rounded_product, shifted_away, widened
from cortado.compiler.lang import F32, Type
from cortado.compiler.ops.requantize import limits, product_scales, q31_multiplier, scale_of, sum_multipliers
from cortado.compiler.program import KernelCall, Operand
from cortado.compiler.target import Target
from cortado.errors import UnsupportedError

WIDE = ("float32",)  # of the values inside


def lower_quantize(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """float32 to int8 or uint8."""
    quant = node.attrs["quant"]
    scale, zero = float(np.float32(quant.scales[0])), quant.zero_points[0]

    def compute(k: KernelBuilder, values: Sequence[Val]) -> Val:
        return narrow(k, rounded_even(k, values[0] / scale, zero, *limits(node.attrs["dtype"])))

    return map_elements("quantize", compute, ins, outs[0], target)


def lower_dequantize(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """int8 or uint8 with one scale to float32."""
    kind = node.inputs[0].type
    if kind.quant is not None and kind.quant.axis is not None:
        raise UnsupportedError(f"dequantize {node.name}: a tensor with a scale per channel can only be a constant", [node.name])
    scale, zero = scale_of(kind)

    def compute(k: KernelBuilder, values: Sequence[Val]) -> Val:
        return single(k, centred(k, values[0], kind.dtype, zero)) * float(scale)

    return map_elements("dequantize", compute, ins, outs[0], target)


def lower_q_add(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """numpy's broadcasting."""
    (a, b), attrs = [value.type for value in node.inputs], node.attrs
    (sa, za), (sb, zb), sy = scale_of(a), scale_of(b), np.float32(attrs["quant"].scales[0])
    zero, lo, hi = attrs["quant"].zero_points[0], attrs["lo"], attrs["hi"]

    def even(k: KernelBuilder, x: Val, y: Val) -> Val:
        value = single(k, x) * float(np.float32(sa / sy)) + single(k, y) * float(np.float32(sb / sy))
        return rounded_even(k, value, zero, lo, hi)

    def fixed(k: KernelBuilder, x: Val, y: Val) -> Val:
        first, second, shift = sum_multipliers(sa, sb, sy)
        return clamped(k, shifted_away(k, x * first + y * second, k.const(shift, x.type)), zero, lo, hi)

    return _pairs(node, even if attrs["rounding"] == "even" else fixed, (za, zb), ins, outs[0], target)


def lower_q_mul(node: Node, ins: Sequence[Operand], outs: Sequence[Operand], target: Target) -> list[KernelCall]:
    """numpy's broadcasting."""
    (a, b), attrs = [value.type for value in node.inputs], node.attrs
    (sa, za), (sb, zb) = scale_of(a), scale_of(b)
    scale = product_scales(sa, np.array([sb]), np.float32(attrs["quant"].scales[0]))[0]
    zero, lo, hi = attrs["quant"].zero_points[0], attrs["lo"], attrs["hi"]

    def even(k: KernelBuilder, x: Val, y: Val) -> Val:
        return rounded_even(k, single(k, x * y) * float(scale), zero, lo, hi)

    def fixed(k: KernelBuilder, x: Val, y: Val) -> Val:
        multiplier, shift = (k.const(number, x.type) for number in q31_multiplier(scale))
        return clamped(k, shifted_away(k, rounded_product(k, x * y, multiplier), shift), zero, lo, hi)

    return _pairs(node, even if attrs["rounding"] == "even" else fixed, (za, zb), ins, outs[0], target)


def _pairs(
    node: Node, function: Callable[[KernelBuilder, Val, Val], Val], zeros: tuple[int, int], ins: Sequence[Operand], out: Operand,
    target: Target,
) -> list[KernelCall]:  # fmt: skip
    dtypes = [value.type.dtype for value in node.inputs]

    def compute(k: KernelBuilder, values: Sequence[Val]) -> Val:
        a, b = (centred(k, v, dtype, zero) for v, dtype, zero in zip(values, dtypes, zeros, strict=True))
        return narrow(k, function(k, a, b))

    return map_elements(node.op, compute, ins, out, target, dtypes=WIDE)


def centred(k: KernelBuilder, value: Val, dtype: str, zero: int) -> Val:
    """Bytes as i32 without their zero point."""
    return widened(k, value, dtype == "int8") - zero


def single(k: KernelBuilder, value: Val) -> Val:
    return k.convert(value, F32.with_lanes(value.type.lanes), "sitofp")


def narrow(k: KernelBuilder, value: Val) -> Val:
    return k.convert(value, Type("i8", value.type.lanes), "trunc")
