"""Quantized product of matrices that are both computed, as attention multiplies them. Exact as in ops.quantized."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.checks import arity
from cortado.compiler.ops.conv import MATMUL_ATTRS, product_macs, product_shape
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.ops.requantize import RESULT_ATTRS, check_result, limits, product_scales, round_even, scale_of
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]
MOST_TERMS = (2**31 - 1) // 255**2  # so many products of what 8 bits are apart fit 32 bits


def matmul_scale(types: Types, attrs: Attrs) -> np.float32:
    """float32(float32(sa * sb) / sy): what sums are multiplied with."""
    (sa, _), (sb, _) = _scales(types)
    with np.errstate(over="ignore"):
        return np.float32(product_scales(sa, np.array([sb]), np.float32(attrs["quant"].scales[0]))[0])


def _scales(types: Types) -> list[tuple[np.float32, int]]:
    return [scale_of(kind, f"input {name}") for kind, name in zip(types, "ab", strict=True)]


def _infer_matmul(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 2)
    for kind, name, (_, zero) in zip(types, "ab", _scales(types), strict=True):
        low, high = limits(kind.dtype)
        require(low <= zero <= high, f"the zero point {zero} of input {name} is not among {kind.dtype}'s {low} to {high}")
    shape = product_shape(types, attrs)
    terms = types[0].shape[-2 if attrs["transpose_a"] else -1]
    require(terms <= MOST_TERMS, f"sums of {terms} products do not fit 32 bits; at most {MOST_TERMS} do")
    require(attrs["rounding"] == "even", f"rounding {attrs['rounding']!r} is none of a product of matrices, which rounds to even")
    out = check_result(shape, attrs)
    require(bool(np.isfinite(matmul_scale(types, attrs))), "the scales of inputs and result give none that float32 can hold")
    return (out,)


def _matmul(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """acc = sum((a - za) * (b - zb)), exact; clamp(rhe(float32(acc) * float32(float32(sa * sb) / sy)) + zy).

    a[..., M, K] and b[..., K, N], either with its last two axes swapped first; the axes before them broadcast.
    """
    types = attrs["input_types"]
    turned = []
    for array, name, (_, zero) in zip(arrays, "ab", _scales(types), strict=True):
        wide = array.astype(np.float64) - zero  # whose sums of products are exact in any order
        turned.append(np.swapaxes(wide, -1, -2) if attrs[f"transpose_{name}"] else wide)
    value = np.asarray(turned[0] @ turned[1]).astype(np.float32) * matmul_scale(types, attrs)
    return (round_even(value, attrs["quant"].zero_points[0], attrs["lo"], attrs["hi"], attrs["dtype"]),)


OPS: tuple[Op, ...] = (
    Op(
        "q_matmul", _infer_matmul, _matmul, {**MATMUL_ATTRS, **RESULT_ATTRS},
        exact=True, portable=True, takes_types=True, macs=product_macs,
    ),
)  # fmt: skip
