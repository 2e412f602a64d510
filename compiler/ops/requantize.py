"""The integer arithmetic of quantized operators: scales, rounding and clamping, exactly as every kernel must do them.

rounding "even": `clamp(round_half_even(float32(acc) * scale) + zero_point)`, one IEEE float32 multiplication; sums of two scaled terms
multiply and add separately. The float is clamped before it is converted, which changes nothing else.
rounding "qnnpack": the fixed-point arithmetic of QNNPACK's x86 and NEON kernels, which imported Caffe2 Int8 nets were made with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.record import require
from cortado.compiler.types import NUMPY_DTYPE, Quant, TensorType

ROUNDINGS = ("even", "qnnpack")
RESULTS = frozenset({"int8", "uint8"})
RESULT_ATTRS = {
    "quant": "scale and zero point of the result",
    "dtype": "int8 or uint8",
    "rounding": "even or qnnpack",
    "lo": "least value of the result, after the zero point",
    "hi": "greatest value of the result",
}


def limits(dtype: str) -> tuple[int, int]:
    """Least and greatest number of an integer type."""
    info = np.iinfo(NUMPY_DTYPE[dtype])
    return int(info.min), int(info.max)


def scale_of(kind: TensorType, what: str = "the input") -> tuple[np.float32, int]:
    """Scale and zero point of an int8 or uint8 tensor quantized as a whole; ShapeError for any other."""
    require(kind.dtype in RESULTS, f"{what} is {kind.dtype}; it must be int8 or uint8")
    require(kind.quant is not None, f"{what} is not quantized: it has no scale")
    assert kind.quant is not None
    require(kind.quant.axis is None, f"{what} is quantized along axis {kind.quant.axis}; it must have one scale")
    return np.float32(kind.quant.scales[0]), kind.quant.zero_points[0]


def result_type(shape: Sequence[int], quant: Quant, dtype: str) -> TensorType:
    """The type of a quantized result; ShapeError where dtype and quantization do not fit."""
    kind = TensorType(tuple(shape), dtype, quant)
    _, zero = scale_of(kind, "the result")
    low, high = limits(dtype)
    require(low <= zero <= high, f"the result's zero point {zero} is not among {dtype}'s {low} to {high}")
    return kind


def check_result(shape: Sequence[int], attrs: object) -> TensorType:
    """result_type of a node's RESULT_ATTRS, with rounding and clamp checked."""
    quant, dtype, rounding, lo, hi = (attrs[name] for name in RESULT_ATTRS)  # type: ignore[index]
    low, high = limits(dtype) if dtype in RESULTS else (0, 0)
    require(rounding in ROUNDINGS, f"rounding {rounding!r} is not one of {', '.join(ROUNDINGS)}")
    kind = result_type(shape, quant, dtype)
    require(low <= lo <= hi <= high, f"the clamp {lo} to {hi} is not a part of {dtype}'s {low} to {high}")
    return kind


def product_scales(x: np.float32, w: np.ndarray, y: np.float32) -> np.ndarray:
    """float32(float32(x * w) / y): what an accumulator of products is multiplied with. w: float32[...]."""
    return (np.float32(x) * w.astype(np.float32)).astype(np.float32) / np.float32(y)


def mean_scale(x: np.float32, y: np.float32, count: int | np.ndarray) -> np.ndarray:
    """float32(x / float32(y * count)): what a sum of `count` cells is multiplied with."""
    return np.float32(x) / (np.float32(y) * np.asarray(count, np.float32)).astype(np.float32)


def round_even(value: np.ndarray, zero: int, lo: int, hi: int, dtype: str) -> np.ndarray:
    """float32 [...] -> clamp(round_half_even(value) + zero, lo, hi); NaN becomes lo."""
    least, most = np.float32(lo - zero), np.float32(hi - zero)
    clamped = np.where(value > least, value, least)
    clamped = np.where(clamped < most, clamped, most)
    return (np.rint(clamped).astype(np.int32) + zero).astype(NUMPY_DTYPE[dtype])


def bits_of(scale: np.float32) -> int:
    return int(np.float32(scale).view(np.uint32))


def check_fixed_point(scales: np.ndarray) -> None:
    """QNNPACK's multipliers exist for scales in [2^-32, 1) alone."""
    wrong = scales[~((scales >= np.float32(2.0**-32)) & (scales < 1))]
    require(not wrong.size, f"a requantization scale of {wrong[:1]} is outside QNNPACK's range of 2^-32 to 1")


def q31_multiplier(scale: np.float32) -> tuple[int, int]:
    """(31-bit multiplier, right shift of the rounded product): 24 bits of mantissa, moved up by 7."""
    bits = bits_of(scale)
    return ((bits & 0x7FFFFF) | 0x800000) << 7, 126 - (bits >> 23)


def mantissa_multiplier(scale: np.float32) -> tuple[int, int]:
    """(24-bit multiplier, right shift) with scale = multiplier / 2^shift."""
    bits = bits_of(scale)
    return (bits & 0x7FFFFF) | 0x800000, 150 - (bits >> 23)


def sum_multipliers(a: np.float32, b: np.float32, y: np.float32) -> tuple[int, int, int]:
    """(multiplier of a, multiplier of b, right shift) of a quantized addition: the larger one has 22 bits."""
    scales = np.float32(a) / np.float32(y), np.float32(b) / np.float32(y)
    shift = 21 - ((bits_of(max(scales)) >> 23) - 127)
    fit = all(2.0**-14 <= scale < 2.0**8 for scale in scales) and shift < 32
    require(
        fit, f"input scales of {scales[0]:g} and {scales[1]:g} times the output's are outside QNNPACK's range of 2^-14 to 2^8"
    )
    first, second = (int(np.rint(np.float64(scale) * 2.0**shift)) for scale in scales)
    return first, second, shift


def shift_away(value: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """int64 / 2^shift to the nearest whole number, halves away from zero."""
    mask = (np.int64(1) << shift) - 1
    remainder = (value & mask) - (value < 0)
    return (value >> shift) + (remainder > (mask >> 1))


def requantize_q31(acc: np.ndarray, scales: np.ndarray, zero: int, lo: int, hi: int, dtype: str) -> np.ndarray:
    """QNNPACK's convolution: a Q31 product rounded half up, then shift_away. acc int[..., O], scales float32[O]."""
    pairs = [q31_multiplier(scale) for scale in scales]
    multiplier, shift = (np.array([pair[i] for pair in pairs], np.int64) for i in (0, 1))
    product = (acc.astype(np.int64) * multiplier + (1 << 30)) >> 31
    return np.clip(shift_away(product, shift) + zero, lo, hi).astype(NUMPY_DTYPE[dtype])


def requantize_mean(acc: np.ndarray, scale: np.float32, zero: int, lo: int, hi: int, dtype: str) -> np.ndarray:
    """QNNPACK's average pooling: one rounding, halves away from zero."""
    multiplier, shift = mantissa_multiplier(scale)
    product = acc.astype(np.int64) * multiplier
    rounded = (product - (acc < 0) + (1 << (shift - 1))) >> shift
    return np.clip(rounded + zero, lo, hi).astype(NUMPY_DTYPE[dtype])
