"""Caffe2's quantized operators (Int8...): uint8 tensors of one scale each, always channels last, with QNNPACK's arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FIRST, FLOAT32, Call, OpSpec
from cortado.compiler.importers.caffe2_window import SAME, read_transposed, read_window
from cortado.compiler.ops.checks import show
from cortado.compiler.types import Quant
from cortado.errors import FormatError, ShapeError, UnsupportedError

Results = Sequence[Value | None]
EITHER = frozenset({(0, 0), (1, 0)})
UINT8, INT32 = frozenset({"uint8"}), frozenset({"int32"})


# --- quantization and order ---


def output_quant(call: Call) -> Quant:
    """Arguments Y_scale and Y_zero_point; 1 and 0 where absent."""
    scale, zero = call.args.number("Y_scale", 1.0), call.args.integer("Y_zero_point", 0)
    if not (scale > 0 and math.isfinite(scale)):
        raise FormatError(f"argument 'Y_scale' is {scale}; it must be above 0")
    if not 0 <= zero <= 255:
        raise FormatError(f"argument 'Y_zero_point' is {zero}; it must be 0 to 255")
    return Quant((float(np.float32(scale)),), (zero,))


def input_quant(call: Call, position: int = 0) -> Quant:
    """The quantization of an input. ShapeError where it is none of uint8."""
    call.dtype(UINT8, position)
    quant = call.inputs[position].type.quant
    if quant is None:
        raise ShapeError(
            f"input '{call.operator.inputs[position]}' has no scale: it must come from an Int8 operator, not be fed as bytes"
        )
    return quant


def same_quant(call: Call) -> Quant:
    """The input's quantization, which the arguments must repeat."""
    quant, wanted = input_quant(call), output_quant(call)
    if quant != wanted:
        raise FormatError(
            f"the output's scale and zero point ({wanted.scales[0]:.7g}, {wanted.zero_points[0]}) must be those of the input "
            f"({quant.scales[0]:.7g}, {quant.zero_points[0]})"
        )
    return quant


def _result(call: Call, relu: bool = False) -> dict[str, Any]:
    quant = output_quant(call)
    return {"quant": quant, "dtype": "uint8", "rounding": "qnnpack", "lo": quant.zero_points[0] if relu else 0, "hi": 255}


def nhwc_image(call: Call, default: str = "NCHW") -> None:
    order = call.args.text("order", default)
    if order not in ("NHWC", "nhwc"):
        raise FormatError(f"argument 'order' is '{order}'; {call.operator.type} exists for order NHWC only")
    if len(call.x.shape) != 4:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; {call.operator.type} takes 4 axes")


def _by_table(call: Call, function: Callable[[np.ndarray], np.ndarray], quant: Quant) -> Value:
    """function: int64[256] bytes to bytes."""
    table = function(np.arange(256)).astype(np.uint8)
    table.flags.writeable = False
    return call.node("q_table", (call.x,), {"table": table, "quant": quant, "dtype": "uint8"})


# --- products ---


def _products(call: Call) -> None:
    input_quant(call)
    input_quant(call, 1)
    call.dtype(INT32, 2)


def _convolution(relu: bool) -> Callable[[Call], Results]:
    def build(call: Call) -> Results:
        _products(call)
        nhwc_image(call)
        x, w, _ = call.inputs
        window = read_window(call.args)
        if window.whole:
            raise UnsupportedError("a convolution with global_pooling is not supported: give the kernel size")
        attrs: dict[str, Any] = dict(window.fit(x.shape[1:-1]))
        if window.legacy == SAME and min((*attrs["pads_begin"], *attrs["pads_end"])) < 0:
            raise FormatError("legacy_pad SAME with a stride above the kernel would need negative pads")
        kernel, group = attrs.pop("kernel"), call.args.integer("group", 1)
        wanted = f"[outputs,{','.join(map(str, kernel))},channels/group]"
        if len(w.shape) != 4 or kernel != w.shape[1:-1]:
            raise ShapeError(f"the filter '{call.operator.inputs[1]}' is {show(w.shape)}; it must be {wanted}")
        call.shape(2, (w.shape[0],), "bias")
        return (call.node("q_conv", call.inputs, {**attrs, "group": group, **_result(call, relu)}),)

    return build


