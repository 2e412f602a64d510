"""Quantized convolution, plain and transposed, and fully connected layer, the ways in and out of the integers, and tables. Channels last.

s, z: scale and zero point; rhe: round half to even. Every float operation is one IEEE float32 operation, never contracted.
Arithmetic: ops.requantize.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from cortado.compiler.ops.checks import arity, bounded, show
from cortado.compiler.ops.conv import WINDOW_ATTRS, convolve
from cortado.compiler.ops.conv_transpose import TRANSPOSED_ATTRS, convolve_transposed, transposed_macs, transposed_shape
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.ops.requantize import (
    RESULT_ATTRS,
    RESULTS,
    check_fixed_point,
    check_result,
    limits,
    product_scales,
    requantize_q31,
    result_type,
    round_even,
    scale_of,
)
from cortado.compiler.ops.window import conv_output_shape
from cortado.compiler.types import NUMPY_DTYPE, Quant, TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]


# --- in and out ---


def _infer_quantize(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    require(x.dtype == "float32", f"the input is {x.dtype}; it must be float32")
    return (result_type(x.shape, attrs["quant"], attrs["dtype"]),)


def _quantize(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """clamp(rhe(x / s) + z); NaN becomes the least number."""
    quant, dtype = attrs["quant"], attrs["dtype"]
    return (round_even(arrays[0] / np.float32(quant.scales[0]), quant.zero_points[0], *limits(dtype), dtype),)


def _infer_dequantize(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,) = types
    require(x.dtype in RESULTS, f"the input is {x.dtype}; it must be int8 or uint8")
    require(x.quant is not None, "the input is not quantized: it has no scale")
    return (TensorType(x.shape),)


def along_axis(numbers: Sequence[float], quant: Quant, rank: int, dtype: type) -> np.ndarray:
    """One number per index of the quantization axis, shaped to broadcast over a tensor of that rank."""
    shape = [1] * rank
    if quant.axis is not None:
        shape[quant.axis] = len(numbers)
    return np.array(numbers, dtype).reshape(shape)


def _dequantize(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """float32(q - z) * s, with one scale or one per index of the quantization axis."""
    (x,), quant = arrays, attrs["input_types"][0].quant
    zero, scale = along_axis(quant.zero_points, quant, x.ndim, np.int32), along_axis(quant.scales, quant, x.ndim, np.float32)
    return (((x.astype(np.int32) - zero).astype(np.float32) * scale).reshape(x.shape),)


# --- convolutions and fully connected ---


def weight_quant(w: TensorType) -> tuple[np.ndarray, np.ndarray]:
    """float32 scales and int32 zero points of the weights, one per output; ShapeError where they are not quantized so."""
    require(w.dtype in RESULTS, f"the weights are {w.dtype}; they must be int8 or uint8")
    require(w.quant is not None, "the weights are not quantized: they have no scale")
    assert w.quant is not None
    require(w.quant.axis in (None, 0), f"the weights are quantized along axis {w.quant.axis}; it must be 0, the outputs")
    count = w.shape[0]
    wrong = f"the weights have {len(w.quant.scales)} scales for {count} outputs"
    require(w.quant.axis is None or len(w.quant.scales) == count, wrong)
    scales, zeros = np.array(w.quant.scales, np.float32), np.array(w.quant.zero_points, np.int32)
    return np.broadcast_to(scales, (count,)), np.broadcast_to(zeros, (count,))


def output_scales(types: Types, attrs: Attrs) -> np.ndarray:
    """float32[O]: what the accumulators of a layer are multiplied with."""
    return product_scales(scale_of(types[0])[0], weight_quant(types[1])[0], np.float32(attrs["quant"].scales[0]))


def residual_scale(types: Types, attrs: Attrs) -> tuple[np.float32, int]:
    """float32(sr / sy) and the zero point of the residual, input 3."""
    scale, zero = scale_of(types[3], "the residual")
    return np.float32(scale / np.float32(attrs["quant"].scales[0])), zero


def _check_products(types: Types, attrs: Attrs, shape: tuple[int, ...]) -> tuple[TensorType, ...]:
    """What the layers have in common after their shapes."""
    outputs = shape[-1]
    bias = types[2]
    require(bias.dtype == "int32" and bias.shape == (outputs,), f"the bias is {bias}; it must be int32[{outputs}]")
    out = check_result(shape, attrs)
    scales = output_scales(types, attrs)
    require(bool(np.isfinite(scales).all()), "the scales of input, weights and result give none that float32 can hold")
    if attrs["rounding"] == "qnnpack":
        check_fixed_point(scales)
        require(len(types) == 3, "QNNPACK's rounding has no residual")
    if len(types) == 4:
        residual_scale(types, attrs)
        require(types[3].shape == shape, f"the residual has shape {show(types[3].shape)}; it must be {show(shape)}")
    return (out,)


def _infer_conv(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    require(len(types) in (3, 4), f"takes an input, a filter, a bias and perhaps a residual, got {len(types)} inputs")
    x, w = types[:2]
    scale_of(x)
    require(3 <= len(x.shape) <= 5, f"the input {show(x.shape)} has {len(x.shape)} axes; a convolution takes 3, 4 or 5")
    require(len(w.shape) == len(x.shape), f"the filter {show(w.shape)} must have as many axes as the input {show(x.shape)}")
    group, channels, outputs = attrs["group"], x.shape[-1], w.shape[0]
    require(isinstance(group, int) and group >= 1, f"group={group} must be a whole number of at least 1")
    require(channels >= 1 and channels % group == 0, f"group={group} does not divide the input's {channels} channels")
    require(outputs >= 1 and outputs % group == 0, f"group={group} does not divide the filter's {outputs} outputs")
    made = f"the filter {show(w.shape)} is made for {w.shape[-1] * group} input channels; the input has {channels}"
    require(w.shape[-1] * group == channels, made)
    shape = conv_output_shape(x.shape, w.shape, attrs)
    padded = [n + b + e for n, b, e in zip(x.shape[1:-1], attrs["pads_begin"], attrs["pads_end"], strict=True)]
    bounded(TensorType((x.shape[0], *padded, channels), x.dtype), "the padded input")
    return _check_products(types, attrs, shape)


def _infer_conv_transpose(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    require(len(types) in (3, 4), f"takes an input, a filter, a bias and perhaps a residual, got {len(types)} inputs")
    x, w = types[:2]
    scale_of(x)
    return _check_products(types, attrs, transposed_shape(x, w, attrs))


def _infer_fc(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    require(len(types) in (3, 4), f"takes an input, weights, a bias and perhaps a residual, got {len(types)} inputs")
    x, w = types[:2]
    scale_of(x)
    require(len(x.shape) >= 1, "the input has no axes; a fully connected layer takes at least one")
    require(len(w.shape) == 2, f"the weights {show(w.shape)} must be a matrix (outputs, inputs)")
    made = f"the weights (outputs, inputs) {show(w.shape)} are made for {w.shape[1]} inputs; the input is {show(x.shape)}"
    require(w.shape[1] == x.shape[-1], made)
    return _check_products(types, attrs, (*x.shape[:-1], w.shape[0]))


def _centred(arrays: Arrays, types: Types) -> tuple[np.ndarray, np.ndarray]:
    """Input and weights without their zero points, as float64: its sums of such products are exact in any order."""
    _, zero = scale_of(types[0])
    _, zeros = weight_quant(types[1])
    w = arrays[1].astype(np.float64)
    return arrays[0].astype(np.float64) - zero, w - zeros.reshape(-1, *[1] * (w.ndim - 1))


def _requantized(total: np.ndarray, arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    types = attrs["input_types"]
    acc = (total.astype(np.int64) + arrays[2]).astype(np.int32)  # wraps around as the accumulators do
    scales, dtype = output_scales(types, attrs), attrs["dtype"]
    zero = attrs["quant"].zero_points[0]
    if attrs["rounding"] == "qnnpack":
        return (requantize_q31(acc, scales, zero, attrs["lo"], attrs["hi"], dtype),)
    value = acc.astype(np.float32) * scales
    if len(arrays) == 4:
        scale, middle = residual_scale(types, attrs)
        value = value + (arrays[3].astype(np.int32) - middle).astype(np.float32) * scale
    return (round_even(value, zero, attrs["lo"], attrs["hi"], dtype),)


def _conv(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """acc = bias + sum((x - zx) * (w - zw)) in int32, padding cells are zx; y = clamp(rhe(float32(acc) * scale [+ residual]) + zy).

    scale = float32(float32(sx * sw) / sy). residual: float32(r - zr) * float32(sr / sy), added after the multiplication.
    """
    return _requantized(convolve(*_centred(arrays, attrs["input_types"]), attrs), arrays, attrs)


def _conv_transpose(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """As q_conv, over the taps that meet the output cell; one that none meets has the bias."""
    return _requantized(convolve_transposed(*_centred(arrays, attrs["input_types"]), attrs), arrays, attrs)


def _fc(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """As q_conv, for x[..., K] and w[O, K]."""
    x, w = _centred(arrays, attrs["input_types"])
    return _requantized(np.asarray(x @ w.T), arrays, attrs)


def _conv_macs(types: Types, attrs: Attrs) -> int:
    x, w = types[0].shape, types[1].shape
    return math.prod(conv_output_shape(x, w, attrs)) * math.prod(w[1:])


def _fc_macs(types: Types, attrs: Attrs) -> int:
    return math.prod(types[0].shape[:-1]) * math.prod(types[1].shape)


# --- tables ---


def make_table(function: Callable[[np.ndarray], np.ndarray], x: TensorType, quant: Quant, dtype: str) -> np.ndarray:
    """The table of `function` (float32 -> float32, elementwise): every value of x, dequantized, through it, then quantized.

    256 entries, by the byte of the value: entry i belongs to i as uint8, to int8(i) as int8. x: a quantized type.
    """
    scale, zero = scale_of(x)
    values = np.arange(256, dtype=np.uint8).view(NUMPY_DTYPE[x.dtype]).astype(np.int32)
    real = function((values - zero).astype(np.float32) * scale).astype(np.float32)
    table = round_even(real / np.float32(quant.scales[0]), quant.zero_points[0], *limits(dtype), dtype)
    table.flags.writeable = False
    return table


def _infer_table(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 1)
    (x,), table = types, attrs["table"]
    require(x.dtype in RESULTS, f"the input is {x.dtype}; it must be int8 or uint8")
    out = result_type(x.shape, attrs["quant"], attrs["dtype"])
    assert table.shape == (256,) and table.dtype == out.numpy, f"a table of {table.dtype}{list(table.shape)} for {out.dtype}"
    return (out,)


def _table(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """table[byte of x]: any function of one quantized tensor."""
    return (attrs["table"][np.ascontiguousarray(arrays[0]).view(np.uint8)],)


OPS: tuple[Op, ...] = (
    Op(
        "quantize", _infer_quantize, _quantize,
        {name: RESULT_ATTRS[name] for name in ("quant", "dtype")}, exact=True, portable=True,
    ),
    Op("dequantize", _infer_dequantize, _dequantize, exact=True, portable=True, takes_types=True),
    Op(
        "q_conv", _infer_conv, _conv, {**WINDOW_ATTRS, "group": "independent groups of channels", **RESULT_ATTRS},
        exact=True, portable=True, takes_types=True, macs=_conv_macs,
    ),
    Op(
        "q_conv_transpose", _infer_conv_transpose, _conv_transpose, {**TRANSPOSED_ATTRS, **RESULT_ATTRS},
        exact=True, portable=True, takes_types=True, macs=transposed_macs,
    ),
    Op("q_fc", _infer_fc, _fc, RESULT_ATTRS, exact=True, portable=True, takes_types=True, macs=_fc_macs),
    Op(
        "q_table", _infer_table, _table,
        {"table": "256 results, by the byte of the input", "quant": RESULT_ATTRS["quant"], "dtype": RESULT_ATTRS["dtype"]},
        exact=True, portable=True,
    ),
)  # fmt: skip
