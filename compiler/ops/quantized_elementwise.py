"""Quantized operators without weights: addition, product, averages, sums, softmax. Channels last; exact as in ops.quantized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, localcontext

import numpy as np

from cortado.compiler.ops.checks import arity, axis_in, broadcast_shapes, show
from cortado.compiler.ops.pool import POOL_ATTRS, average_divisors, window_sums
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.ops.reduce import REDUCE_ATTRS
from cortado.compiler.ops.requantize import (
    RESULT_ATTRS,
    RESULTS,
    check_fixed_point,
    check_result,
    limits,
    mean_scale,
    product_scales,
    requantize_mean,
    requantize_q31,
    result_type,
    round_even,
    scale_of,
    shift_away,
    sum_multipliers,
)
from cortado.compiler.ops.window import pool_output_shape
from cortado.compiler.types import NUMPY_DTYPE, TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]
REDUCTION_ATTRS = {**REDUCE_ATTRS, **RESULT_ATTRS}
SOFTMAX_SCALE = 2.0**-8
MOST_SUMMED = (2**31 - 1) // 255  # bytes of one sum: it fits 32 bits whatever they are
MOST_SOFTMAX = 1 << 16  # elements of one softmax: the table's entries stay at least 2^16


def _scales(attrs: Attrs) -> tuple[list[np.float32], list[int], np.float32, int]:
    """Scales and zero points of the inputs, then of the result."""
    pairs = [scale_of(kind) for kind in attrs["input_types"]]
    quant = attrs["quant"]
    return [p[0] for p in pairs], [p[1] for p in pairs], np.float32(quant.scales[0]), quant.zero_points[0]


def _centred(x: np.ndarray, zero: int) -> np.ndarray:
    return x.astype(np.int64) - zero


# --- two inputs ---


def _infer_pair(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 2)
    scale_of(types[0]), scale_of(types[1])
    return (check_result(broadcast_shapes([kind.shape for kind in types]), attrs),)


def _infer_add(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    out = _infer_pair(types, attrs)
    if attrs["rounding"] == "qnnpack":
        sum_multipliers(scale_of(types[0])[0], scale_of(types[1])[0], np.float32(attrs["quant"].scales[0]))
    return out


def _add(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """clamp(rhe(float32(a - za) * (sa / sy) + float32(b - zb) * (sb / sy)) + zy), numpy's broadcasting.

    qnnpack: the sum of (a - za) * ma and (b - zb) * mb in integers, shifted right once, halves away from zero.
    """
    (sa, sb), (za, zb), sy, zy = _scales(attrs)
    a, b = _centred(arrays[0], za), _centred(arrays[1], zb)
    lo, hi, dtype = attrs["lo"], attrs["hi"], attrs["dtype"]
    if attrs["rounding"] == "qnnpack":
        first, second, shift = sum_multipliers(sa, sb, sy)
        return (np.clip(shift_away(a * first + b * second, shift) + zy, lo, hi).astype(NUMPY_DTYPE[dtype]),)
    value = a.astype(np.float32) * np.float32(sa / sy) + b.astype(np.float32) * np.float32(sb / sy)
    return (round_even(value, zy, lo, hi, dtype),)


def _infer_mul(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    out = _infer_pair(types, attrs)
    if attrs["rounding"] == "qnnpack":
        check_fixed_point(_mul_scale(scale_of(types[0])[0], scale_of(types[1])[0], attrs))
    return out


def _mul_scale(a: np.float32, b: np.float32, attrs: Attrs) -> np.ndarray:
    return product_scales(a, np.array([b]), np.float32(attrs["quant"].scales[0]))


def _mul(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """clamp(rhe(float32((a - za) * (b - zb)) * float32(float32(sa * sb) / sy)) + zy); qnnpack rounds as in a convolution."""
    (sa, sb), (za, zb), _, zy = _scales(attrs)
    acc = _centred(arrays[0], za) * _centred(arrays[1], zb)
    scale, lo, hi, dtype = _mul_scale(sa, sb, attrs), attrs["lo"], attrs["hi"], attrs["dtype"]
    if attrs["rounding"] == "qnnpack":
        return (requantize_q31(acc[..., None], scale, zy, lo, hi, dtype)[..., 0],)
    return (round_even(acc.astype(np.float32) * scale[0], zy, lo, hi, dtype),)


# --- averages and sums ---


def _infer_average(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    scale_of(x)
    require(3 <= len(x.shape) <= 5, f"the input {show(x.shape)} has {len(x.shape)} axes; pooling takes 3, 4 or 5")
    return (check_result(pool_output_shape(x.shape, attrs), attrs),)


def _average(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """acc = sum(x - zx) over the window's cells inside the image; clamp(rhe(float32(acc) * float32(sx / float32(sy * cells))) + zy).

    cells: the kernel's area, or the cells inside the image (at least 1), as count_include_pad says. qnnpack: requantize_mean.
    """
    (sx,), (zx,), sy, _ = _scales(attrs)
    acc = window_sums(_centred(arrays[0], zx), attrs)
    counts = average_divisors(arrays[0].shape[1:-1], acc.shape[1:-1], attrs)[..., None]
    return (requantize_average(acc, mean_scale(sx, sy, counts), attrs),)


def requantize_average(acc: np.ndarray, scales: np.ndarray, attrs: Attrs) -> np.ndarray:
    """acc int[...], scales float32 broadcasting to it, by the node's rounding."""
    zero, lo, hi, dtype = attrs["quant"].zero_points[0], attrs["lo"], attrs["hi"], attrs["dtype"]
    if attrs["rounding"] == "even":
        return round_even(acc.astype(np.float32) * scales, zero, lo, hi, dtype)
    out = np.empty(acc.shape, NUMPY_DTYPE[dtype])
    scales = np.broadcast_to(scales, acc.shape)
    for scale in np.unique(scales):
        here = scales == scale
        out[here] = requantize_mean(acc[here], scale, zero, lo, hi, dtype)
    return out