def _fully_connected(call: Call) -> Results:
    """The input is flattened after its first axis, whatever `axis` says."""
    _products(call)
    x = call.x
    if not x.shape:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' has no axes; it needs at least one")
    flat = call.reshaped(x, (x.shape[0], math.prod(x.shape[1:])), "flat")
    return (call.node("q_fc", (flat, *call.inputs[1:]), _result(call)),)


def _transposed_convolution(call: Call) -> Results:
    """Filter [C, KH, KW, M], one group whatever `group` says."""
    _products(call)
    nhwc_image(call)
    (window, attrs), x, w = read_transposed(call.args), call.x, call.inputs[1]
    if len(w.shape) != 4 or w.shape[0] != x.shape[-1] or w.shape[1:3] != window.kernel:
        wanted = f"[{x.shape[-1]},{','.join(map(str, window.kernel))},outputs]"
        raise ShapeError(f"the filter '{call.operator.inputs[1]}' is {show(w.shape)}; it must be {wanted}")
    call.shape(2, (w.shape[-1],), "bias")
    inputs = x, call.transposed(w, (3, 1, 2, 0), "filter"), call.inputs[2]
    return (call.node("q_conv_transpose", inputs, {**attrs, "group": 1, **_result(call)}),)


def _add(relu: bool) -> Callable[[Call], Results]:
    def build(call: Call) -> Results:
        input_quant(call)
        input_quant(call, 1)
        call.shape(1, call.x.shape, "second input")
        return (call.node("q_add", call.inputs, _result(call, relu)),)

    return build


# --- pools ---


def _window(call: Call) -> dict[str, Any]:
    nhwc_image(call)
    window = read_window(call.args)
    if window.kernel == (1, 1):
        raise FormatError(f"{call.operator.type} takes no kernel of 1 x 1")
    return dict(window.fit(call.x.shape[1:-1]))


def _average_pool(relu: bool) -> Callable[[Call], Results]:
    """The divisor is always the kernel's area; padding counts as the zero point."""

    def build(call: Call) -> Results:
        input_quant(call)
        return (call.node("q_average_pool", (call.x,), {**_window(call), "count_include_pad": True, **_result(call, relu)}),)

    return build


def _max_pool(relu: bool) -> Callable[[Call], Results]:
    def build(call: Call) -> Results:
        quant = same_quant(call)
        attrs = _window(call)
        if not relu:
            return (call.node("max_pool", (call.x,), attrs),)
        pooled = call.helper("max_pool", (call.x,), "pooled", attrs)
        table = np.maximum(np.arange(256), quant.zero_points[0]).astype(np.uint8)
        table.flags.writeable = False
        return (call.node("q_table", (pooled,), {"table": table, "quant": quant, "dtype": "uint8"}),)

    return build


# --- functions of one tensor ---


def _relu(call: Call) -> Results:
    quant = same_quant(call)
    return (_by_table(call, lambda byte: np.maximum(byte, quant.zero_points[0]), quant),)


def _leaky_relu(call: Call) -> Results:
    x, y, alpha = input_quant(call), output_quant(call), np.float32(call.args.number("alpha", 0.01))
    if not 0 < alpha < 1:
        raise FormatError(f"argument 'alpha' is {alpha}; it must be above 0 and below 1")
    ratio, zero = np.float32(x.scales[0]) / np.float32(y.scales[0]), y.zero_points[0]

    def leaky(byte: np.ndarray) -> np.ndarray:
        value = (byte - x.zero_points[0]).astype(np.float32) * ratio
        value = np.where(value < 0, value * alpha, value)
        return np.rint(np.clip(value, np.float32(-zero), np.float32(255 - zero))) + zero

    return (_by_table(call, leaky, y),)


