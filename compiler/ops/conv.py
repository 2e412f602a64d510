"""Convolution, fully connected layer and matrix product."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cortado.compiler.ops.checks import arity, bounded, broadcast_shapes, one_of, same_dtype, show
from cortado.compiler.ops.epilogue import apply_epilogue, check_epilogue
from cortado.compiler.ops.record import Attrs, Op, require
from cortado.compiler.ops.window import conv_output_shape, crop_and_pad
from cortado.compiler.types import TensorType

Types = Sequence[TensorType]
Arrays = Sequence[np.ndarray]
PRODUCTS = frozenset({"float32", "float64"})
CHUNK = 1 << 24  # elements of unfolded input held at once

WINDOW_ATTRS = {
    "strides": "step of the window, per spatial axis",
    "dilations": "distance of neighbouring kernel cells, per spatial axis",
    "pads_begin": "zeros before each spatial axis; negative crops",
    "pads_end": "zeros after each spatial axis; negative crops",
}
EPILOGUE_ATTR = {"epilogue": "entries of ops.epilogue, each with its input after the weights"}


def _infer_conv(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    require(len(types) >= 2, f"takes an input and a filter, got {len(types)} inputs")
    x, w = types[:2]
    one_of(same_dtype(types[:2]), PRODUCTS)
    require(3 <= len(x.shape) <= 5, f"the input {show(x.shape)} has {len(x.shape)} axes; a convolution takes 3, 4 or 5")
    require(len(w.shape) == len(x.shape), f"the filter {show(w.shape)} must have as many axes as the input {show(x.shape)}")
    group, channels, outputs = attrs["group"], x.shape[-1], w.shape[0]
    require(isinstance(group, int) and group >= 1, f"group={group} must be a whole number of at least 1")
    require(channels >= 1 and channels % group == 0, f"group={group} does not divide the input's {channels} channels")
    require(outputs >= 1 and outputs % group == 0, f"group={group} does not divide the filter's {outputs} outputs")
    require(
        w.shape[-1] == channels // group,
        f"the filter (outputs, kernel, channels) {show(w.shape)} is made for {w.shape[-1] * group} input channels; "
        f"the input has {channels}" + (f" (group={group})" if group > 1 else ""),
    )
    out = TensorType(conv_output_shape(x.shape, w.shape, attrs), x.dtype)
    padded = [n + b + e for n, b, e in zip(x.shape[1:-1], attrs["pads_begin"], attrs["pads_end"], strict=True)]
    bounded(TensorType((x.shape[0], *padded, channels), x.dtype), "the padded input")
    check_epilogue(attrs["epilogue"], out, types[2:])
    return (out,)


def convolve(x: np.ndarray, w: np.ndarray, attrs: Attrs) -> np.ndarray:
    """x[N,*S,C], w[O,*K,C/group] -> [N,*OS,O], without epilogue. Depthwise adds cell by cell, else unfolded rows are multiplied."""
    out_shape = conv_output_shape(x.shape, w.shape, attrs)
    strides, dilations, group = attrs["strides"], attrs["dilations"], attrs["group"]
    if math.prod(out_shape) == 0:
        return np.zeros(out_shape, x.dtype)
    x = np.ascontiguousarray(crop_and_pad(x, attrs["pads_begin"], attrs["pads_end"]))
    spatial = x.strides[1:-1]
    windows = np.lib.stride_tricks.as_strided(
        x,
        (*out_shape[:-1], *w.shape[1:-1], group, x.shape[-1] // group),
        (
            x.strides[0],
            *(step * s for step, s in zip(spatial, strides, strict=True)),
            *(step * d for step, d in zip(spatial, dilations, strict=True)),
            w.shape[-1] * x.strides[-1],
            x.strides[-1],
        ),
        writeable=False,
    )
    if w.shape[-1] == 1 and group > 1:
        return _depthwise(windows, w, group).reshape(out_shape)
    return _unfolded(windows, w, group).reshape(out_shape)


def _depthwise(windows: np.ndarray, w: np.ndarray, group: int) -> np.ndarray:
    """windows[N,*OS,*K,G,1], w[O,*K,1] -> [N,*OS,G,O/G]."""
    rank = w.ndim - 2
    cells = w.reshape(group, -1, *w.shape[1:-1])
    total = np.zeros((*windows.shape[: rank + 1], group, cells.shape[1]), w.dtype)
    for cell in np.ndindex(*w.shape[1:-1]):
        total += windows[(slice(None),) * (rank + 1) + cell] * cells[(slice(None),) * 2 + cell]
    return total


def _unfolded(windows: np.ndarray, w: np.ndarray, group: int) -> np.ndarray:
    """windows[N,*OS,*K,G,C/G], w[O,*K,C/G] -> [N*OS0, rest of OS, G, O/G]; a band of the first spatial axis at a time."""
    rank = w.ndim - 2
    outer = windows.shape[: rank + 1]
    inner = math.prod(w.shape[1:])
    weights = w.reshape(group, w.shape[0] // group, inner).transpose(0, 2, 1)
    out = np.empty((outer[0], outer[1], math.prod(outer[2:]), group, w.shape[0] // group), w.dtype)
    band = max(1, CHUNK // max(1, math.prod(outer[2:]) * inner * group))
    order = (rank + rank, *range(rank + rank), rank + rank + 1)  # group first
    for image in range(outer[0]):
        for row in range(0, outer[1], band):
            part = windows[image, row : row + band].transpose(*order)
            rows = part.shape[1]
            product = part.reshape(group, -1, inner) @ weights
            out[image, row : row + rows] = product.transpose(1, 0, 2).reshape(rows, -1, group, w.shape[0] // group)
    return out


def _conv(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (apply_epilogue(convolve(arrays[0], arrays[1], attrs), attrs["epilogue"], arrays[2:]),)


def _conv_macs(types: Types, attrs: Attrs) -> int:
    x, w = types[0].shape, types[1].shape
    return math.prod(conv_output_shape(x, w, attrs)) * math.prod(w[1:])


def _infer_fc(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    require(len(types) >= 2, f"takes an input and a weight matrix, got {len(types)} inputs")
    x, w = types[:2]
    one_of(same_dtype(types[:2]), PRODUCTS)
    require(len(x.shape) >= 1, "the input has no axes; a fully connected layer takes at least one")
    require(len(w.shape) == 2, f"the weights {show(w.shape)} must be a matrix (outputs, inputs)")
    require(
        w.shape[1] == x.shape[-1],
        f"the weights (outputs, inputs) {show(w.shape)} are made for {w.shape[1]} inputs; the input is {show(x.shape)}",
    )
    out = TensorType((*x.shape[:-1], w.shape[0]), x.dtype)
    check_epilogue(attrs["epilogue"], out, types[2:])
    return (out,)


def _fc(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (apply_epilogue(np.asarray(arrays[0] @ arrays[1].T), attrs["epilogue"], arrays[2:]),)


def _fc_macs(types: Types, attrs: Attrs) -> int:
    return math.prod(types[0].shape[:-1]) * math.prod(types[1].shape)


MATMUL_ATTRS = {"transpose_a": "swap the last two axes of a first", "transpose_b": "swap the last two axes of b first"}


def _matrices(types: Types, attrs: Attrs) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of both operands after the transpositions."""
    shapes = []
    for kind, name, turned in zip(types, "ab", (attrs["transpose_a"], attrs["transpose_b"]), strict=True):
        shape = kind.shape
        require(len(shape) >= 2, f"input {name} {show(shape)} must have at least two axes")
        shapes.append((*shape[:-2], shape[-1], shape[-2]) if turned else shape)
    return shapes[0], shapes[1]


