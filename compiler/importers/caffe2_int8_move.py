"""Caffe2's quantized operators that move bytes or make them: what does not calculate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cortado.compiler.graph import Value, constant
from cortado.compiler.importers import caffe2_join, caffe2_shape
from cortado.compiler.importers.caffe2_call import FIRST, MANY, Call, OpSpec
from cortado.compiler.importers.caffe2_int8 import input_quant, nhwc_image, output_quant, same_quant
from cortado.compiler.ops.checks import show
from cortado.compiler.ops.resize import resized
from cortado.errors import FormatError, ShapeError

Results = Sequence[Value | None]
LARGEST_SCALE = 1 << 16


def _moved(build: Callable[[Call], Results], checked: bool = True) -> Callable[[Call], Results]:
    """The float operator's importer, for one whose elements only move. checked: the arguments must repeat the scale."""

    def wrapped(call: Call) -> Results:
        quant = same_quant(call) if checked else input_quant(call)
        first, *rest = build(call)
        if first is not None and first.constant is not None and first.type.quant is None:
            first = constant(first.constant, call.names[0], (call.operator.label,), quant=quant)
        return (first, *rest)

    return wrapped


def _concat(call: Call) -> Results:
    """All inputs are taken to have the first one's scale, as Caffe2 does: nothing is rescaled."""
    quant = same_quant(call)
    default = {"NHWC": 3, "NCHW": 1, "": 0}.get(call.args.text("order", "").upper(), 0)
    axis = call.axis(call.args.integer("axis", default), len(call.x.shape))
    table = np.arange(256, dtype=np.uint8)
    table.flags.writeable = False
    parts = []
    for position, value in enumerate(call.inputs):
        if input_quant(call, position) != quant:
            attrs = {"table": table, "quant": quant, "dtype": "uint8"}
            value = call.helper("q_table", (value,), f"as_first_{position}", attrs)
        parts.append(value)
    return (call.node("concat", parts, {"axis": axis}), *[None] * (len(call.operator.outputs) - 1))


def _resize_nearest(call: Call) -> Results:
    same_quant(call)
    nhwc_image(call, "NHWC")
    scales = call.args.number("height_scale", 1.0), call.args.number("width_scale", 1.0)
    if not all(0 < scale <= LARGEST_SCALE for scale in scales):
        raise ShapeError(
            f"scales of {scales[0]} and {scales[1]} are impossible: they must be above 0 and at most {LARGEST_SCALE}"
        )
    attrs = {
        "scale_h": scales[0], "scale_w": scales[1], "out_h": resized(call.x.shape[1], scales[0]),
        "out_w": resized(call.x.shape[2], scales[1]),
    }  # fmt: skip
    return (call.node("resize_nearest", (call.x,), attrs),)


def _channel_shuffle(call: Call) -> Results:
    same_quant(call)
    nhwc_image(call)
    group, shape = call.args.integer("group", 1), call.x.shape
    if not (call.args.has("kernel") or call.args.has("kernels")):
        raise FormatError("no kernel size: Int8ChannelShuffle wants argument 'kernel', though it uses none")
    if group < 2 or shape[-1] % group:
        raise ShapeError(f"group {group} must be at least 2 and divide the channels of the input {show(shape)}")
    parts = call.reshaped(call.x, (*shape[:-1], group, shape[-1] // group), "groups")
    return (call.as_output(call.transposed(parts, (0, 1, 2, 4, 3), "shuffled"), shape),)


# --- fills ---


def _given(call: Call) -> Results:
    """Bytes from one string."""
    stored = _bytes(call)
    quant = output_quant(call)
    return (constant(stored, call.names[0], (call.operator.label,), quant=quant),)


def _bytes(call: Call) -> np.ndarray:
    shape, strings = call.args.wide_integers("shape"), call.args.raw("values").strings
    text = b"".join(strings) if strings else call.args.raw("values").s or b""
    if any(size < 0 for size in shape) or len(text) != math.prod(shape):
        raise ShapeError(f"argument 'values' holds {len(text)} bytes, but the shape {show(shape)} needs {math.prod(shape)}")
    return np.frombuffer(text, np.uint8).reshape(shape)


def _given_int(call: Call) -> Results:
    """int32 biases; their scale is implied by what reads them."""
    shape, values = call.args.wide_integers("shape"), call.args.raw("values").ints
    if any(size < 0 for size in shape) or len(values) != math.prod(shape):
        raise ShapeError(f"argument 'values' holds {len(values)} numbers, but the shape {show(shape)} needs {math.prod(shape)}")
    return (call.constant(values.astype(np.int32).reshape(shape)),)


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "Int8Concat": OpSpec(_concat, inputs=(1, MANY), outputs=(1, 2)),
        "Int8Reshape": OpSpec(_moved(caffe2_shape.OPERATORS["Reshape"].build, False), (1, 2), (2, 2), FIRST),
        "Int8Flatten": OpSpec(_moved(caffe2_shape.OPERATORS["Flatten"].build)),
        "Int8Transpose": OpSpec(_moved(caffe2_shape.OPERATORS["Transpose"].build)),
        "Int8Slice": OpSpec(_moved(caffe2_join.OPERATORS["Slice"].build), inputs=(1, 3)),
        "Int8ResizeNearest": OpSpec(_resize_nearest),
        "Int8ChannelShuffle": OpSpec(_channel_shuffle),
        "Int8GivenTensorFill": OpSpec(_given, inputs=(0, 0)),
        "Int8GivenIntTensorFill": OpSpec(_given_int, inputs=(0, 0)),
    }
)