def _kept(shape: tuple[int, ...], attrs: Attrs) -> tuple[int, ...]:
    ones = [1 if i in attrs["axes"] else d for i, d in enumerate(shape)]
    return tuple(d for i, d in enumerate(ones) if attrs["keepdims"] or i not in attrs["axes"])


def summed(shape: Sequence[int], axes: Sequence[int]) -> int:
    """Elements in each sum over the axes."""
    return math.prod(shape[axis] for axis in axes)


def _reduced_shape(types: Types, attrs: Attrs) -> tuple[int, ...]:
    arity(types, 1)
    (x,) = types
    scale_of(x)
    for axis in attrs["axes"]:
        axis_in(axis, len(x.shape), "reduced axis")
        require(x.shape[axis] > 0, f"axis {axis} of {show(x.shape)} is empty: there is nothing to reduce")
    require(len(set(attrs["axes"])) == len(attrs["axes"]), f"axes={tuple(attrs['axes'])} names an axis twice")
    count = summed(x.shape, attrs["axes"])
    require(
        count <= MOST_SUMMED, f"sums of {count} elements of {show(x.shape)} may not fit 32 bits: at most {MOST_SUMMED} are added"
    )
    return _kept(x.shape, attrs)


def _infer_reduction(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (check_result(_reduced_shape(types, attrs), attrs),)


def _infer_real_mean(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(_reduced_shape(types, attrs)),)


def _centred_sum(x: np.ndarray, zero: int, attrs: Attrs) -> np.ndarray:
    return np.asarray(_centred(x, zero).sum(axis=tuple(attrs["axes"]))).reshape(_kept(x.shape, attrs))


def _real_mean(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """acc = sum(x - zx); float32(acc) * float32(sx / float32(cells))."""
    scale, zero = scale_of(attrs["input_types"][0])
    (x,) = arrays
    total = _centred_sum(x, zero, attrs)
    return (total.astype(np.float32) * mean_scale(scale, np.float32(1), summed(x.shape, attrs["axes"])),)


def _mean(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """As q_average_pool, over whole axes."""
    return (_reduced(arrays[0], attrs, summed(arrays[0].shape, attrs["axes"])),)


def _sum(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """acc = sum(x - zx) over the axes; clamp(rhe(float32(acc) * float32(sx / sy)) + zy). qnnpack: requantize_mean."""
    return (_reduced(arrays[0], attrs, 1),)


def _reduced(x: np.ndarray, attrs: Attrs, divisor: int) -> np.ndarray:
    (sx,), (zx,), sy, _ = _scales(attrs)
    return requantize_average(_centred_sum(x, zx, attrs), mean_scale(sx, sy, divisor), attrs)


# --- softmax ---


def _infer_softmax(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    scale_of(x)
    axis_in(attrs["axis"], len(x.shape))
    require(x.shape[attrs["axis"]] <= MOST_SOFTMAX, f"a quantized softmax takes at most {MOST_SOFTMAX} elements")
    scale = attrs["quant"].scales[0]
    require(scale == SOFTMAX_SCALE, f"the result of a quantized softmax has a scale of 1/256, not {scale:g}")
    zero, low = attrs["quant"].zero_points[0], limits(attrs["dtype"])[0] if attrs["dtype"] in RESULTS else 0
    require(zero == low, f"the zero point of a quantized softmax is the least number, {low}, not {zero}")
    return (result_type(x.shape, attrs["quant"], attrs["dtype"]),)


def softmax_table(scale: np.float32, count: int) -> np.ndarray:
    """int64[256]: rint(q * exp((i - 255) * scale)), q = min(whole((2^32 - 1) / count), 2^23 - 1), so that `count` of them fit 32 bits."""
    q = min(float((2**32 - 1) // max(count, 1)), 8388607.0)
    step = float(scale)
    with localcontext() as context:  # numpy's exp gives other last bits on other machines
        context.prec = 30
        powers = [float(Decimal((i - 255.0) * step).exp()) for i in range(256)]
    return np.rint(q * np.array(powers)).astype(np.int64)


def _softmax(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """t = table[x - max + 255]; min((256 * t + whole(sum / 2)) / sum, 255) + zy (the type's least number), divided to the whole number below."""
    (scale,), _, _, zero = _scales(attrs)
    (x,), axis = arrays, attrs["axis"]
    wide = x.astype(np.int64)
    if not x.size:
        return (np.zeros(x.shape, NUMPY_DTYPE[attrs["dtype"]]),)
    t = softmax_table(scale, x.shape[axis])[wide - wide.max(axis, keepdims=True) + 255]
    total = t.sum(axis, keepdims=True)
    return ((np.minimum((t * 256 + total // 2) // total, 255) + zero).astype(NUMPY_DTYPE[attrs["dtype"]]),)


OPS: tuple[Op, ...] = (
    Op("q_add", _infer_add, _add, RESULT_ATTRS, exact=True, portable=True, takes_types=True),
    Op("q_mul", _infer_mul, _mul, RESULT_ATTRS, exact=True, portable=True, takes_types=True),
    Op(
        "q_average_pool", _infer_average, _average,
        {**POOL_ATTRS, "count_include_pad": "divide by the kernel's area, not by the cells inside the image", **RESULT_ATTRS},
        exact=True, portable=True, takes_types=True,
    ),
    Op("q_mean", _infer_reduction, _mean, REDUCTION_ATTRS, exact=True, portable=True, takes_types=True),
    Op("q_sum", _infer_reduction, _sum, REDUCTION_ATTRS, exact=True, portable=True, takes_types=True),
    Op(
        "dequantized_mean", _infer_real_mean, _real_mean, {"axes": "the axes reduced over", "keepdims": "keep them with size 1"},
        exact=True, portable=True, takes_types=True,
    ),
    Op(
        "q_softmax", _infer_softmax, _softmax,
        {"axis": "softmax over this axis", "quant": "scale 1/256 and zero point of the result", "dtype": "int8 or uint8"},
        exact=True, portable=True, takes_types=True,
    ),
)  # fmt: skip