def product_shape(types: Types, attrs: Attrs) -> tuple[int, ...]:
    """Of a[..., M, K] times b[..., K, N] after the transpositions (MATMUL_ATTRS), leading axes broadcast."""
    a, b = _matrices(types, attrs)
    require(
        a[-1] == b[-2],
        f"the matrices [{a[-2]},{a[-1]}] and [{b[-2]},{b[-1]}] cannot be multiplied: inner sizes {a[-1]} and {b[-2]} differ "
        f"(inputs {show(types[0].shape)} and {show(types[1].shape)})",
    )
    return (*broadcast_shapes([a[:-2], b[:-2]]), a[-2], b[-1])


def product_macs(types: Types, attrs: Attrs) -> int:
    """Multiply-adds of a product of matrices."""
    return math.prod(product_shape(types, attrs)) * _matrices(types, attrs)[0][-1]


def _infer_matmul(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    arity(types, 2)
    dtype = same_dtype(types)
    one_of(dtype, PRODUCTS)
    return (TensorType(product_shape(types, attrs), dtype),)


def _matmul(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    a = np.swapaxes(arrays[0], -1, -2) if attrs["transpose_a"] else arrays[0]
    b = np.swapaxes(arrays[1], -1, -2) if attrs["transpose_b"] else arrays[1]
    return (a @ b,)


OPS: tuple[Op, ...] = (
    Op("conv", _infer_conv, _conv, {**WINDOW_ATTRS, "group": "independent groups of channels", **EPILOGUE_ATTR}, macs=_conv_macs),
    Op("fc", _infer_fc, _fc, EPILOGUE_ATTR, macs=_fc_macs),
    Op("batch_matmul", _infer_matmul, _matmul, MATMUL_ATTRS, macs=product_macs),
)