def _unit_quant(call: Call) -> Quant:
    """The output of sigmoid and softmax: 256 steps from 0 to 1."""
    quant = output_quant(call)
    if quant != Quant((2.0**-8,), (0,)):
        raise FormatError(f"{call.operator.type} gives a scale of 1/256 and a zero point of 0; the arguments say otherwise")
    return quant


def _sigmoid(call: Call) -> Results:
    x, quant = input_quant(call), _unit_quant(call)

    def sigmoid(byte: np.ndarray) -> np.ndarray:
        value = np.float32(x.scales[0]) * (byte - x.zero_points[0]).astype(np.float32)
        powers = np.array([float(Decimal(float(-v)).exp()) for v in value]).astype(np.float32)
        return np.minimum(np.rint(np.float32(256) / (np.float32(1) + powers)), 255)

    return (_by_table(call, sigmoid, quant),)


def _softmax(call: Call) -> Results:
    """Over everything but the first axis."""
    input_quant(call)
    quant, shape = _unit_quant(call), call.x.shape
    if not shape:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' has no axes; it needs at least one")
    flat = call.reshaped(call.x, (shape[0], math.prod(shape[1:])), "flat")
    attrs = {"axis": 1, "quant": quant, "dtype": "uint8"}
    if len(shape) == 2:
        return (call.node("q_softmax", (flat,), attrs),)
    return (call.as_output(call.helper("q_softmax", (flat,), "softmax", attrs), shape),)


def _quantize(call: Call) -> Results:
    call.dtype(FLOAT32)
    return (call.node("quantize", (call.x,), {"quant": output_quant(call), "dtype": "uint8"}),)


def _dequantize(call: Call) -> Results:
    input_quant(call)
    return (call.node("dequantize", (call.x,)),)


def _roi_align(call: Call) -> Results:
    input_quant(call)
    call.dtype(FLOAT32, 1)
    nhwc_image(call, "NHWC")
    args = call.args
    attrs = {
        "scale": args.number("spatial_scale", 1.0), "pooled_h": args.integer("pooled_h", 1), "pooled_w": args.integer("pooled_w", 1),
        "sampling": max(args.integer("sampling_ratio", -1), 0), **_result(call),
    }  # fmt: skip
    return (call.node("q_roi_align", call.inputs, attrs),)


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "Int8Conv": OpSpec(_convolution(False), inputs=(3, 3)),
        "Int8ConvRelu": OpSpec(_convolution(True), inputs=(3, 3)),
        "Int8ConvTranspose": OpSpec(_transposed_convolution, inputs=(3, 3)),
        "Int8FC": OpSpec(_fully_connected, inputs=(3, 3)),
        "Int8Add": OpSpec(_add(False), inputs=(2, 2), in_place=EITHER),
        "Int8AddRelu": OpSpec(_add(True), inputs=(2, 2), in_place=EITHER),
        "Int8Sum": OpSpec(_add(False), inputs=(2, 2), in_place=EITHER),
        "Int8SumRelu": OpSpec(_add(True), inputs=(2, 2), in_place=EITHER),
        "Int8AveragePool": OpSpec(_average_pool(False)),
        "Int8AveragePoolRelu": OpSpec(_average_pool(True)),
        "Int8MaxPool": OpSpec(_max_pool(False)),
        "Int8MaxPoolRelu": OpSpec(_max_pool(True)),
        "Int8Relu": OpSpec(_relu, in_place=FIRST),
        "Int8LeakyRelu": OpSpec(_leaky_relu, in_place=FIRST),
        "Int8Sigmoid": OpSpec(_sigmoid),
        "Int8Softmax": OpSpec(_softmax),
        "Int8Quantize": OpSpec(_quantize),
        "Int8Dequantize": OpSpec(_dequantize),
        "Int8RoIAlign": OpSpec(_roi_align, inputs=(2, 2)),
    }
)
